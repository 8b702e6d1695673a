"""Finds the files of a prediction folder and the truth that belongs to them."""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from maxquery_jax.data import truth
from maxquery_jax.data.masks import find_masks
from maxquery_jax.data.store_manifest import FORMAT as STORE_FORMAT
from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.report.case_files import CaseFiles, PredictionSet
from maxquery_jax.report.labels import LabelTable, parse_label_map

DEFAULT_SCORE = 'query_logit'
_SUFFIXES = ('.nii.gz', '.nii')


def open_predictions(
    predictions: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    label_map: str | os.PathLike[str] | None = None,
    only: Collection[str] | None = None,
) -> PredictionSet:
    """Opens a folder that `launch.predict` wrote.

    Args:
        predictions: folder with `X_seg.nii.gz`, `X_ood*.nii.gz` and `X.json`.
        labels: folder with the truth `X.nii.gz` (or `X.nii`) of every case, or, with the manifest
            of a store whose labels are masks, with a folder of masks X or X/segmentations.
        images: folder with `X.nii.gz` or the first channel `X_0000.nii.gz`.
        label_map: JSON file {raw id: class id}, or with the keys 'label_map' and (optional)
            'labels', or a store's manifest.json, which also says how joint labels are split and
            masks merged; the predictions' own when not given.
        only: ids of the cases to open; files of others are not looked at.

    Raises:
        UserError: naming the first file that is missing, malformed or does not fit the others.
    """
    folder = pathlib.Path(predictions)
    cases = _find_cases(folder, only)
    table, raw_map, where = _shared_labels(cases)
    manifest = None
    if label_map is not None:
        data = read_json(label_map, fix='give a JSON file {"raw id": class id}')
        where = pathlib.Path(label_map)
        if data.get('format') == STORE_FORMAT:
            manifest = Manifest.from_json(data, str(where))
        if 'label_map' in data:
            raw_map = data['label_map']
            if 'labels' in data:
                table = _extend(table, LabelTable.from_json(data['labels'], where), where)
        else:
            raw_map = data
    predicted = {case.case for case in cases}
    present: set[str] = set()
    if labels is not None:
        cases = [_with_label(case, labels, manifest) for case in cases]
        files = [path.name for path in pathlib.Path(labels).iterdir()]
        present = {_case_of(name) for name in files if name.endswith(_SUFFIXES)}
    if images is not None:
        cases = [
            dataclasses.replace(
                case, image=_matching_file(images, case.case, ('', '_0000'), '--images')
            )
            for case in cases
        ]
    return PredictionSet(
        tuple(cases),
        table,
        parse_label_map(raw_map, table, where),
        tuple(cases[0].scores),
        folder.name,
        folder,
        len(present - predicted),
        frozenset(predicted | present | set(manifest.cases if manifest else ())),
    )


def open_run(
    model: str | os.PathLike[str],
    split: str = 'test',
    *,
    labels: str | os.PathLike[str] | None = None,
    only: Collection[str] | None = None,
) -> PredictionSet:
    """Opens the predictions of a run for a split of the store it was trained on.

    Args:
        model: run directory; predictions are in `predictions/<split>`.
        split: of the store.
        labels: folder with the truth, where the store's source folder is gone.
        only: ids of cases of the split, where not all are wanted; others need not be predicted yet.

    Raises:
        UserError: a case of the split has no prediction, or as `open_predictions`.
    """
    run = pathlib.Path(model)
    run_manifest, manifest = _read_run(run, split)
    folder = run / 'predictions' / split
    store_path = pathlib.Path(run_manifest['store']) / 'manifest.json'
    wanted = sorted(manifest.splits[split] if only is None else only)
    found = open_predictions(folder, labels=labels, label_map=store_path, only=only)
    by_id = {case.case: case for case in found.cases}
    missing = sorted(set(wanted) - by_id.keys())
    if missing:
        raise UserError(
            f'{folder} has no prediction of {missing[0]} ({len(missing)} of '
            f'{len(wanted)} {split} cases are missing); run launch.predict on them'
        )
    source = pathlib.Path(manifest.source)
    cases = [_from_source(by_id[case], manifest, source) for case in wanted]
    return dataclasses.replace(
        found,
        cases=tuple(cases),
        name=f'{run.resolve().name}, {split}',
    )


