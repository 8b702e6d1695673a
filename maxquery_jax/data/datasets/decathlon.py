"""Folders with a `dataset.json`: Medical Segmentation Decathlon, and nnU-Net v1 and v2 raw.

Decathlon and nnU-Net v1 list their cases under `training`, with `labels` as id to name; nnU-Net
v2 has `channel_names`, `labels` as name to id, and finds its cases as `imagesTr/CASE_0000.nii.gz`.
An optional key `maxquery_jax` adds what neither can say:

    "maxquery_jax": {"roles": {"cyst": "ood"}, "annotated": ["liver", "tumour"],
                     "splits": {"train": ["liver_0"], "val": [], "test": []}}
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from maxquery_jax.data.findings import Issue
from maxquery_jax.data.raw import RawCase, RawDataset, read_json, read_splits, strip_extension
from maxquery_jax.errors import UserError

_WHAT = 'expected the dataset.json of a Decathlon or nnU-Net folder'
_CHANNEL = re.compile(r'(.+)_(\d{4})')
_EXTENSION = 'maxquery_jax'


def read_decathlon(source: str | os.PathLike) -> RawDataset:
    """Lists the cases of a folder with a `dataset.json`.

    Args:
        source: the folder.

    Raises:
        UserError: the folder or a key is missing or malformed, naming it.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f'{source}: is not a folder; give the one that holds dataset.json')
    path = source / 'dataset.json'
    data = read_json(path, _WHAT)
    is_v2 = 'channel_names' in data
    labels = _labels(data, path)
    channels = _channels(data, 'channel_names' if is_v2 else 'modality', path)
    notes: list[str] = []
    if is_v2:
        cases, problems = _cases_v2(data, source, len(channels), path)
    else:
        cases, problems = _cases_listed(data, source, len(channels), path, notes), []
    if not cases:
        raise UserError(f'{path}: lists no training case; put them under imagesTr and labelsTr')
    ids = [case.case_id for case in cases]
    repeated = sorted({case_id for case_id in ids if ids.count(case_id) > 1})
    if repeated:
        raise UserError(f'{path}: case {repeated[0]!r} is listed twice; list it once')
    for case in cases:
        if len(case.images) != len(channels):
            raise UserError(
                f'{path}: case {case.case_id!r} has {len(case.images)} images for '
                f'{len(channels)} channels; list one per channel'
            )
    extra = _object(data.get(_EXTENSION, {}), _EXTENSION, path)
    roles, annotated = _roles(extra, labels, path)
    splits = extra.get('splits')
    return RawDataset(
        name=str(data.get('name') or source.resolve().name),
        source=source,
        channels=channels,
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        raw_labels=labels,
        roles=roles,
        annotated=annotated,
        splits=None if splits is None else read_splits(splits, f'{path}: {_EXTENSION}.splits'),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _object(value: Any, key: str, path: pathlib.Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{path}: key {key!r} must be an object, not {type(value).__name__}')
    return value


def _labels(data: Mapping[str, Any], path: pathlib.Path) -> dict[int, str]:
    if 'labels' not in data:
        raise UserError(f"{path}: key 'labels' is missing; {_WHAT}")
    labels: dict[int, str] = {}
    for key, value in _object(data['labels'], 'labels', path).items():
        if isinstance(value, list):
            raise UserError(
                f'{path}: label {key!r} is a region ({value}); regions overlap and are not '
                'supported: give each id a name of its own, roles are set with --organ and --tumour'
            )
        is_id_first = isinstance(value, str) and key.isdecimal()
        raw, name = (key, value) if is_id_first else (value, key)
        if isinstance(raw, bool) or not str(raw).isdecimal():
            raise UserError(f"{path}: 'labels' entry {key!r}: {value!r} holds no integer id")
        if int(raw) in labels:
            raise UserError(f"{path}: 'labels' gives id {raw} two names; merge them with --organ")
        labels[int(raw)] = name
    if 0 not in labels:
        raise UserError(f"{path}: 'labels' has no id 0; name the background")
    return labels


def _channels(data: Mapping[str, Any], key: str, path: pathlib.Path) -> tuple[str, ...]:
    names = _object(data.get(key, {'0': 'CT'}), key, path)
    if sorted(names) != sorted(str(i) for i in range(len(names))) or not names:
        raise UserError(
            f'{path}: key {key!r} must number its channels 0, 1, ..., not {list(names)}'
        )
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _roles(
    extra: Mapping[str, Any], labels: Mapping[int, str], path: pathlib.Path
) -> tuple[dict[str, str] | None, tuple[str, ...] | None]:
    roles = _object(extra.get('roles', {}), f'{_EXTENSION}.roles', path)
    annotated = extra.get('annotated')
    if annotated is not None and not isinstance(annotated, list):
        raise UserError(f"{path}: key '{_EXTENSION}.annotated' must be a list of label names")
    names = set(labels.values())
    strangers = [name for name in (*roles, *(annotated or ())) if name not in names]
    if strangers:
        raise UserError(f'{path}: key {_EXTENSION!r} speaks of {strangers[0]!r}, which is no label')
    known = {name: role for name, role in roles.items() if role != 'background'}
    return known or None, None if annotated is None else tuple(annotated)


def _cases_listed(
    data: Mapping[str, Any],
    source: pathlib.Path,
    num_channels: int,
    path: pathlib.Path,
    notes: list[str],
) -> list[RawCase]:
    training = data.get('training')
    if not isinstance(training, list):
        raise UserError(f"{path}: key 'training' is missing or no list; {_WHAT}")
    cases = []
    for number, entry in enumerate(training):
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) for key in ('image', 'label')
        ):
            raise UserError(
                f"{path}: key 'training', entry {number}: must be "
                '{"image": path, "label": path}, not ' + repr(entry)[:80]
            )
        image, label = (_tidy(entry[key]) for key in ('image', 'label'))
        case_id = strip_extension(pathlib.PurePosixPath(image).name)
        images = [image]
        if num_channels > 1 or not (source / image).exists():
            numbered = [_numbered(image, channel) for channel in range(num_channels)]
            if any((source / name).exists() for name in numbered):  # nnU-Net v1
                images = numbered
        cases.append(RawCase(case_id, tuple(images), label))
    stated = data.get('numTraining')
    if stated is not None and stated != len(cases):
        notes.append(f'dataset.json says numTraining {stated} and lists {len(cases)} cases')
    if data.get('test'):
        notes.append(f'{len(data["test"])} test images have no labels and are not used')
    return cases


