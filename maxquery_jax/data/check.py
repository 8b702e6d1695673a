"""Checks a raw data set: every bad file, by name, with what is wrong and what to do.

All files are read once; the statistics that `prepare` needs are taken in the same pass.
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence

from maxquery_jax.data import volumes
from maxquery_jax.data.findings import Issue, validate_allow
from maxquery_jax.data.labels import LabelTable, RoleFlags
from maxquery_jax.data.nifti_header import is_axis_code
from maxquery_jax.data.raw import RawDataset, find_name_problems
from maxquery_jax.data.scan import (
    CaseScan,
    CheckRow,
    ReadOptions,
    ScanTask,
    default_max_bytes,
    scan_case,
)
from maxquery_jax.data.sources import PairOptions, open_source
from maxquery_jax.data.splits import SPLITS, SplitOptions, make_splits
from maxquery_jax.data.workers import map_cases
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.progress import Progress

__all__ = [
    'CheckRow',
    'ReadOptions',
    'Survey',
    'check_dataset',
    'count_errors',
    'format_table',
    'survey_dataset',
    'write_rows',
]


_WORTH_BYTES = 2**27  # of images, beyond which processes save time


@dataclasses.dataclass(frozen=True)
class Survey:
    """A data set after every file was read once.

    Attributes:
        rows: findings, by case.
        scans: case id to scan, for the cases that can be prepared.
        splits: split name to case ids; only cases that can be prepared.
        notes: lines for the user.
    """

    rows: tuple[CheckRow, ...]
    scans: Mapping[str, CaseScan]
    splits: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def check_dataset(
    dataset: str,
    source: str | os.PathLike,
    *,
    pairs: PairOptions | None = None,
    roles: RoleFlags | None = None,
    taxonomy: str | None = None,
    spec: str | os.PathLike | None = None,
    read: ReadOptions | None = None,
    split: SplitOptions | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> list[CheckRow]:
    """Reads and judges every file of a raw data set.

    Args:
        dataset: name of the data set or layout, see `sources.DATASET_NAMES`.
        source: folder of the raw data.
        pairs: patterns of the layout 'pairs'.
        roles: which labels are organ, tumour, ood or ignored.
        taxonomy: 'zept' for the fixed label table of `taxonomy`.
        spec: JSON file with the specification of the data set 'custom'.
        read: how files are judged.
        split: division into train, val and test, for what must not cross it.
        workers: processes; 0 for none, None for as many as help.
        progress: whether to print a progress line.

    Returns:
        One row per finding; empty if all is well.

    Raises:
        UserError: the data set cannot be listed at all.
    """
    raw, table = open_source(
        dataset, source, pairs=pairs, roles=roles, taxonomy=taxonomy, spec=spec
    )
    survey = survey_dataset(raw, table, read=read, split=split, workers=workers, progress=progress)
    return list(survey.rows)


def survey_dataset(
    dataset: RawDataset,
    table: LabelTable,
    *,
    read: ReadOptions | None = None,
    split: SplitOptions | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Survey:
    """Scans every case, divides the cases and checks what only shows across them."""
    workers = choose_workers(dataset) if workers is None else workers
    options = _complete(read or ReadOptions(), dataset, workers)
    tasks = [
        (case.case_id, ScanTask(dataset.source, case, table, options)) for case in dataset.cases
    ]
    line = Progress('check', len(tasks)) if progress else None
    scans = dict(map_cases(scan_case, tasks, workers=workers, progress=line))
    scans = {case_id: scans[case_id] for case_id in sorted(scans)}
    named = [*dataset.problems, *find_name_problems(dataset)]
    rows = [CheckRow.of(case, file, _judge(issue, options)) for case, file, issue in named]
    rows += [row for scan in scans.values() for row in scan.rows]
    if _is_unlabelled(dataset):
        rows = [row for row in rows if row.check != 'missing_label']
    usable = {case_id: scan for case_id, scan in scans.items() if scan.is_usable}
    splits, notes = _divide(dataset, table, usable, split or SplitOptions(), options, rows)
    rows += _find_duplicates(dataset, usable, splits, options)
    dropped = sorted(set(scans) - set(usable))
    if dropped:
        notes.append(f'{len(dropped)} cases cannot be used: {_short(dropped)}')
    return Survey(tuple(rows), usable, splits, (*dataset.notes, *notes))


def choose_workers(dataset: RawDataset) -> int:
    """As many processes as help: starting them costs seconds, a small data set none."""
    total = 0
    for case in dataset.cases:
        for path in case.images:
            with contextlib.suppress(OSError):
                total += volumes.count_bytes(dataset.source / path)
    return min(2, os.cpu_count() or 1) if total > _WORTH_BYTES else 0


def _complete(options: ReadOptions, dataset: RawDataset, workers: int) -> ReadOptions:
    allow = set(validate_allow(options.allow))
    if _is_unlabelled(dataset):
        allow.add('missing_label')
    codes = options.assume_orientation
    if codes is not None and not is_axis_code(codes):
        raise UserError(
            f'--assume_orientation={codes}: give three letters, one of R/L, A/P and S/I '
            'each, such as LPS'
        )
    if options.nan_policy not in ('error', 'fill'):
        raise UserError(f'--nan_policy={options.nan_policy}: use error or fill')
    limit = min(options.max_bytes, default_max_bytes(workers))
    return dataclasses.replace(options, allow=frozenset(allow), max_bytes=limit)


def _is_unlabelled(dataset: RawDataset) -> bool:
    return all(case.label is None for case in dataset.cases)


def _judge(issue: Issue, options: ReadOptions) -> Issue:
    if issue.check in options.allow:
        return dataclasses.replace(
            issue, severity='warning', fix=f'accepted by --allow={issue.check}'
        )
    return issue


def _short(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def _divide(
    dataset: RawDataset,
    table: LabelTable,
    scans: Mapping[str, CaseScan],
    split: SplitOptions,
    options: ReadOptions,
    rows: list[CheckRow],
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Splits; cases with OOD classes or without a label never train."""
    ood_ids = set(table.ids_of('ood'))
    reason = {}
    for case_id, scan in scans.items():
        if scan.raw_counts is None:
            reason[case_id] = 'missing_label'
        elif ood_ids & set(table.store_counts(scan.raw_counts)):
            reason[case_id] = 'ood_in_train'
    stated = None if split.folds is not None else dataset.splits
    given = split.given if split.given is not None else stated
    if given is None:
        test = (dataset.splits or {}).get('test') or dataset.test
        return make_splits(list(scans), reason, split, test=test)
    listed = {case_id for name in SPLITS for case_id in given.get(name, ())}
    unknown = sorted(listed - {case.case_id for case in dataset.cases})
    if unknown:
        raise UserError(f'splits name {_short(unknown)}, which the data set does not hold')
    notes = []
    may_move = split.given is None and not dataset.is_split_binding
    left = sorted(set(scans) - listed)
    if left:
        notes.append(f'{len(left)} cases are in no split and are left out: {_short(left)}')
    splits = {name: [i for i in given.get(name, ()) if i in scans] for name in SPLITS}
    files = {case.case_id: case.label or '' for case in dataset.cases}
    for name in ('train', 'val'):
        for case_id in [i for i in splits[name] if i in reason]:
            issue = Issue(reason[case_id], 'error', f'listed for {name}', 'move it to test')
            if issue.check in options.allow or may_move:
                issue = dataclasses.replace(issue, severity='warning', fix='moved to test')
            rows.append(CheckRow.of(case_id, files[case_id], issue))
            splits[name].remove(case_id)
            splits['test'].append(case_id)
    return {name: tuple(sorted(ids)) for name, ids in splits.items()}, notes


