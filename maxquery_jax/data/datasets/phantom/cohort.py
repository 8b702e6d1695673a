"""Writes a phantom cohort as a folder in the layout of the Medical Segmentation Decathlon."""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from maxquery_jax.data.datasets.phantom.canvas import Grid
from maxquery_jax.data.datasets.phantom.case import PhantomCase, generate_case
from maxquery_jax.data.datasets.phantom.placement import HostNotVisibleError
from maxquery_jax.data.datasets.phantom.spec import (
    AnnotatedGroup,
    CasePlan,
    CohortSpec,
    plan_cases,
)
from maxquery_jax.data.datasets.phantom.subtypes import add_subtypes, write_subtypes
from maxquery_jax.data.datasets.phantom.tissues import ORGANS, PARENT
from maxquery_jax.data.workers import map_cases
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_bytes, write_json

FORMAT_VERSION = 1
ORIENTATIONS = ('LPS', 'LAS', 'RAS')  # taken in turn, so that readers must reorient
COMPRESSION = 4


def write_cohort(
    root: str | os.PathLike,
    spec: CohortSpec,
    *,
    workers: int = 0,
    on_case: Callable[[str, int, int], None] | None = None,
) -> list[pathlib.Path]:
    """Generates a cohort and writes it.

    `root/dataset.json` is written last, so a folder with it is complete; files of an interrupted
    run are overwritten. With `annotated_groups` each group becomes a folder `root/<name>/`.
    A folder that already holds this cohort is left alone, but for `subtypes.csv` if it lacks it.

    Args:
        root: folder to write; made if needed.
        spec: what to write.
        workers: processes; 0 works in this one. Has no influence on the data.
        on_case: called with (case id, cases done, cases in all) after each case.

    Returns:
        The folders that hold a dataset.json.

    Raises:
        UserError: if the folder holds another data set, or a tumour's organ never fits the field
            of view.
    """
    root = pathlib.Path(root)
    groups = spec.annotated_groups or (None,)
    folders = [root / group.name if group else root for group in groups]
    for folder in folders:
        _check_folder(folder, spec)
    for folder, group in zip(folders, groups, strict=True):
        if (folder / 'dataset.json').exists():
            add_subtypes(folder)
        else:
            _write_group(folder, spec, group, workers, on_case)
    return folders


def _check_folder(folder: pathlib.Path, spec: CohortSpec) -> None:
    """Raises UserError if the folder holds another data set."""
    path = folder / 'dataset.json'
    if not path.exists():
        return
    try:
        extra = json.loads(path.read_text())['maxquery_jax']
        same = CohortSpec(**extra['spec']) == spec  # also one that was written without later fields
        same = same and extra['phantom_version'] == FORMAT_VERSION
    except (ValueError, KeyError, TypeError, UserError):
        same = False
    if not same:
        raise UserError(
            f'{path}: the folder holds another data set; give the phantom cohort a new folder'
        )


