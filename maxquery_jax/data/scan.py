"""One pass over the files of one case: every check, and the statistics that `prepare` needs."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxquery_jax.data import nifti, volumes
from maxquery_jax.data.findings import FileError, Issue
from maxquery_jax.data.hounsfield import INT16, judge_values
from maxquery_jax.data.labels import LabelTable, count_ids
from maxquery_jax.data.left_right import body_midline
from maxquery_jax.data.nifti_header import corner_distance
from maxquery_jax.data.orientation import Orientation
from maxquery_jax.data.preprocess import Histogram
from maxquery_jax.data.raw import RawCase, leaves_folder

_SAME_PLACE = 0.05  # voxels: files of a case may differ by the rounding of their headers
_MAX_ANISOTROPY = 10
_SLAB = 16


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One finding about one file of one case; the row of the table and of `--json`."""

    case: str
    file: str
    check: str
    severity: str
    value: str
    fix: str

    @classmethod
    def of(cls, case: str, file: str, issue: Issue) -> 'CheckRow':
        """The row of an issue."""
        return cls(case, file, issue.check, issue.severity, issue.value, issue.fix)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How files are read and judged.

    Attributes:
        allow: names of errors that count as warnings; a case that cannot be used all the same
            is left out.
        nan_policy: 'error' or 'fill'.
        assume_orientation: axis codes for files without an affine.
        max_bytes: largest array to read.
        series: which series of a DICOM folder, see `dicom.series`; None for the rule.
    """

    allow: frozenset[str] = frozenset()
    nan_policy: str = 'error'
    assume_orientation: str | None = None
    max_bytes: int = nifti.MAX_BYTES
    series: str | None = None


@dataclasses.dataclass(frozen=True)
class ScanTask:
    """What a process needs to scan one case."""

    source: pathlib.Path
    case: RawCase
    table: LabelTable
    options: ReadOptions


@dataclasses.dataclass(frozen=True)
class CaseScan:
    """What one pass over a case found.

    Attributes:
        case_id: of the case.
        rows: findings.
        is_usable: whether the case can be prepared.
        shape: canonical (D, H, W); empty if the first image cannot be read.
        spacing_mm: canonical (z, y, x).
        native: `{shape, spacing_mm, affine}` of the first image along its own axes.
        sha256: relative path to hash, of the files read to the end.
        voxel_hash: equal for equal images, however they are stored.
        raw_counts: voxels per id of the label file; None without one.
        midline: index of the body's midline along x, where a label was split into sides by it.
        foreground: per channel, HU inside labelled voxels.
        everything: per channel, HU of all voxels.
    """

    case_id: str
    rows: tuple[CheckRow, ...]
    is_usable: bool
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    native: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    voxel_hash: str = ''
    raw_counts: Mapping[int, int] | None = None
    foreground: tuple[Histogram, ...] = ()
    everything: tuple[Histogram, ...] = ()
    midline: float | None = None


def scan_case(task: ScanTask) -> CaseScan:
    """Reads every file of a case once and checks it."""
    return _Scanner(task).run()


class _Scanner:
    def __init__(self, task: ScanTask):
        self._task = task
        self._case = task.case
        self._options = task.options
        self._rows: list[CheckRow] = []
        self._is_usable = True
        self._sha256: dict[str, str] = {}
        self._first: tuple[Orientation, str] | None = None  # geometry that all files must share

    def run(self) -> CaseScan:
        label, raw_counts, native = None, None, {}
        hasher = hashlib.blake2b(digest_size=16)
        everything, foreground = [], []
        label_place, midline = None, None
        if self._case.label is None:
            self._error(
                '',
                'missing_label',
                'no label map',
                'label it; with --allow=missing_label it joins the test split',
            )
        else:
            label, raw_counts, label_place = self._read_label(self._case.label)
        for path in self._case.images:
            volume = self._read(path, volumes.read_image, nan_policy=self._options.nan_policy)
            if volume is None:
                continue
            image, place = nifti.to_canonical(volume)
            native = native or _native(volume.header)
            self._check_image(path, volume, place)
            fits = self._check_place(path, place)
            if midline is None and label is not None and label.shape == image.shape:
                midline = self._split_sides(label, image, place)
            mask = label if fits and label is not None and label.shape == image.shape else None
            every, inside = _histograms(image, mask, hasher)
            everything.append(every)
            foreground.append(inside)
        if label_place is not None and self._case.label is not None:
            self._check_place(self._case.label, label_place)
        place = self._first[0] if self._first else None
        return CaseScan(
            self._case.case_id,
            tuple(self._rows),
            self._is_usable,
            place.shape if place else (),
            place.spacing_mm if place else (),
            native,
            self._sha256,
            hasher.hexdigest() if len(everything) == len(self._case.images) else '',
            raw_counts,
            tuple(foreground),
            tuple(everything),
            midline,
        )

    def _error(
        self, path: str, check: str, value: str, fix: str, *, is_usable: bool = True
    ) -> None:
        if check not in self._options.allow:
            issue = Issue(check, 'error', value, fix)
        else:
            outcome = f'accepted by --allow={check}' if is_usable else 'the case is left out'
            issue = Issue(check, 'warning', value, outcome)
        self._is_usable &= is_usable
        self._rows.append(CheckRow.of(self._case.case_id, path, issue))

    def _warn(self, path: str, check: str, value: str, fix: str) -> None:
        issue = Issue(check, 'warning', value, fix)
        self._rows.append(CheckRow.of(self._case.case_id, path, issue))

    def _read(self, path: str, reader, **kwargs) -> nifti.Volume | None:
        if leaves_folder(path):  # reported once for the data set
            self._is_usable = False
            return None
        try:
            volume = reader(
                self._task.source / path,
                series=self._options.series,
                allow=self._options.allow,
                strict=False,
                assume_orientation=self._options.assume_orientation,
                max_bytes=self._options.max_bytes,
                **kwargs,
            )
        except FileError as error:
            issue = error.issue
            self._error(path, issue.check, issue.value, issue.fix, is_usable=False)
            return None
        self._sha256[path] = volume.sha256
        self._rows.extend(CheckRow.of(self._case.case_id, path, i) for i in volume.issues)
        return volume

    def _read_label(self, path: str):
        like = self._task.source / self._case.images[0]
        masks = self._task.table.masks
        volume = self._read(path, volumes.read_label, masks=masks, like=like)
        if volume is None:
            return None, None, None
        array, place = nifti.to_canonical(volume)
        counts = count_ids(array)
        unknown = self._task.table.unknown(counts)
        if unknown:
            worst = sorted(unknown.items(), key=lambda item: -item[1])[:6]
            listed = ', '.join(f'{raw} ({n:,} voxels)' for raw, n in worst)
            more = f' and {len(unknown) - 6} more ids' if len(unknown) > 6 else ''
            self._error(
                path,
                'label_unknown',
                f'ids without a name: {listed}{more}',
                'name them in the labels; --allow=label_unknown makes them background',
            )
        is_sound = not any(issue.severity == 'error' for issue in volume.issues)
        if not unknown and is_sound and set(self._task.table.store_counts(counts)) <= {0}:
            self._warn(
                path,
                'foreground_absent',
                'background only',
                'nothing to do if nothing is there; its metrics are undefined',
            )
        return self._task.table.convert(array), counts, place

    def _split_sides(
        self, label: np.ndarray, image: np.ndarray, place: Orientation
    ) -> float | None:
        """Splits labels that join right and left, in place; the midline it was done by."""
        if not self._task.table.left_right:
            return None
        midline = body_midline(image)
        for issue in self._task.table.split(label, place.spacing_mm, midline):
            tell = self._error if issue.severity == 'error' else self._warn
            tell(self._case.label or '', issue.check, issue.value, issue.fix)
        return midline

    def _check_place(self, path: str, place: Orientation) -> bool:
        """Compares with the case's first file; also True where a difference is allowed."""
        if self._first is None:
            self._first = place, path
            return True
        first, first_path = self._first
        if place.shape != first.shape:
            self._error(
                path,
                'shape_mismatch',
                f'{place.shape}, but {first_path} is {first.shape} (z, y, x)',
                'pair the right files, or resample one to the other',
                is_usable=False,
            )
            return False
        distance = corner_distance(place.affine, first.affine, first.shape)
        if distance > _SAME_PLACE * min(first.spacing_mm):
            self._error(
                path,
                'affine_mismatch',
                f'up to {distance:.4g} mm from {first_path}',
                'pair the right files, or copy the affine if only the header is wrong',
            )
        return True

    def _check_image(self, path: str, volume: nifti.Volume, place: Orientation) -> None:
        for issue in judge_values(volume.minimum, volume.maximum, volume.is_fractional):
            tell = self._error if issue.severity == 'error' else self._warn
            tell(path, issue.check, issue.value, issue.fix)
        ratio = max(place.spacing_mm) / min(place.spacing_mm)
        if ratio > _MAX_ANISOTROPY:
            edges = ' x '.join(f'{edge:.3g}' for edge in place.spacing_mm)
            self._warn(
                path,
                'anisotropy',
                f'voxel {edges} mm (z, y, x), ratio {ratio:.1f}',
                'expect little use of the third dimension',
            )
        if min(place.shape) == 1:
            self._warn(
                path,
                'single_slice',
                f'shape {place.shape} (z, y, x)',
                'a 3D model sees padding only; leave the case out',
            )