def _tidy(path: str) -> str:
    return str(pathlib.PurePosixPath(path))


def _numbered(image: str, channel: int) -> str:
    stem = strip_extension(image)
    return f'{stem}_{channel:04d}{image[len(stem) :]}'


def _cases_v2(
    data: Mapping[str, Any], source: pathlib.Path, num_channels: int, path: pathlib.Path
) -> tuple[list[RawCase], list[tuple[str, str, Issue]]]:
    ending = data.get('file_ending', '.nii.gz')
    if ending not in ('.nii.gz', '.nii'):
        raise UserError(
            f"{path}: key 'file_ending' is {ending!r}; convert the files to .nii.gz and say so"
        )
    if 'dataset' in data:
        return _cases_named(_object(data['dataset'], 'dataset', path), path), []
    ids, problems = set(), []
    for file in sorted((source / 'imagesTr').glob('*' + ending)):
        match = _CHANNEL.fullmatch(file.name[: -len(ending)])
        name = f'imagesTr/{file.name}'
        if not match or int(match[2]) >= num_channels:
            value = f'not CASE_0000 to CASE_{num_channels - 1:04d}{ending}'
            problems.append(
                ('', name, Issue('case_name', 'error', value, 'rename it, or mend channel_names'))
            )
        else:
            ids.add(match[1])
    labelled = {file.name[: -len(ending)] for file in (source / 'labelsTr').glob('*' + ending)}
    cases = [
        RawCase(
            case_id,
            tuple(f'imagesTr/{case_id}_{i:04d}{ending}' for i in range(num_channels)),
            f'labelsTr/{case_id}{ending}',
        )
        for case_id in sorted(ids | labelled)
    ]
    stated = data.get('numTraining')
    if stated is not None and stated != len(cases):
        raise UserError(
            f"{path}: key 'numTraining' is {stated}, but {len(cases)} cases are in imagesTr and "
            'labelsTr; correct the number or restore the files'
        )
    return cases, problems


def _cases_named(listing: Mapping[str, Any], path: pathlib.Path) -> list[RawCase]:
    cases = []
    for case_id, entry in listing.items():
        images = entry.get('images') if isinstance(entry, dict) else None
        if not isinstance(images, list) or not isinstance(entry.get('label'), str):
            raise UserError(f"{path}: key 'dataset', case {case_id!r}: needs 'images' and 'label'")
        cases.append(
            RawCase(case_id, tuple(_tidy(str(image)) for image in images), _tidy(entry['label']))
        )
    return cases
