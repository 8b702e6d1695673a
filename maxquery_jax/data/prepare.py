"""Raw scans to a patch store: check, orient, resample, write.

Every file is read twice: once to check it and to collect the statistics on which spacing, splits
and intensity depend, once to be written. Images are stored as HU; they are normalised on the
accelerator with the manifest's `intensity`. A run that was interrupted continues: a case that was
written from the same bytes with the same settings is kept.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.data import volumes
from maxquery_jax.data.check import (
    Survey,
    choose_workers,
    count_errors,
    format_table,
    survey_dataset,
    write_rows,
)
from maxquery_jax.data.convert import RULES_VERSION, ConvertTask, convert_case, is_converted
from maxquery_jax.data.findings import CHECKS, FileError
from maxquery_jax.data.labels import LabelTable, RoleFlags
from maxquery_jax.data.preprocess import (
    Histogram,
    intensity_of,
    intensity_of_window,
    target_spacing,
)
from maxquery_jax.data.raw import RawCase, RawDataset
from maxquery_jax.data.scan import CaseScan, ReadOptions
from maxquery_jax.data.sources import PairOptions, open_source, write_phantom
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import Manifest
from maxquery_jax.data.store_format import kvstore_spec, local_folder, open_kvstore, read_key
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.data.workers import map_cases
from maxquery_jax.errors import UserError
from maxquery_jax.progress import Progress

_NEW = ('folds', 'fold')  # settings that the first release did not have


@dataclasses.dataclass(frozen=True)
class _StoreOptions:
    spacing_mm: tuple[float, ...] | None
    window_hu: tuple[float, ...] | None
    label_method: str

    def __post_init__(self):
        spacing, window = self.spacing_mm, self.window_hu
        if spacing is not None and (len(spacing) != 3 or not all(0 < s < 100 for s in spacing)):
            raise UserError(f'--spacing={spacing}: give three numbers in mm, in the order z,y,x')
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise UserError(f'--window={window}: give lower,upper in HU')
        if self.label_method not in ('linear', 'nearest'):
            raise UserError(f'--label_method={self.label_method}: use linear or nearest')


def prepare(
    dataset: str,
    source: str | os.PathLike,
    store: str | os.PathLike,
    *,
    pairs: PairOptions | None = None,
    roles: RoleFlags | None = None,
    taxonomy: str | None = None,
    spec: str | os.PathLike | None = None,
    phantom: Mapping[str, Any] | None = None,
    spacing_mm: Sequence[float] | None = None,
    window_hu: Sequence[float] | None = None,
    label_method: str = 'linear',
    read: ReadOptions | None = None,
    split: SplitOptions | None = None,
    check: bool = True,
    workers: int | None = None,
    overwrite: bool = False,
    json_path: str | os.PathLike | None = None,
    progress: bool = False,
    log: Callable[[str], None] = print,
) -> Manifest:
    """Writes a patch store from a raw data set.

    Args:
        dataset: name of the data set or layout, see `sources.DATASET_NAMES`.
        source: folder of the raw data.
        store: folder or URL (`gs://...`) of the store.
        pairs: patterns of the layout 'pairs'.
        roles: which labels are organ, tumour, ood or ignored.
        taxonomy: 'zept' for the fixed label table of `taxonomy`.
        spec: JSON file with the specification of the data set 'custom'.
        phantom: fields of `phantom.CohortSpec`, for a cohort that is yet to be written.
        spacing_mm: (z, y, x); None for nnU-Net's choice from the training cases.
        window_hu: (lower, upper) of a fixed intensity window; None for the 0.5 and 99.5
            percentiles, mean and standard deviation of the training foreground.
        label_method: 'linear' or 'nearest', see `preprocess.resample_label`.
        read: how files are judged; `allow` names errors to accept.
        split: division into train, val and test.
        check: refuse a data set with errors; False uses what can be used.
        workers: processes; 0 for none, None for as many as help.
        overwrite: replace a finished store.
        json_path: where to write the findings as JSON.
        progress: whether to print a progress line.
        log: takes the lines for the user.

    Returns:
        The manifest of the finished store.

    Raises:
        UserError: bad data (after the table of findings was logged), a store that exists, or a
            worker that died.
    """
    read, split, store = read or ReadOptions(), split or SplitOptions(), str(store)
    options = _StoreOptions(_tuple(spacing_mm), _tuple(window_hu), label_method)
    if not check:
        read = dataclasses.replace(read, allow=frozenset(CHECKS))
    if dataset == 'phantom':
        write_phantom(source, phantom or {}, workers=workers, progress=progress)
    elif phantom:
        raise UserError(f'--phantom belongs to --dataset=phantom, not {dataset}')
    raw, table = open_source(
        dataset, source, pairs=pairs, roles=roles, taxonomy=taxonomy, spec=spec
    )
    workers = choose_workers(raw) if workers is None else workers
    settings = _settings(raw, table, read, split, options)
    existing = _existing_manifest(store)
    if existing is not None and not overwrite:
        return _keep(existing, settings, raw, store, log)
    if existing is None:
        StoreWriter(store)  # refuses a folder that holds something else, before any work
    survey = survey_dataset(raw, table, read=read, split=split, workers=workers, progress=progress)
    _report(survey, raw, json_path, log)
    if existing is not None:
        _delete(store)
    spacing = _choose_spacing(survey, options)
    chosen = {case_id for ids in survey.splits.values() for case_id in ids}
    cases = [case for case in raw.cases if case.case_id in chosen]
    how = read.assume_orientation, spacing, label_method, read.series
    shared = store, raw.source, table, *how
    scans = [survey.scans[case.case_id] for case in cases]
    tasks = [
        ConvertTask(case, scan.sha256, *shared, midline=scan.midline)
        for case, scan in zip(cases, scans, strict=True)
    ]
    writer = StoreWriter(store)
    _write(writer, tasks, workers, progress, log)
    records = {case.case_id: writer.attributes(case.case_id) or {} for case in cases}
    manifest = _manifest(raw, table, survey, options, spacing, settings, cases, records)
    writer.finish(manifest)
    counts = ', '.join(f'{name} {len(ids)}' for name, ids in manifest.splits.items())
    edges = ' x '.join(f'{edge:g}' for edge in spacing)
    log(f'{store}: {len(cases)} cases ({counts}), voxel {edges} mm (z, y, x)')
    return manifest


def _write(
    writer: StoreWriter,
    tasks: Sequence[ConvertTask],
    workers: int,
    progress: bool,
    log: Callable[[str], None],
) -> None:
    pending = [(task.case.case_id, task) for task in tasks if not is_converted(writer, task)]
    if len(pending) < len(tasks):
        log(f'{len(tasks) - len(pending)} of {len(tasks)} cases are written already')
    line = Progress('write', len(pending)) if progress and pending else None
    for _ in map_cases(convert_case, pending, workers=workers, progress=line):
        pass


def _tuple(numbers: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if numbers is None else tuple(float(number) for number in numbers)


def _settings(
    dataset: RawDataset,
    table: LabelTable,
    read: ReadOptions,
    split: SplitOptions,
    options: _StoreOptions,
) -> dict[str, Any]:
    """Everything besides the files' bytes that decides what a store holds."""
    settings = {
        'rules': RULES_VERSION,
        'cases': [[case.case_id, *case.images, case.label] for case in dataset.cases],
        'channels': dataset.channels,
        'labels': table.labels,
        'label_map': {str(raw): store_id for raw, store_id in table.label_map.items()},
        'annotated': dataset.annotated,
        'split': _known(split),
        'dataset_splits': dataset.splits,
        'dataset_test': dataset.test or None,
        'left_right': [dataclasses.astuple(rule) for rule in table.left_right] or None,
        'contains': table.contains or None,
        'masks': None if table.masks is None else list(table.masks.items()),
        'store': dataclasses.asdict(options),
        'allow': sorted(read.allow),
        'nan_policy': read.nan_policy,
        'assume_orientation': read.assume_orientation,
        'series': read.series,
    }
    return json.loads(json.dumps(settings))  # tuples to lists, as a manifest gives them back