def split_cases(model: str | os.PathLike[str], split: str) -> list[str]:
    """Ids of the cases of a run's split.

    Raises:
        UserError: there is no such run, store or split, or it has no cases.
    """
    return list(_read_run(pathlib.Path(model), split)[1].splits[split])


def _read_run(run: pathlib.Path, split: str) -> tuple[dict[str, Any], Manifest]:
    """A run's manifest and its store's, whose split has cases."""
    run_manifest = read_json(run / 'manifest.json', fix='give the --workdir of a training')
    manifest = _store_manifest(run_manifest, run)
    if split not in manifest.splits or not manifest.splits[split]:
        raise UserError(
            f'split {split!r} of {run_manifest["store"]} has no cases; it has '
            f'{", ".join(name for name, ids in manifest.splits.items() if ids)}'
        )
    return run_manifest, manifest


def _find_cases(folder: pathlib.Path, only: Collection[str] | None = None) -> list[CaseFiles]:
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; run launch.predict with this --output first')
    names = sorted(path.name for path in folder.iterdir())
    ids = [name.removesuffix('_seg.nii.gz') for name in names if name.endswith('_seg.nii.gz')]
    cases = [_find_case(folder, case, names) for case in ids if only is None or case in only]
    if not cases:
        raise UserError(f'{folder} holds no X_seg.nii.gz; give the --output of launch.predict')
    for case in cases:
        odd = sorted(set(case.scores) ^ set(cases[0].scores))
        if odd:
            raise UserError(
                f'{folder}: only one of {cases[0].case} and {case.case} has the score {odd[0]}; '
                'predict all cases with the same --scores'
            )
    return cases


def _find_case(folder: pathlib.Path, case: str, names: list[str]) -> CaseFiles:
    info = read_json(folder / f'{case}.json', fix='predict this case again')
    default = f'{case}_ood.nii.gz'
    prefix = f'{case}_ood-'
    if default not in names:
        raise UserError(f'{folder / default} does not exist; predict this case again')
    scores = {str(info.get('primary_score', DEFAULT_SCORE)): folder / default}
    for name in names:
        if name.startswith(prefix) and name.endswith('.nii.gz'):
            scores.setdefault(name[len(prefix) : -len('.nii.gz')], folder / name)
    return CaseFiles(case, folder / f'{case}_seg.nii.gz', scores, info)


def _shared_labels(cases: list[CaseFiles]) -> tuple[LabelTable, Any, pathlib.Path]:
    """Classes and label map, which all cases must share."""
    first = cases[0]
    folder = first.segmentation.parent
    for case in cases:
        where = folder / f'{case.case}.json'
        for key in ('labels', 'label_map'):
            if key not in case.info:
                raise UserError(f'{where} lacks {key!r}; predict this case again')
            if case.info[key] != first.info[key]:
                raise UserError(
                    f'{where} and {first.case}.json differ in {key!r}; predict all cases with '
                    'one model'
                )
    where = folder / f'{first.case}.json'
    return LabelTable.from_json(first.info['labels'], where), first.info['label_map'], where