def _native(header) -> dict[str, Any]:
    return {
        'shape': list(header.shape),
        'spacing_mm': list(header.spacing_mm),
        'affine': header.affine.tolist(),
    }


def to_hu(array: np.ndarray) -> np.ndarray:
    """Rounds and clips values [D, H, W] of any type to int16 HU; int16 is returned as it is."""
    if array.dtype == np.int16:
        return array
    out = np.empty(array.shape, np.int16)
    for plane, target in zip(array, out, strict=True):
        target[:] = np.clip(np.rint(plane), INT16.min, INT16.max)
    return out


def _histograms(image: np.ndarray, mask: np.ndarray | None, hasher) -> tuple[Histogram, Histogram]:
    """HU of all and of labelled voxels; feeds shape and voxels to the hash."""
    every, inside = Histogram(), Histogram()
    hasher.update(repr(image.shape).encode())
    for start in range(0, image.shape[0], _SLAB):
        slab = np.ascontiguousarray(to_hu(image[start : start + _SLAB]))
        hasher.update(slab.data)
        every += Histogram.of(slab)
        if mask is not None:
            inside += Histogram.of(slab[mask[start : start + _SLAB] > 0])
    return every, inside


def default_max_bytes(workers: int) -> int:
    """A third of a process's share of the free memory: an image, its result and its label."""
    try:
        with open('/proc/meminfo') as file:
            fields = dict(line.split(':', 1) for line in file)
        free = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2
        except (AttributeError, OSError, ValueError):
            return nifti.MAX_BYTES
    return min(nifti.MAX_BYTES, int(0.8 * free / max(1, workers) / 3))