def _write_group(folder, spec, group, workers, on_case) -> None:
    plans = plan_cases(spec, group)
    for name in ('imagesTr', 'labelsTr'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tasks = [(plan.case_id, (str(folder), spec, group, plan)) for plan in plans]
    tumours: dict[str, list[dict[str, Any]]] = {}
    for done, (case_id, findings) in enumerate(map_cases(_write_case, tasks, workers=workers), 1):
        tumours[case_id] = findings
        if on_case is not None:
            on_case(case_id, done, len(tasks))
    write_subtypes(folder, tumours)
    content = describe(spec, group, plans, tumours)
    write_json(folder / 'dataset.json', content)


def label_names(spec: CohortSpec, group: AnnotatedGroup | None) -> tuple[str, ...]:
    """Labels of a data set by id; a group lists only what it annotates."""
    names = spec.resolved_task.labels
    if group is None:
        return names
    return tuple(name for name in names if name == 'background' or name in group.annotated)


def label_map(case: PhantomCase, names: tuple[str, ...], label_of: dict[str, str]) -> np.ndarray:
    """The label volume of a case as a data set with the labels `names` has it.

    Args:
        case: generated case.
        names: labels by id.
        label_of: tumour type to label.

    Returns:
        [D, H, W] uint8. Structures that are not annotated count to what contains them.
    """
    ids = {name: number for number, name in enumerate(names)}
    table = np.zeros(len(ORGANS) + 1, np.uint8)
    for number, organ in enumerate(ORGANS, 1):
        table[number] = ids.get(organ, ids.get(PARENT.get(organ, ''), 0))
    label = table[case.organs]
    for number, lesion in enumerate(case.findings, 1):
        name = label_of[lesion.name]
        if name in ids:
            label[case.lesions == number] = ids[name]
    return label


def _write_case(argument: tuple[str, CohortSpec, AnnotatedGroup | None, CasePlan]):
    """Generates and writes one case; returns its tumours for dataset.json."""
    folder, spec, group, plan = pathlib.Path(argument[0]), *argument[1:]
    case = _generate(spec, plan)
    names = label_names(spec, group)
    label = label_map(case, names, spec.resolved_task.label_of)
    orientation = ORIENTATIONS[plan.index % len(ORIENTATIONS)]
    for channel in range(len(case.phases)):
        suffix = f'_{channel:04d}' if len(case.phases) > 1 else ''
        path = folder / 'imagesTr' / f'{plan.case_id}{suffix}.nii.gz'
        write_nifti(path, case.image[..., channel], case.grid, orientation)
    write_nifti(folder / 'labelsTr' / f'{plan.case_id}.nii.gz', label, case.grid, orientation)
    volume = float(np.prod(spec.spacing_mm)) / 1000
    return [
        {
            'type': lesion.name,
            'label': spec.resolved_task.label_of[lesion.name],
            'host': lesion.host,
            'volume_ml': round(float((case.lesions == number).sum()) * volume, 2),
        }
        for number, lesion in enumerate(case.findings, 1)
    ]


def _generate(spec: CohortSpec, plan: CasePlan) -> PhantomCase:
    """Generates a case with the first of its choices that fits the field of view."""
    reasons = []
    for choice in plan.choices or (None,):
        wanted = tuple(name for name in (choice, plan.second) if name is not None)
        try:
            return generate_case(
                seed=spec.seed,
                index=plan.index,
                shape_zyx=spec.shape_zyx,
                spacing_mm=spec.spacing_mm,
                phases=spec.phases,
                region=str(spec.region),
                tumours=wanted,
                reference_phase=spec.reference_phase,
            )
        except HostNotVisibleError as error:
            reasons.append(str(error))
    raise UserError(f'{plan.case_id}: {reasons[0]}')


def write_nifti(path: pathlib.Path, volume: np.ndarray, grid: Grid, orientation: str) -> None:
    """Writes a canonical volume in another storage order.

    Args:
        path: `.nii.gz` file; replaced as a whole, the same bytes for the same data.
        volume: [D, H, W] int16 or uint8, indices growing towards S, A, R.
        grid: its geometry.
        orientation: directions of the file's x, y, z axes, such as 'LPS'.
    """
    array = volume.transpose(2, 1, 0)
    affine = np.eye(4)
    for axis, (code, positions) in enumerate(
        zip(orientation, (grid.x, grid.y, grid.z), strict=True)
    ):
        step = grid.spacing_mm[2 - axis]
        if code in 'LPI':
            array = np.flip(array, axis)
            step, start = -step, positions[-1]
        else:
            start = positions[0]
        affine[axis, axis], affine[axis, 3] = step, start
    image = Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_data_dtype(volume.dtype)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units('mm', 'sec')
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    write_bytes(path, gzip.compress(image.to_bytes(), COMPRESSION, mtime=0))


def describe(
    spec: CohortSpec,
    group: AnnotatedGroup | None,
    plans: list[CasePlan],
    tumours: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Content of dataset.json."""
    names = label_names(spec, group)
    roles = spec.resolved_task.roles
    ids = [plan.case_id for plan in plans]
    if len(spec.phases) > 1:
        channels = {'channel_names': dict(_numbered(spec.phases)), 'file_ending': '.nii.gz'}
    else:
        channels = {'modality': {'0': 'CT'}}
    return {
        'name': 'phantomct_' + (group.name if group else spec.task),
        'description': 'Synthetic CT with known anatomy and tumours; no patient data.',
        'reference': 'maxquery_jax, docs/phantom.md',
        'licence': 'CC0-1.0',
        'tensorImageSize': '3D',
        **channels,
        'labels': dict(_numbered(names)),
        'numTraining': len(ids),
        'numTest': 0,
        'training': [
            {'image': f'./imagesTr/{name}.nii.gz', 'label': f'./labelsTr/{name}.nii.gz'}
            for name in ids
        ],
        'test': [],
        'maxquery_jax': {
            'roles': {name: roles[name] for name in names},
            'splits': {
                split: [plan.case_id for plan in plans if plan.split == split]
                for split in ('train', 'val', 'test')
            },
            'annotated': list(names[1:]),
            'unannotated': [name for name in roles if name not in names],
            'tumours': {name: tumours[name] for name in ids},
            'phantom_version': FORMAT_VERSION,
            'seed': spec.seed,
            'group': group.name if group else None,
            'spec': dataclasses.asdict(spec),
        },
    }


def _numbered(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(str(number), name) for number, name in enumerate(names)]