def _known(split: SplitOptions) -> dict[str, Any]:
    items = dataclasses.asdict(split).items()
    return {name: value for name, value in items if name not in _NEW or value is not None}


def _existing_manifest(store: str) -> Manifest | None:
    content = read_key(open_kvstore(kvstore_spec(store), store), 'manifest.json', store)
    return None if content is None else Manifest.from_json(content, store)


def _keep(
    existing: Manifest,
    settings: dict[str, Any],
    dataset: RawDataset,
    store: str,
    log: Callable[[str], None],
) -> Manifest:
    """The finished store, if preparing again would write the same."""
    changed = [
        name
        for name, value in settings.items()
        if existing.fingerprint.get('settings', {}).get(name) != value
    ]
    if changed:
        raise UserError(
            f'store {store}: exists and was prepared with other settings ({", ".join(changed)}); '
            'choose another --store or replace it with --overwrite'
        )
    series = settings['series']
    for case_id, case in existing.cases.items():
        for path, digest in case['sha256'].items():
            try:
                is_same = volumes.hash_input(dataset.source / path, series=series) == digest
            except (OSError, FileError):
                is_same = False
            if not is_same:
                raise UserError(
                    f'store {store}: exists, but {path} of case {case_id!r} has changed since; '
                    'replace the store with --overwrite'
                )
    log(f'{store}: up to date ({len(existing.cases)} cases)')
    return existing


def _delete(store: str) -> None:
    spec = kvstore_spec(store)
    kvstore = open_kvstore(spec, store)
    kvstore.write('manifest.json', None).result()  # first: from now on it does not open
    folder = local_folder(spec)
    if folder is None:
        kvstore.delete_range(kvstore.KeyRange('cases/', 'cases0')).result()
    else:
        shutil.rmtree(folder / 'cases', ignore_errors=True)


