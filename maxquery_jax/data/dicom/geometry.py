"""Slices in space: sorted along their normal, checked for gaps, turned into an affine.

File names and InstanceNumber play no part: scanners number from head or from feet, and copies
rename. Positions are those of DICOM (PS3.3 C.7.6.2.1.1): the centre of the first pixel, in mm to
the patient's Left, Posterior and Superior. An affine here is to Right, Anterior, Superior.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from maxquery_jax.data.dicom.slices import Slice
from maxquery_jax.data.findings import Findings
from maxquery_jax.data.orientation import SHEAR_TOLERANCE, shear_of

# Headers are often rounded to 0.1 mm: a slice may lie off its place by this part of a step.
_OFF_PLACE = 0.1
_SAME_MM = 0.01  # two slices nearer than this lie at one place
_SAME_TURN = 1e-3  # largest difference between direction cosines of one series
_SNAP = 0.05  # pixels that a whole stack may drift sideways and still count as upright
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stack:
    """Slices in the order of the third array axis.

    Attributes:
        slices: one per place.
        duplicates: further slices at the place of `slices[k]`, by k.
        affine: [4, 4] index (column, row, slice, 1) to world mm (R, A, S).
    """

    slices: tuple[Slice, ...]
    duplicates: dict[int, tuple[Slice, ...]]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        columns, rows = self.slices[0].shape
        return columns, rows, len(self.slices)


def stack_slices(slices: Sequence[Slice], findings: Findings) -> Stack:
    """Orders the slices of a series.

    Args:
        slices: in any order.
        findings: receives a warning about gantry tilt.

    Raises:
        FileError: `dicom_geometry` (tags missing, sizes or orientations that differ), `spacing`
            or `dicom_gap` (slices missing or unevenly spaced).
    """
    _require_tags(slices, findings)
    _require_equal(slices, findings)
    first = slices[0]
    assert first.orientation is not None and first.pixel_spacing_mm is not None
    turn = np.reshape(first.orientation, (2, 3)) / np.linalg.norm(
        np.reshape(first.orientation, (2, 3)), axis=1, keepdims=True
    )
    normal = np.cross(turn[0], turn[1])
    normal /= np.linalg.norm(normal)
    order = sorted(slices, key=lambda s: (float(normal @ s.position_mm), s.sop_uid, s.file))
    places = _group_places(order)
    kept = [group[0] for group in places]
    positions = np.array([item.position_mm for item in kept])
    row_gap, column_gap = first.pixel_spacing_mm
    step = _step(kept, positions, normal, findings)
    affine = np.eye(4)
    affine[:3, 0] = turn[0] * column_gap
    affine[:3, 1] = turn[1] * row_gap
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    affine = _LPS_TO_RAS @ affine + 0.0  # no negative zeros
    shear = shear_of(affine)
    if shear > SHEAR_TOLERANCE:
        findings.warn(
            'affine_sheared',
            f'axes off by {np.degrees(np.arcsin(shear)):.2f} degrees (gantry tilt)',
            'resampled through the affine; prefer a scan without gantry tilt',
        )
    duplicates = {k: tuple(group[1:]) for k, group in enumerate(places) if len(group) > 1}
    return Stack(tuple(kept), duplicates, affine)


def _require_tags(slices: Sequence[Slice], findings: Findings) -> None:
    for item in slices:
        if item.missing_tags:
            bad = sum(bool(other.missing_tags) for other in slices)
            raise findings.fatal(
                'dicom_geometry',
                f'{item.file}: no usable {", ".join(item.missing_tags)} ({bad} of {len(slices)} '
                'slices)',
                'export the series again with its geometry',
            )


def _require_equal(slices: Sequence[Slice], findings: Findings) -> None:
    sizes = collections.Counter(item.shape for item in slices)
    if len(sizes) > 1:
        counts = ', '.join(f'{n} of {c} x {r}' for (c, r), n in sizes.most_common(4))
        odd = next(item for item in slices if item.shape != sizes.most_common(1)[0][0])
        raise findings.fatal(
            'dicom_geometry',
            f'slices of {len(sizes)} sizes: {counts}, such as {odd.file}',
            'take the slices apart into folders',
        )
    first = slices[0]
    turns = np.array([item.orientation for item in slices])
    gaps = np.array([item.pixel_spacing_mm for item in slices])
    cosines = np.linalg.norm(turns.reshape(-1, 2, 3), axis=2)
    dots = (turns[:, :3] * turns[:, 3:]).sum(1)
    bad = (abs(cosines - 1).max(1) > 0.01) | (abs(dots) > 0.01)
    if bad.any():
        item = slices[int(bad.argmax())]
        raise findings.fatal(
            'dicom_geometry',
            f'{item.file}: ImageOrientationPatient {turns[bad.argmax()].tolist()} is no rotation',
            'export the series again',
        )
    if not (gaps > 0).all() or (gaps > 100).any():
        item = slices[int((~((gaps > 0) & (gaps <= 100)).all(1)).argmax())]
        raise findings.fatal(
            'spacing',
            f'{item.file}: PixelSpacing is {list(item.pixel_spacing_mm or ())}',
            'export the series again',
        )
    typical = np.median(turns, axis=0)
    for name, off in (
        ('orientation', abs(turns - typical).max(1) > _SAME_TURN),
        ('pixel spacing', (abs(gaps / np.median(gaps, axis=0) - 1) > _SAME_TURN).any(1)),
        ('rescaling', [(s.slope is None) != (first.slope is None) for s in slices]),
    ):
        if np.any(off):
            item = slices[int(np.argmax(off))]
            raise findings.fatal(
                'dicom_geometry',
                f'{int(np.sum(off))} of {len(slices)} slices differ in {name}, such as {item.file}',
                'take the slices apart into folders',
            )


def _group_places(order: Sequence[Slice]) -> list[list[Slice]]:
    groups: list[list[Slice]] = []
    for item in order:
        if groups and np.allclose(
            groups[-1][0].position_mm or (), item.position_mm or (), rtol=0, atol=_SAME_MM
        ):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _step(
    kept: Sequence[Slice], positions: np.ndarray, normal: np.ndarray, findings: Findings
) -> np.ndarray:
    """From one slice to the next, mm (L, P, S)."""
    pixel = min(kept[0].pixel_spacing_mm or ())
    if len(kept) == 1:
        if not kept[0].thickness_mm or kept[0].thickness_mm <= 0:
            raise findings.fatal(
                'dicom_geometry', 'one slice without SliceThickness', 'give the whole series'
            )
        return normal * kept[0].thickness_mm
    heights = positions @ normal
    steps = np.diff(heights)
    _require_even(kept, heights, steps, findings)
    step = (positions[-1] - positions[0]) / (len(kept) - 1)
    drift = step - normal * (step @ normal)
    if np.linalg.norm(drift) * (len(kept) - 1) < _SNAP * pixel:
        step = normal * (step @ normal)
    line = positions[0] + np.arange(len(kept))[:, None] * step
    aside = positions - line
    aside -= (aside @ normal)[:, None] * normal
    off = np.linalg.norm(aside, axis=1)
    if off.max() > _OFF_PLACE * pixel + _SAME_MM:
        raise findings.fatal(
            'dicom_geometry',
            f'{kept[int(off.argmax())].file} lies {off.max():.4g} mm aside of the others',
            'the field of view moved: take the slices apart into folders',
        )
    return step


def _require_even(
    kept: Sequence[Slice], heights: np.ndarray, steps: np.ndarray, findings: Findings
) -> None:
    """Raises `dicom_gap` unless the heights are evenly spaced but for rounding."""
    typical = float(np.median(steps))
    line = np.linspace(heights[0], heights[-1], len(heights))
    if abs(heights - line).max() <= _OFF_PLACE * typical and typical > _SAME_MM:
        return
    wide = np.flatnonzero(steps > 1.5 * typical)
    k = int(wide[0]) if wide.size else int(abs(steps - typical).argmax())
    missing = int(sum(round(float(steps[i]) / typical) - 1 for i in wide)) if typical > 0 else 0
    what = f'about {missing} slices are missing' if missing else 'the slices are unevenly spaced'
    raise findings.fatal(
        'dicom_gap',
        f'{what}: {steps[k]:.4g} mm instead of {typical:.4g} between slices {k + 1} and {k + 2} of '
        f'{len(kept)} ({kept[k].file} and {kept[k + 1].file})',
        'export the whole series',
    )