def _find_duplicates(
    dataset: RawDataset,
    scans: Mapping[str, CaseScan],
    splits: Mapping[str, Sequence[str]],
    options: ReadOptions,
) -> list[CheckRow]:
    """Equal voxels in two splits are a leak; within one they only weigh double."""
    owner = {case_id: name for name, ids in splits.items() for case_id in ids}
    images = {case.case_id: case.images[0] for case in dataset.cases}
    groups = collections.defaultdict(list)
    for case_id, scan in scans.items():
        groups[scan.voxel_hash].append(case_id)
    rows = []
    for first, *others in groups.values():
        for other in others:
            places = [owner.get(case_id, 'none') for case_id in (first, other)]
            value = f'same voxels as case {first} ({places[1]} and {places[0]})'
            issue = Issue('duplicate', 'warning', value, 'keep one of them')
            if places[0] != places[1] and 'none' not in places:
                fix = 'keep one of them, or put both into one split'
                issue = _judge(Issue('duplicate', 'error', value, fix), options)
            rows.append(CheckRow.of(other, images[other], issue))
    return rows


def count_errors(rows: Sequence[CheckRow]) -> int:
    """Rows that forbid preparation."""
    return sum(row.severity == 'error' for row in rows)


def format_table(rows: Sequence[CheckRow]) -> str:
    """Aligned text, errors first."""
    if not rows:
        return ''
    ordered = sorted(rows, key=lambda row: row.severity)
    cells = [('severity', 'case', 'file', 'check', 'found -> what to do')]
    cells += [
        (row.severity, row.case, row.file, row.check, f'{row.value} -> {row.fix}')
        for row in ordered
    ]
    cells = [tuple(cell if cell.isprintable() else ascii(cell) for cell in line) for line in cells]
    widths = [min(48, max(len(line[column]) for line in cells)) for column in range(4)]
    return '\n'.join(
        '  '.join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]
        )
        for line in cells
    )


def write_rows(path: str | os.PathLike, rows: Sequence[CheckRow]) -> None:
    """Writes the rows as a JSON list of objects; the file appears complete or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_json(path, [dataclasses.asdict(row) for row in rows])
