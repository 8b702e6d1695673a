"""Registers a data set with several phases per case; writes an nnU-Net v2 raw folder.

    OUTPUT/imagesTr/CASE_0000.nii.gz ...   every phase, int16 HU, on the grid of the reference
    OUTPUT/imagesTs/...                    the same of cases without a label
    OUTPUT/labelsTr/CASE.nii.gz            the label, unchanged
    OUTPUT/transforms/CASE_0001.tfm        a rigid transform (ITK text), or .nii.gz: a field
    OUTPUT/records/CASE.json               what was done; a case with one is finished
    OUTPUT/settings.json                   of the registration
    OUTPUT/registration.json               settings, and quality of every case and phase
    OUTPUT/dataset.json                    written last: the folder is complete

The same call continues after an interruption.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maxquery_jax.data.check import choose_workers, count_errors, format_table, write_rows
from maxquery_jax.data.findings import validate_allow
from maxquery_jax.data.nifti_header import is_axis_code
from maxquery_jax.data.raw import RawDataset, describe_labels, hash_file
from maxquery_jax.data.registration.case import CaseTask, register_case
from maxquery_jax.data.registration.command import hash_program
from maxquery_jax.data.registration.grids import simpleitk
from maxquery_jax.data.registration.listing import (
    PhaseCase,
    apply_policy,
    find_reference,
    list_cases,
)
from maxquery_jax.data.registration.options import Limits, RegisterOptions, fill
from maxquery_jax.data.registration.report import format_quality, judge
from maxquery_jax.data.scan import CheckRow, ReadOptions, default_max_bytes
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.volumes import hash_input
from maxquery_jax.data.workers import map_cases
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json, write_json
from maxquery_jax.progress import Progress

RULES_VERSION = 1  # raise when the same input would be written as other voxels
_FOLDERS = ('imagesTr', 'imagesTs', 'labelsTr', 'transforms', 'records')


def register_dataset(
    raw: RawDataset,
    output: str | os.PathLike,
    reference: str,
    *,
    options: RegisterOptions | None = None,
    limits: Limits | None = None,
    pairs: PairOptions | None = None,
    read: ReadOptions | None = None,
    is_strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    json_path: str | os.PathLike | None = None,
    progress: bool = False,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Brings the phases of every case onto the grid of the reference phase.

    Args:
        raw: the data set; its channels are the phases.
        output: folder to write.
        reference: name or number of the phase that was annotated.
        options: method and policy.
        limits: what deserves a warning.
        pairs: patterns the data set was listed by, if any.
        read: how files are judged.
        is_strict: whether warnings about registrations are errors.
        overwrite: replace a result that was made with other settings.
        workers: processes; 0 for none, None for as many as help.
        json_path: where to write the findings as JSON.
        progress: whether to print a progress line.
        log: takes the lines for the user.

    Returns:
        The records of all cases, by case.

    Raises:
        UserError: a file is missing or damaged (all are listed), or a registration breaks a limit
            and `is_strict`.
    """
    simpleitk()
    output = pathlib.Path(output)
    options, limits = options or RegisterOptions(), limits or Limits()
    index = find_reference(raw.channels, reference)
    workers = choose_workers(raw) if workers is None else workers
    read = _check_reading(read or ReadOptions(), workers)
    listed, found = list_cases(raw, pairs)
    cases, gaps = apply_policy(listed, raw.channels, index, options.missing)
    rows = [*found, *gaps, *_missing_transforms(cases, raw.channels, index, options)]
    _stop_at_errors(rows, raw, json_path, log, read)
    settings = _settings(raw, index, options, read)
    _claim(output, settings, overwrite)
    tasks = [_task(case, raw, index, output, options, read, settings) for case in cases]
    records, failures = _run(tasks, workers, progress, log)
    rows += failures + judge(records, limits, is_strict=is_strict, allow=read.allow)
    _clean(output, {task.case_id for task in tasks}, records)
    log(format_quality(records))
    if not failures:
        _write_summary(output, raw, settings, records, [c.case_id for c in listed])
    _stop_at_errors(rows, raw, json_path, log, read, is_done=not failures)
    write_json(output / 'dataset.json', _describe(raw, index, options, records, cases))
    _say_result(raw, output, cases, index, log)
    return records


