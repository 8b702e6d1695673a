"""One case from its files to the store: orient, resample, map the labels, write."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxquery_jax.data import nifti, volumes
from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.labels import LabelTable
from maxquery_jax.data.orientation import Orientation, rectify
from maxquery_jax.data.preprocess import resample_image, resample_label, resampled_shape
from maxquery_jax.data.raw import RawCase
from maxquery_jax.data.scan import to_hu
from maxquery_jax.data.store import AIR_HU
from maxquery_jax.data.store_format import first_line
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError

RULES_VERSION = 1  # raise when the same input would be written as other voxels
_KEY = 'prepared'  # attribute of a case in the store
_ALL = frozenset(CHECKS)  # the survey has judged every file by now


@dataclasses.dataclass(frozen=True)
class ConvertTask:
    """What a process needs to write one case.

    Attributes:
        case: its files.
        sha256: of each file when it was checked.
        store: location of the store.
        source: folder that the case's paths are relative to.
        table: ids of the labels.
        assume_orientation: axis codes for files without an affine.
        spacing_mm: (z, y, x) of the store.
        label_method: 'linear' or 'nearest'.
        series: which series of a DICOM folder; None for the rule.
        midline: index along x by which labels are split into right and left; see `CaseScan`.
    """

    case: RawCase
    sha256: Mapping[str, str]
    store: str
    source: pathlib.Path
    table: LabelTable
    assume_orientation: str | None
    spacing_mm: tuple[float, float, float]
    label_method: str
    series: str | None = None
    midline: float | None = None

    @property
    def key(self) -> str:
        """Hash of everything that decides the voxels written."""
        files = [*self.case.images, self.case.label]
        decisive = {
            'rules': RULES_VERSION,
            'sha256': [self.sha256.get(path or '') for path in files],
            'label_map': sorted(self.table.label_map.items()),
            'assume_orientation': self.assume_orientation,
            'spacing_mm': self.spacing_mm,
            'label_method': self.label_method,
        }
        if self.table.left_right:
            rules = [dataclasses.astuple(rule) for rule in self.table.left_right]
            decisive['left_right'] = [*rules, sorted(self.table.joint_ids.items()), self.midline]
        if self.table.masks is not None:
            decisive['masks'] = list(self.table.masks.items())
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def is_converted(writer: StoreWriter, task: ConvertTask) -> bool:
    """Whether the store holds the case, written from the same bytes by the same rules."""
    attributes = writer.attributes(task.case.case_id)
    return attributes is not None and attributes.get(_KEY) == task.key


def convert_case(task: ConvertTask) -> dict[str, Any]:
    """Writes one case and returns what the store recorded (`shape`, `voxels`).

    Raises:
        UserError: a file changed since it was checked, or the store cannot be written.
    """
    image, place = _load_image(task)
    label = None if task.case.label is None else _load_label(task, place)
    try:
        return StoreWriter(task.store).write_case(task.case.case_id, image, label, {_KEY: task.key})
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) or 'os_error_code' in str(error):  # TensorStore's
            raise UserError(
                f'store {task.store}: case {task.case.case_id!r} cannot be written '
                f'({first_line(error)}); free space or mend permissions, then run again'
            ) from error
        raise


def _load_image(task: ConvertTask) -> tuple[np.ndarray, Orientation]:
    """[D, H, W, P] int16 at the store's spacing, and the orientation of the first channel."""
    stack, first = None, None
    for channel, path in enumerate(task.case.images):
        volume = volumes.read_image(
            task.source / path,
            series=task.series,
            allow=_ALL,
            nan_policy='fill',
            assume_orientation=task.assume_orientation,
        )
        _check_unchanged(task, path, volume)
        image, place = nifti.to_canonical(volume)
        first = first or place
        del volume
        if first.is_sheared:
            image = rectify(image, first, order=1, fill=AIR_HU)
        image = resample_image(to_hu(image), first.spacing_mm, task.spacing_mm)
        if stack is None:
            stack = np.empty((*image.shape, len(task.case.images)), np.int16)
        stack[..., channel] = image
    assert stack is not None and first is not None
    return stack, first


def _load_label(task: ConvertTask, place: Orientation) -> np.ndarray:
    """[D, H, W] uint8 store ids on the image's grid."""
    path = task.case.label or ''
    volume = volumes.read_label(
        task.source / path,
        masks=task.table.masks,
        like=task.source / task.case.images[0],
        series=task.series,
        allow=_ALL,
        assume_orientation=task.assume_orientation,
    )
    _check_unchanged(task, path, volume)
    raw, _ = nifti.to_canonical(volume)
    label = task.table.convert(raw)
    del volume, raw
    task.table.split(label, place.spacing_mm, task.midline)
    if place.is_sheared:
        label = rectify(label, place, order=0, fill=0)
    # The image's spacing: the label's header may be rounded otherwise and give another shape.
    shape = resampled_shape(label.shape, place.spacing_mm, task.spacing_mm)
    return resample_label(
        label, place.spacing_mm, task.spacing_mm, shape=shape, method=task.label_method
    )


def _check_unchanged(task: ConvertTask, path: str, volume: nifti.Volume) -> None:
    if volume.sha256 != task.sha256[path]:
        raise UserError(f'{task.source / path}: changed while it was prepared; run again')