def _extend(predicted: LabelTable, truth: LabelTable, where: object) -> LabelTable:
    """The truth's table, if the classes that are predicted are the same there.

    Zero-shot classes beyond it, such as those that a text brought, are added.
    """
    zero_shot = predicted.zero_shot_ids
    added = range(len(truth.names), max(zero_shot, default=-1) + 1)
    names, roles = (
        (*own, *(other[i] for i in added))
        for own, other in ((truth.names, predicted.names), (truth.roles, predicted.roles))
    )
    for i in (*predicted.ids('background'), *predicted.predicted_ids):
        own = (predicted.names[i], predicted.roles[i])
        if i >= len(names) or own != (names[i], roles[i]) or names.count(names[i]) > 1:
            raise UserError(
                f'{where}: class {i} is {names[i] if i < len(names) else "absent"}, the '
                f'predictions call it {own[0]} ({own[1]}); use the labels the model was trained on'
            )
    if len(truth.known_ids) != len(predicted.known_ids):
        raise UserError(
            f'{where} has {len(truth.known_ids)} known classes, the predictions have '
            f'{len(predicted.known_ids)}; use the labels the model was trained on'
        )
    return LabelTable(names, roles, zero_shot, predicted.absent_ids)


def _store_manifest(run_manifest: Mapping[str, Any], run: pathlib.Path) -> Manifest:
    store = run_manifest.get('store')
    fix = 'evaluate with --predictions and --labels instead'
    if not isinstance(store, str) or not store:
        raise UserError(f'{run / "manifest.json"} names no store; {fix}')
    data = read_json(
        pathlib.Path(store) / 'manifest.json', fix=f'the store has moved or is remote, {fix}'
    )
    manifest = Manifest.from_json(data, store)
    # A fold of a cross-validation has splits of its own.
    splits = run_manifest.get('data', {}).get('splits', {})
    for case in (case for ids in splits.values() for case in ids):
        if case not in manifest.cases:
            raise UserError(f'store {store} lacks case {case!r} of {run}; prepare it as it was')
    return dataclasses.replace(manifest, splits={**manifest.splits, **splits})


def _with_label(
    case: CaseFiles, labels: str | os.PathLike[str], manifest: Manifest | None
) -> CaseFiles:
    """Adds the truth of a folder, and how to read it where the store has more than a label map."""
    rules = None
    if manifest is not None and manifest.has_label_rules:
        rules = truth.TruthRules.of(manifest, case.case)
    return dataclasses.replace(case, label=_find_label(labels, case.case, rules), rules=rules)


def _find_label(
    labels: str | os.PathLike[str], case: str, rules: truth.TruthRules | None
) -> pathlib.Path:
    own = pathlib.Path(labels) / case
    folders = [folder for folder in (own, own / 'segmentations') if folder.is_dir()]
    for folder in folders:
        if not find_masks(folder):
            continue
        if rules is None or rules.table.masks is None:
            raise UserError(
                f'{folder} holds masks; to say which class each is, give '
                '--label_map=STORE/manifest.json of a store that was prepared from such'
            )
        return folder
    return _matching_file(labels, case, ('',), '--labels')


def _from_source(case: CaseFiles, manifest: Manifest, folder: pathlib.Path) -> CaseFiles:
    """Adds the raw files that the store was made from; a label that was given stays."""
    source = manifest.cases[case.case]['source']
    label = case.label
    if label is None and source.get('label'):
        label = folder / source['label']
    image = folder / source['image'][0] if source.get('image') else None
    # A label map of plain ids needs no more than `label_map`.
    needs_rules = manifest.has_label_rules or (label is not None and label.is_dir())
    rules = truth.TruthRules.of(manifest, case.case) if needs_rules else None
    return dataclasses.replace(case, label=label, image=image, rules=rules)


def _case_of(name: str) -> str:
    return name.removesuffix('.gz').removesuffix('.nii')


def _matching_file(
    folder: str | os.PathLike[str], case: str, endings: tuple[str, ...], flag: str
) -> pathlib.Path:
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f'{flag}={folder} is not a folder; give the one that holds {case}.nii.gz')
    candidates = [folder / f'{case}{end}{suffix}' for end in endings for suffix in _SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f'{flag}={folder} has no file for case {case}; expected {candidates[0].name}')
