"""Groups of cases, such as tumour subtypes: a CSV file with the header `case,<column>`."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

from maxquery_jax.errors import UserError

CASE = 'case'

_HEADER = f'its first row must be "{CASE},<name of the groups>", such as "{CASE},subtype"'


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which group a case belongs to; every case is in one group at most.

    Attributes:
        column: what the groups are, such as 'subtype'.
        group_of: case id to its group.
        path: file that says so, for messages.
        rows: case id to its row in the file, from 1.
    """

    column: str
    group_of: Mapping[str, str]
    path: pathlib.Path
    rows: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, sorted."""
        return tuple(sorted(set(self.group_of.values())))

    def restrict(self, cases: Collection[str], known: Collection[str] = ()) -> 'Groups':
        """The same of some of the cases.

        Args:
            cases: ids that are wanted; those without a row stay without a group.
            known: ids that a row may name though they are not wanted, such as of other splits.

        Raises:
            UserError: a row names none of both, or no row names one that is wanted.
        """
        allowed = {*cases, *known}
        unknown = [case for case in self.group_of if case not in allowed]
        if unknown:
            more = f', as are {len(unknown) - 1} more' if len(unknown) > 1 else ''
            raise UserError(
                f'{self.path} row {self.rows[unknown[0]]}: case {unknown[0]!r} is unknown{more}; '
                f'write the ids as in the names of the predictions, such as {min(cases)!r}, or '
                'drop the row'
            )
        wanted = {case: group for case, group in self.group_of.items() if case in set(cases)}
        if not wanted:
            raise UserError(
                f'{self.path} row {min(self.rows.values())}: neither this nor another row names a '
                f'case that is evaluated, such as {min(cases)!r}; give the file of this split'
            )
        return dataclasses.replace(self, group_of=wanted)


def read_groups(path: str | os.PathLike[str]) -> Groups:
    """Reads a CSV file of two columns, `case` and the group; UTF-8, empty rows are skipped.

    Raises:
        UserError: it is missing, not UTF-8 or no CSV, or a row is at fault; names the row.
    """
    path = pathlib.Path(path)
    rows = _read_rows(path)
    if not rows or len(rows[0][1]) != 2 or rows[0][1][0] != CASE or not rows[0][1][1]:
        where = f'{path} row {rows[0][0]}' if rows else f'{path} row 1'
        found = ','.join(rows[0][1]) if rows else ''
        raise UserError(f'{where}: {found[:60]!r} is no header of two columns; {_HEADER}')
    column = rows[0][1][1]
    group_of: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, cells in rows[1:]:
        case, group = _check_row(f'{path} row {number}', column, cells)
        if case in group_of:
            raise UserError(
                f'{path} row {number}: case {case!r} has a row already, {numbers[case]}; keep one'
            )
        group_of[case], numbers[case] = group, number
    if not group_of:
        raise UserError(f'{path} row {rows[0][0]}: no case follows the header; add a row per case')
    return Groups(column, group_of, path, numbers)


def to_csv(column: str, group_of: Mapping[str, str]) -> str:
    """Content of a file that `read_groups` reads, rows in the order given."""
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([(CASE, column), *group_of.items()])
    return out.getvalue()


def _read_rows(path: pathlib.Path) -> list[tuple[int, list[str]]]:
    """Number and cells of the rows that are not empty; white space around a cell is dropped."""
    try:
        content = path.read_bytes()
        text = content.decode('utf-8-sig')  # spreadsheets put a byte order mark first
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; name a CSV file with one row per case') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); name a CSV file') from error
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b'\n') + 1
        raise UserError(f'{path} row {row}: not UTF-8; save the file as CSV in UTF-8') from error
    rows = []
    reader = csv.reader(io.StringIO(text, newline=''), strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise UserError(f'{path} row {reader.line_num}: {error}; mend the quotes') from error
    return rows


def _check_row(where: str, column: str, cells: Sequence[str]) -> tuple[str, str]:
    """Case and group of a row."""
    if len(cells) != 2:
        raise UserError(
            f'{where} has {len(cells)} columns, not two; separate {CASE} and {column} by one comma '
            'and quote what holds a comma'
        )
    for name, cell in zip((CASE, column), cells, strict=True):
        if not cell:
            raise UserError(f'{where}: the {name} is empty; fill it in or drop the row')
        if not cell.isprintable():
            raise UserError(f'{where}: the {name} {cell!r} holds control characters; remove them')
    return cells[0], cells[1]