def _report(
    survey: Survey,
    dataset: RawDataset,
    json_path: str | os.PathLike | None,
    log: Callable[[str], None],
) -> None:
    if json_path:
        write_rows(json_path, survey.rows)
    if survey.rows:
        log(format_table(survey.rows))
    for note in survey.notes:
        log(f'note: {note}')
    errors = count_errors(survey.rows)
    if errors:
        bad = {row.case for row in survey.rows if row.severity == 'error'}
        raise UserError(
            f'{dataset.source}: {errors} errors in {len(bad)} of {len(dataset.cases)} cases, '
            'listed above; mend them, or accept a kind with --allow=CHECK'
        )
    if not any(survey.splits.values()):
        raise UserError(f'{dataset.source}: no case can be used')


def _reference(survey: Survey) -> list[CaseScan]:
    """Scans that may decide spacing and intensity: training, or all where none trains."""
    ids = survey.splits['train'] or [i for ids in survey.splits.values() for i in ids]
    return [survey.scans[case_id] for case_id in ids]


def _choose_spacing(survey: Survey, options: _StoreOptions) -> tuple[float, float, float]:
    if options.spacing_mm is not None:
        dz, dy, dx = options.spacing_mm
        return dz, dy, dx
    scans = _reference(survey)
    return target_spacing([scan.spacing_mm for scan in scans], [scan.shape for scan in scans])


def _manifest(
    dataset: RawDataset,
    table: LabelTable,
    survey: Survey,
    options: _StoreOptions,
    spacing_mm: tuple[float, float, float],
    settings: dict[str, Any],
    cases: Sequence[RawCase],
    records: dict[str, dict[str, Any]],
) -> Manifest:
    statistics, intensity = _intensity(survey, options, len(dataset.channels))
    return Manifest(
        dataset=dataset.name,
        spacing_mm=spacing_mm,
        channels=dataset.channels,
        intensity=intensity,
        labels=table.labels,
        label_map={
            str(raw): store_id
            for raw, store_id in table.label_map.items()
            if raw not in table.joint_ids
        },
        annotated=_annotated(dataset, table),
        splits=survey.splits,
        cases={
            case.case_id: {
                'shape': records[case.case_id]['shape'],
                'native': survey.scans[case.case_id].native,
                'source': {'image': list(case.images), 'label': case.label},
                'sha256': dict(survey.scans[case.case_id].sha256),
                'voxels': records[case.case_id]['voxels'],
                **_midline(survey.scans[case.case_id]),
            }
            for case in cases
        },
        source=str(dataset.source),
        fingerprint={'settings': settings, **statistics},
        contains=table.contains,
        left_right=tuple(
            {'raw': raw, **dataclasses.asdict(rule), 'inside': list(rule.inside)}
            for raw, rule in zip(table.joint_ids, table.left_right, strict=True)
        ),
        masks=table.masks,
    )


def _annotated(dataset: RawDataset, table: LabelTable) -> tuple[str, ...]:
    """Classes all of whose labels are annotated."""
    stated = set(table.ids) if dataset.annotated is None else set(dataset.annotated)
    partial = {store_id for name, store_id in table.ids.items() if name not in stated}
    whole = {table.ids[name] for name in stated & set(table.ids)} - partial - {0}
    return tuple(sorted(str(table.labels[store_id]['name']) for store_id in whole))


def _midline(scan: CaseScan) -> dict[str, float]:
    return {} if scan.midline is None else {'midline': scan.midline}


def _intensity(
    survey: Survey, options: _StoreOptions, num_channels: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics of the training foreground, and the normalisation that follows from them."""
    scans = _reference(survey)
    foreground = [_sum([scan.foreground[c] for scan in scans]) for c in range(num_channels)]
    everything = [_sum([scan.everything[c] for scan in scans]) for c in range(num_channels)]
    has_foreground = all(histogram.total for histogram in foreground)
    histograms = foreground if has_foreground else everything  # unlabelled data
    statistics = {
        'intensity_from': 'foreground' if has_foreground else 'all voxels',
        'intensity_hu': [
            {
                'mean': histogram.mean(),
                'std': histogram.std(),
                **{f'p{q:g}': histogram.percentile(q) for q in (0, 0.5, 50, 99.5, 100)},
                'voxels': histogram.total,
            }
            for histogram in histograms
        ],
        'median_spacing_mm': np.median([scan.spacing_mm for scan in scans], axis=0).tolist(),
        'median_shape': np.median([scan.shape for scan in scans], axis=0).tolist(),
    }
    if options.window_hu is not None:
        lower, upper = options.window_hu
        return statistics, intensity_of_window(lower, upper, num_channels)
    return statistics, intensity_of(histograms)


def _sum(histograms: Sequence[Histogram]) -> Histogram:
    return sum(histograms, Histogram())