def _say_result(
    raw: RawDataset,
    output: pathlib.Path,
    cases: Sequence[PhaseCase],
    reference: int,
    log: Callable[[str], None],
) -> None:
    unlabelled = sum(case.label is None for case in cases)
    if unlabelled:
        log(f'note: {unlabelled} cases without a label are in imagesTs; prepare leaves them out')
    if raw.contains or raw.left_right:
        log(
            'note: dataset.json cannot say which label lies in which or joins both sides; '
            f'{raw.name} says so'
        )
    name = raw.channels[reference]
    log(f'{output}: {len(cases)} cases, {len(raw.channels)} phases on the grid of {name!r}')


def _check_reading(read: ReadOptions, workers: int) -> ReadOptions:
    validate_allow(read.allow)
    codes = read.assume_orientation
    if codes is not None and not is_axis_code(codes):
        raise UserError(
            f'--assume_orientation={codes}: give three letters, one of R/L, A/P and S/I each, such '
            'as LPS'
        )
    return dataclasses.replace(
        read, max_bytes=min(read.max_bytes, default_max_bytes(max(1, workers)))
    )


def _missing_transforms(
    cases: Sequence[PhaseCase], phases: Sequence[str], reference: int, options: RegisterOptions
) -> list[CheckRow]:
    rows = []
    for case in cases:
        for channel, path in enumerate(case.images):
            if path is None or channel == reference:
                continue
            for file in _transform_files(options, case.case_id, phases[channel], channel):
                if not file.is_file():
                    value = f'no transform for phase {phases[channel]!r}'
                    rows.append(
                        CheckRow(
                            case.case_id, str(file), 'missing_file', 'error', value,
                            'write it, or correct --transforms',
                        )
                    )  # fmt: skip
    return rows


def _transform_files(
    options: RegisterOptions, case_id: str, phase: str, channel: int
) -> list[pathlib.Path]:
    values = {'case': case_id, 'phase': phase, 'channel': f'{channel:04d}'}
    return [pathlib.Path(fill(pattern, values)) for pattern in options.transforms]


def _stop_at_errors(
    rows: Sequence[CheckRow],
    raw: RawDataset,
    json_path: str | os.PathLike | None,
    log: Callable[[str], None],
    read: ReadOptions,
    is_done: bool | None = None,
) -> None:
    """Prints and writes the findings when there are errors or when all is done."""
    errors = count_errors(rows)
    if json_path and (errors or is_done is not None):
        write_rows(json_path, rows)
    if rows and (errors or is_done is not None):
        log(format_table(rows))
    if not errors:
        return
    bad = len({row.case for row in rows if row.severity == 'error'})
    fix = {
        None: 'mend them, or choose --missing=drop or copy for missing phases; nothing was written',
        False: 'finished cases are kept: mend the others and run again',
        True: 'look at them, then accept a kind with --allow=CHECK and run again',
    }[is_done]
    raise UserError(f'{raw.source}: {errors} errors in {bad} cases, listed above; {fix}')


def _settings(
    raw: RawDataset, reference: int, options: RegisterOptions, read: ReadOptions
) -> dict[str, Any]:
    """Everything besides the files that decides what is written."""
    settings = {
        'rules': RULES_VERSION,
        'phases': raw.channels,
        'reference': raw.channels[reference],
        'method': options.method,
        'missing': options.missing,
        'transforms': options.transforms,
        'command': options.command,
        'program': hash_program(options.command) if options.command else None,
        'nan_policy': read.nan_policy,
        'assume_orientation': read.assume_orientation,
        'series': read.series,
        'allow': sorted(name for name in read.allow if not name.startswith('registration_')),
    }
    return json.loads(json.dumps(settings))


