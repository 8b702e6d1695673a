"""What a study file says, checked: variants, seeds, folds and the tables to fill."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.study.columns import Column, parse_column

SPLITS = ('test', 'val')
PREDICT_OPTIONS = ('boxes', 'mirror', 'postprocess', 'step_size')


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained, apart from the seed.

    Attributes:
        name: names the run directories; studies in one workdir share runs of one name.
        words: variants of the experiment, after those of the study.
        share: variant whose first stages are taken over instead of being trained again; '' none.
        overrides: dotted field of the config to value.
        predict: options of `inference.predict.predict`, some of `PREDICT_OPTIONS`. A variant that
            differs from the one it shares from in these alone trains nothing.
    """

    name: str
    words: str = ''
    share: str = ''
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predict: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """A method of a table.

    Attributes:
        title: first cell.
        variant: whose runs it reads.
        score: anomaly score; '' for rows of tables that show none.
    """

    title: str
    variant: str
    score: str = ''


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A table to fill.

    Attributes:
        name: of its files.
        title: heading.
        rows: methods, in order.
        columns: see `columns.parse_column`.
        pairs: titles (first, second) of rows that are compared.
        splits: whose cases count; several are pooled. `val` of a cross-validation is every case
            once, predicted by the run that was not trained on it.
        reference: source ("paper, liver") to row title to {column: value}, as printed there.
        note: what a reader must know about the reference.
    """

    name: str
    title: str
    rows: tuple[RowSpec, ...]
    columns: tuple[Column, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    splits: tuple[str, ...] = ('test',)
    reference: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: of the study.
        title: heading.
        base: words of the experiment that all variants start with.
        seeds: one training of every variant each.
        folds: of a cross-validation, each a training of every variant and seed; 0 for none.
        variants: by name.
        tables: to fill.
    """

    name: str
    title: str
    base: str
    seeds: tuple[int, ...]
    variants: Mapping[str, Variant]
    tables: tuple[TableSpec, ...]
    folds: int = 0

    def splits_of(self, variant: str) -> tuple[str, ...]:
        """Splits that some table reads of a variant."""
        wanted = {s for t in self.tables for r in t.rows if r.variant == variant for s in t.splits}
        return tuple(split for split in SPLITS if split in wanted)

    def scores_of(self, variant: str) -> tuple[str, ...]:
        """Scores that some table shows of a variant."""
        rows = [row for table in self.tables for row in table.rows if row.variant == variant]
        return tuple(dict.fromkeys(row.score for row in rows if row.score))

    def shows(self, variant: str, metric: str) -> bool:
        """Whether some table has a column of this metric and a row of this variant."""
        return any(
            metric in {column.metric for column in table.columns}
            for table in self.tables
            for row in table.rows
            if row.variant == variant
        )


def parse_study(data: Mapping[str, Any]) -> Study:
    """Checks what `get_study()` of a study file returned.

    Args:
        data: fields of `Study` as plain values: variants and rows are mappings.

    Raises:
        UserError: naming the field that is wrong.
    """
    where = f'study {data.get("name", "")!r}'
    _require_fields(data, Study, where)
    variants = {}
    for name, fields in data['variants'].items():
        _require_fields({'name': name, **fields}, Variant, f'{where}, variant {name!r}')
        if not name or not all(char.isalnum() or char in '_.-' for char in name):
            raise UserError(f'{where}: variant {name!r} cannot name a folder; use a-z, 0-9 and _')
        for option in fields.get('predict', {}):
            if option not in PREDICT_OPTIONS:
                raise UserError(
                    f'{where}: variant {name!r} predicts with {option!r}: choose from '
                    f'{", ".join(PREDICT_OPTIONS)}'
                )
        variants[name] = Variant(name, **fields)
    for name, variant in variants.items():
        if variant.share and variant.share not in variants:
            raise UserError(f'{where}: {name} shares from {variant.share!r}, which is not there')
    seeds, folds = tuple(data['seeds']), data.get('folds', 0)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f'{where}: seeds {seeds} must be different, and at least one')
    if folds < 0 or folds == 1:
        raise UserError(f'{where}: folds must be 0 or at least 2, got {folds}')
    study = Study(
        name=data['name'],
        title=data['title'],
        base=data['base'],
        seeds=seeds,
        variants=variants,
        tables=tuple(_parse_table(table, variants, where) for table in data['tables']),
        folds=folds,
    )
    names = [table.name for table in study.tables]
    if not names or len(set(names)) < len(names):
        raise UserError(f'{where}: tables {names} must have different names, and be at least one')
    shared = {variant.share for variant in variants.values()}
    unused = [name for name in variants if name not in shared and not study.splits_of(name)]
    if unused:
        raise UserError(f'{where}: no table shows variant {unused[0]!r}; add a row or drop it')
    return study


def _parse_table(data: Mapping[str, Any], variants: Mapping[str, Variant], where: str) -> TableSpec:
    where = f'{where}, table {data.get("name", "")!r}'
    _require_fields(data, TableSpec, where)
    rows = []
    for fields in data['rows']:
        _require_fields(fields, RowSpec, f'{where}, row {fields.get("title", "")!r}')
        row = RowSpec(**fields)
        if row.variant not in variants:
            raise UserError(f'{where}: row {row.title!r} reads {row.variant!r}, which is not there')
        rows.append(row)
    columns = tuple(parse_column(name, where) for name in data['columns'])
    titles = [row.title for row in rows]
    if not titles or len(set(titles)) < len(titles):
        raise UserError(f'{where}: rows must have different titles, and be at least one')
    for row in rows:
        if not row.score and any(column.needs_score for column in columns):
            raise UserError(f'{where}: row {row.title!r} names no score, its columns need one')
    pairs = tuple((first, second) for first, second in data.get('pairs', ()))
    for title in (title for pair in pairs for title in pair):
        if title not in titles:
            raise UserError(f'{where}: pairs name {title!r}, which is no row')
    splits = tuple(data.get('splits', ('test',)))
    if not splits or set(splits) - set(SPLITS):
        raise UserError(f'{where}: splits {splits} must be some of {", ".join(SPLITS)}')
    reference = data.get('reference', {})
    for source, numbers in reference.items():
        for title, cells in numbers.items():
            if not all(isinstance(v, int | float) and math.isfinite(v) for v in cells.values()):
                raise UserError(f'{where}: reference {source!r} of {title!r} must hold numbers')
    return TableSpec(
        name=data['name'],
        title=data['title'],
        rows=tuple(rows),
        columns=columns,
        pairs=pairs,
        splits=splits,
        reference=reference,
        note=data.get('note', ''),
    )


def _require_fields(data: Mapping[str, Any], kind: type, where: str) -> None:
    fields = dataclasses.fields(kind)
    known = [field.name for field in fields]
    for name in data:
        if name not in known:
            raise UserError(f'{where} has no field {name!r}: choose from {", ".join(known)}')
    for field in fields:
        is_optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if not is_optional and field.name not in data:
            raise UserError(f'{where} lacks the field {field.name!r}')
