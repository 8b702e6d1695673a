"""A label map given as a folder of binary masks, one file per structure.

TotalSegmentator distributes its labels so: `segmentations/liver.nii.gz`, `.../spleen.nii.gz`, ...
The masks are painted one over the other in the order of the table, tumours last, so that a tumour
wins over its organ. One mask is in memory at a time.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from maxquery_jax.data import nifti
from maxquery_jax.data.findings import Findings, validate_allow
from maxquery_jax.data.labels import default_role
from maxquery_jax.data.nifti_header import corner_distance
from maxquery_jax.data.raw import hash_file, strip_extension
from maxquery_jax.errors import UserError

_SAME_PLACE = 0.05  # voxels, as in `scan`


def find_masks(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Name of a structure to its file, sorted by name; hidden files are passed over."""
    folder = pathlib.Path(folder)
    files = (
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(('.nii', '.nii.gz')) and not path.name.startswith('.')
    )
    return {strip_extension(path.name): path for path in sorted(files)}


def hash_masks(folder: str | os.PathLike) -> str:
    """SHA-256 over names and contents of the masks of a folder; that of a merged `Volume`."""
    return _join({name: hash_file(path) for name, path in find_masks(folder).items()})


def _join(hashes: Mapping[str, str]) -> str:
    text = ''.join(f'{name}\0{digest}\n' for name, digest in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def order_masks(ids: Mapping[str, int], tumours: Iterable[str]) -> dict[str, int]:
    """The masks in the order in which to paint them: by id, tumours after everything else."""
    last = set(tumours)
    return dict(sorted(ids.items(), key=lambda item: (item[0] in last, item[1])))


def merge_masks(
    folder: str | os.PathLike,
    masks: Mapping[str, int],
    *,
    allow: Collection[str] = (),
    assume_orientation: str | None = None,
    max_bytes: int = nifti.MAX_BYTES,
    strict: bool = True,
) -> nifti.Volume:
    """Reads a folder of binary masks as one label map.

    Args:
        folder: holds NAME.nii.gz or NAME.nii.
        masks: name of a mask to its id, at most 65535; later ones paint over earlier ones. Names
            without a file are not there.
        allow: names of errors that are to count as warnings.
        assume_orientation: axis codes for files without an affine.
        max_bytes: largest array to allocate.
        strict: raise on the first error found.

    Returns:
        A volume on the grid of the first mask; its hash is `hash_masks`.

    Raises:
        FileError: no mask, a file that cannot be read, or masks of different shapes.
    """
    findings = Findings(folder, validate_allow(allow))
    try:
        files = find_masks(folder)
    except OSError as error:
        raise findings.fatal('unreadable', error.strerror or str(error), 'mend it') from error
    merger = _Merger(findings)
    hashes = {}
    known = [name for name in masks if name in files]
    for name in [*known, *sorted(set(files) - set(known))]:
        volume = nifti.read_label(
            files[name],
            allow=allow,
            assume_orientation=assume_orientation,
            max_bytes=max_bytes,
            strict=strict,
        )
        hashes[name] = volume.sha256
        if name in masks:
            merger.paint(name, volume, masks[name])
        else:
            merger.report_unknown(name, volume)
    if merger.first is None or merger.array is None:
        raise findings.fatal('missing_file', 'holds no mask of a known name', _expected(masks))
    merger.report_overlap(masks)
    if strict:
        findings.raise_first_error()
    highest = int(max(masks.values()))
    return dataclasses.replace(
        merger.first,
        array=merger.array,
        sha256=_join(hashes),
        minimum=0,
        maximum=highest,
        issues=(*merger.issues, *findings.issues),
    )


def _expected(masks: Mapping[str, int]) -> str:
    names = list(masks)
    return f'expected {names[0]}.nii.gz and {len(names) - 1} more' if names else 'name the masks'


class _Merger:
    """Paints masks over each other, checking that they share a grid."""

    def __init__(self, findings: Findings):
        self._findings = findings
        self.first: nifti.Volume | None = None
        self.array: np.ndarray | None = None
        self.issues: list = []  # of single files, each kind once
        self._covered: dict[tuple[int, int], int] = {}

    def paint(self, name: str, volume: nifti.Volume, mask_id: int) -> None:
        if self.array is None or self.first is None:
            dtype = np.uint8 if mask_id < 256 else np.uint16
            self.array = np.zeros(volume.array.shape, dtype, order='F')
            self.first = volume
        self._compare(name, volume)
        if mask_id > np.iinfo(self.array.dtype).max:
            self.array = self.array.astype(np.uint16)
        self._keep_issues(name, volume)
        is_tumour = default_role(name) == 'tumour'
        for target, plane in zip(self.array.T, volume.array.T, strict=True):  # slices of [k, j, i]
            inside = plane != 0
            if not inside.any():
                continue
            if not is_tumour:  # which are expected to cover their organ
                self._count(target[inside], mask_id)
            target[inside] = mask_id

    def _count(self, covered: np.ndarray, mask_id: int) -> None:
        for other, voxels in zip(*np.unique(covered[covered > 0], return_counts=True), strict=True):
            key = int(other), mask_id
            self._covered[key] = self._covered.get(key, 0) + int(voxels)

    def _compare(self, name: str, volume: nifti.Volume) -> None:
        assert self.first is not None
        first = self.first.header
        if volume.header.shape != first.shape:
            raise self._findings.fatal(
                'shape_mismatch',
                f'mask {name} is {volume.header.shape}, {first.path} is {first.shape} (i, j, k)',
                'export all masks on one grid',
            )
        distance = corner_distance(volume.header.affine, first.affine, first.shape)
        if distance > _SAME_PLACE * min(first.spacing_mm):
            self._findings.error(
                'affine_mismatch',
                f'mask {name} lies up to {distance:.4g} mm from {first.path}',
                'export all masks on one grid',
            )

    def _keep_issues(self, name: str, volume: nifti.Volume) -> None:
        known = {issue.check for issue in self.issues}
        for issue in volume.issues:
            if issue.check not in known:
                value = f'mask {name}: {issue.value}'
                self.issues.append(dataclasses.replace(issue, value=value))

    def report_unknown(self, name: str, volume: nifti.Volume) -> None:
        voxels = int(np.count_nonzero(volume.array))
        self._findings.error(
            'label_unknown',
            f'mask {name} ({voxels:,} voxels) has no name in the labels',
            'name it in the labels or remove the file; --allow=label_unknown passes over it',
        )

    def report_overlap(self, masks: Mapping[str, int]) -> None:
        """One warning with the pairs that overlap most."""
        if not self._covered:
            return
        names = {mask_id: name for name, mask_id in masks.items()}
        worst = sorted(self._covered.items(), key=lambda item: -item[1])
        listed = ', '.join(
            f'{names[above]} over {names[below]} ({voxels:,} voxels)'
            for (below, above), voxels in worst[:3]
        )
        more = f' and {len(worst) - 3} more pairs' if len(worst) > 3 else ''
        self._findings.warn(
            'mask_overlap', f'{listed}{more}', 'nothing to do if the first named is the truth'
        )


def named_masks(folders: Sequence[str | os.PathLike], names: Collection[str]) -> dict[str, int]:
    """How many of the folders hold each mask.

    Raises:
        UserError: a folder cannot be listed.
    """
    counts = dict.fromkeys(names, 0)
    for folder in folders:
        try:
            found = {strip_extension(entry.name) for entry in os.scandir(folder)}
        except OSError as error:
            raise UserError(f'{folder}: cannot be listed ({error.strerror})') from error
        for name in found & counts.keys():
            counts[name] += 1
    return counts