def _claim(output: pathlib.Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Makes sure that the folder is empty or ours, and marks it as unfinished."""
    marker = output / 'settings.json'
    if marker.is_file():
        known = read_json(marker, fix='choose another --output')
        changed = sorted(
            name for name in {*known, *settings} if known.get(name) != settings.get(name)
        )
        if changed and not overwrite:
            raise UserError(
                f'{output}: was registered with other settings ({describe_labels(changed)}); '
                'choose another --output or replace it with --overwrite'
            )
        if changed:
            for folder in _FOLDERS:
                for path in (output / folder).glob('*'):
                    path.unlink()
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f'{output}: holds something else; choose a new folder for --output')
    for name in ('dataset.json', 'registration.json'):
        (output / name).unlink(missing_ok=True)
    write_json(marker, settings)


def _task(
    case: PhaseCase,
    raw: RawDataset,
    reference: int,
    output: pathlib.Path,
    options: RegisterOptions,
    read: ReadOptions,
    settings: Mapping[str, Any],
) -> CaseTask:
    decisive: dict[str, Any] = {'settings': settings, 'masks': raw.masks and dict(raw.masks)}
    decisive['files'] = [
        path and _hash(raw.source / path, read.series) for path in (*case.images, case.label)
    ]
    decisive['transforms'] = [
        _hash(file)
        for channel, path in enumerate(case.images)
        if path is not None and channel != reference
        for file in _transform_files(options, case.case_id, raw.channels[channel], channel)
    ]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    return CaseTask(
        case.case_id,
        case.images,
        case.label,
        raw.channels,
        reference,
        raw.source,
        output,
        raw.masks,
        read,
        options,
        key,
    )


def _hash(path: pathlib.Path, series: str | None = None) -> str:
    """Of the bytes; empty for what cannot be read, which the case itself reports."""
    try:
        return hash_input(path, series=series)
    except (OSError, UserError):
        return ''


def _run(
    tasks: Sequence[CaseTask], workers: int, progress: bool, log: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[CheckRow]]:
    records = {task.case_id: _finished(task) for task in tasks}
    pending = [(task.case_id, task) for task in tasks if records[task.case_id] is None]
    if len(pending) < len(tasks):
        log(f'{len(tasks) - len(pending)} of {len(tasks)} cases are registered already')
    line = Progress('register', len(pending)) if progress and pending else None
    failures = []
    for case_id, result in map_cases(register_case, pending, workers=workers, progress=line):
        if 'error' in result:
            failures.append(CheckRow(case_id, **result['error']))
        else:
            records[case_id] = result
    failures.sort(key=lambda row: row.case)
    return [record for record in records.values() if record is not None], failures


def _finished(task: CaseTask) -> dict[str, Any] | None:
    """The record of a case that is done: the same input, and its files as they were written."""
    try:
        record = read_json(task.record_path, fix='')
        is_done = record['key'] == task.key and all(
            hash_file(task.output / name) == digest for name, digest in record['outputs'].items()
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None
    return record if is_done else None


def _clean(output: pathlib.Path, current: set[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Deletes what earlier runs wrote and nothing refers to any more."""
    wanted = {output / name for record in records for name in record['outputs']}
    wanted |= {output / 'records' / f'{case_id}.json' for case_id in current}
    for folder in _FOLDERS:
        for path in (output / folder).glob('*'):
            if path not in wanted:
                path.unlink()


def _write_summary(
    output: pathlib.Path,
    raw: RawDataset,
    settings: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    listed: Sequence[str],
) -> None:
    summary = {
        'dataset': raw.name,
        'source': str(raw.source),
        'settings': settings,
        'software': {'SimpleITK': simpleitk().Version.VersionString()},
        'copied': _copied(records),
        'dropped': sorted(set(listed) - {record['case'] for record in records}),
        'cases': {record['case']: record['phases'] for record in records},
    }
    write_json(output / 'registration.json', summary)


def _copied(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    copied = {
        record['case']: [p['phase'] for p in record['phases'] if p['role'] == 'copied']
        for record in records
    }
    return {case_id: phases for case_id, phases in copied.items() if phases}


def _describe(
    raw: RawDataset,
    reference: int,
    options: RegisterOptions,
    records: Sequence[Mapping[str, Any]],
    cases: Sequence[PhaseCase],
) -> dict[str, Any]:
    """Content of dataset.json: nnU-Net v2, and our key for what it cannot say."""
    labelled = {case.case_id for case in cases if case.label is not None}
    labels = {'background': 0, **{name: i for i, name in sorted(raw.raw_labels.items()) if i}}
    extra: dict[str, Any] = {
        'roles': dict(raw.roles or {}),
        'registration': {
            'reference': raw.channels[reference],
            'method': options.method,
            'copied': _copied(records),
        },
    }
    if raw.annotated is not None:
        extra['annotated'] = list(raw.annotated)
    if raw.splits is not None:
        extra['splits'] = {
            name: [case_id for case_id in ids if case_id in labelled]
            for name, ids in raw.splits.items()
        }
    return {
        'name': raw.name,
        'channel_names': {str(i): name for i, name in enumerate(raw.channels)},
        'labels': labels,
        'numTraining': len(labelled),
        'file_ending': '.nii.gz',
        'maxquery_jax': extra,
    }
