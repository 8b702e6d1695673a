"""A raw data set before preparation: which files make a case, and what its labels are called."""

import dataclasses
import hashlib
import json
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from maxquery_jax.data.findings import Issue
from maxquery_jax.errors import UserError

_MAX_NAME = 200  # bytes; file systems allow 255, and the store adds its own


@dataclasses.dataclass(frozen=True)
class RawCase:
    """Files of one case, as paths relative to the data set's folder.

    Attributes:
        case_id: unique name.
        images: one path per channel.
        label: path, or None for an unlabelled case.
    """

    case_id: str
    images: tuple[str, ...]
    label: str | None


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """What a reader of a folder layout found.

    Attributes:
        name: of the data set.
        source: folder that the cases' paths are relative to.
        channels: names of the image channels.
        cases: sorted by id.
        raw_labels: id in the label files to name; 0 is background.
        roles: label name to role, where the data set states it.
        annotated: names of the labels that were annotated; None for all.
        splits: split name to case ids, where the data set states it.
        test: ids of the data set's own test cases; the others are divided unless `splits` says how.
        is_split_binding: whether a case that must not train is an error if `splits` says it does;
            otherwise it moves to test.
        contains: label of a tumour to that of the organ it lies in.
        left_right: raw id that joins both sides of an organ to the labels of right and left.
        to_taxonomy: label to concept of the taxonomy, None for what is not in it; others go by
            their names.
        masks: name of a mask to raw id in painting order, where labels are folders of masks.
        problems: (case, file, issue) seen while listing the files.
        notes: lines for the user.
    """

    name: str
    source: pathlib.Path
    channels: tuple[str, ...]
    cases: tuple[RawCase, ...]
    raw_labels: Mapping[int, str]
    roles: Mapping[str, str] | None = None
    annotated: tuple[str, ...] | None = None
    splits: Mapping[str, tuple[str, ...]] | None = None
    test: tuple[str, ...] = ()
    is_split_binding: bool = True
    contains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_right: Mapping[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    to_taxonomy: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, int] | None = None
    problems: tuple[tuple[str, str, Issue], ...] = ()
    notes: tuple[str, ...] = ()


def strip_extension(name: str) -> str:
    """A file name without .nii or .nii.gz."""
    for ending in ('.nii.gz', '.nii'):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def leaves_folder(path: str) -> bool:
    """Whether a relative path is absolute or climbs with `..`."""
    parts = pathlib.PurePosixPath(path.replace('\\', '/'))
    return parts.is_absolute() or '..' in parts.parts or '\0' in path or parts.drive != ''


def find_name_problems(dataset: RawDataset) -> list[tuple[str, str, Issue]]:
    """Case names that cannot be file names or clash, and paths that leave the folder."""
    problems = []
    seen: dict[str, str] = {}
    for case in dataset.cases:
        files = [path for path in (*case.images, case.label) if path is not None]
        reason = _name_problem(case.case_id)
        if reason:
            issue = Issue('case_name', 'error', reason, 'rename its files')
            problems.append((case.case_id, files[0], issue))
        key = unicodedata.normalize('NFC', case.case_id).casefold()
        if key in seen:
            value = f'{case.case_id!r} and {seen[key]!r} are one name where case does not count'
            problems.append(
                (case.case_id, files[0], Issue('case_name', 'error', value, 'rename one of them'))
            )
        seen.setdefault(key, case.case_id)
        for path in files:
            if leaves_folder(path):
                issue = Issue('path', 'error', 'leaves the source folder', 'move the file inside')
                problems.append((case.case_id, path, issue))
    return problems


def _name_problem(case_id: str) -> str | None:
    if not case_id or case_id in ('.', '..'):
        return f'{case_id!r} is not a name'
    if any(char in '/\\' or unicodedata.category(char) in ('Cc', 'Cs') for char in case_id):
        return f'{case_id!r} holds a slash or a control character'
    if len(case_id.encode()) > _MAX_NAME:
        return f'{len(case_id.encode())} bytes long, at most {_MAX_NAME} fit'
    return None


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it is absent, not readable, not JSON or not an object.
    """
    try:
        data = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: does not exist; {what}') from None
    except (OSError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read ({error}); {what}') from error
    except ValueError as error:
        raise UserError(f'{path}: is not JSON ({error}); {what}') from error
    if not isinstance(data, dict):
        raise UserError(f'{path}: holds a {type(data).__name__}, not an object; {what}')
    return data


def read_splits(data: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Checks `{'train': [ids], 'val': [...], 'test': [...]}`.

    Raises:
        UserError: another form, or a case in two splits.
    """
    form = "give {'train': [case ids], 'val': [...], 'test': [...]}"
    if not isinstance(data, dict) or not data or set(data) - {'train', 'val', 'test'}:
        raise UserError(f'{where}: not a split; {form}')
    owner: dict[str, str] = {}
    for split, ids in data.items():
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise UserError(f'{where}: {split!r} is not a list of case ids; {form}')
        for case_id in ids:
            if case_id in owner:
                raise UserError(
                    f'{where}: case {case_id!r} is in {owner[case_id]!r} and in {split!r}; '
                    'list it once'
                )
            owner[case_id] = split
    return {split: tuple(data.get(split, ())) for split in ('train', 'val', 'test')}


def hash_file(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def describe_labels(names: Sequence[str], limit: int = 12) -> str:
    """A short list of names for a message."""
    more = f', and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
