"""Splits a label that joins both sides of a paired organ into a right and a left one.

The rule, on a canonical array (the last index grows towards the patient's right):

1. The organ and the tumours inside it are taken together, so that a tumour keeps the pieces of its
   kidney in one, and fall into 26-connected pieces.
2. If the two largest pieces are each at least a tenth of the largest and their centres are 30 mm or
   more apart from left to right, they are the two sides, and the dividing plane lies midway.
   Otherwise the plane is the body's midline: the median column of everything denser than fat in
   the image, or the middle of the volume where there is no image.
3. Every piece goes to the side its centre is on; crumbs are kept.
4. A piece with a fifth or more of its voxels beyond the plane joins both sides (horseshoe kidney,
   touching lungs). If its thinnest sagittal section within 25 mm of the plane is at most a quarter
   of its thickest, it is cut there: warning `left_right`. Otherwise, error `left_right`;
   `--allow=left_right` cuts it at the plane.
5. If all that was found lies on one side: warning `left_right`, or an error if its centre is within
   10 mm of the plane, where the side is a guess.

CLIP-Driven Universal Model, whose recipe ZePT follows, takes the two largest pieces without looking
where they lie, drops the others, and counts both as one side where there is a single piece.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from maxquery_jax.data.findings import Issue

_SECOND = 0.1  # share of the largest piece that makes another one a side
_APART_MM = 30.0
_BEYOND = 0.2  # share of a piece beyond the plane
_BRIDGE_MM = 25.0
_BRIDGE = 0.25  # thinnest by thickest section of a piece that may be cut
_UNSURE_MM = 10.0
_DENSE_HU = -200
_SLAB = 16


@dataclasses.dataclass(frozen=True)
class LeftRight:
    """How to split one label.

    Attributes:
        name: of the joint label, for messages.
        joint: its id in the array before the split.
        right: id of the right side.
        left: id of the left side.
        inside: ids of the tumours inside the organ.
    """

    name: str
    joint: int
    right: int
    left: int
    inside: tuple[int, ...] = ()


def body_midline(image: np.ndarray) -> float:
    """Median column of everything denser than fat, or the middle column.

    Args:
        image: [D, H, W] HU.

    Returns:
        Index along the last axis.
    """
    counts = np.zeros(image.shape[2], np.int64)
    for start in range(0, image.shape[0], _SLAB):
        counts += (image[start : start + _SLAB, ::2] > _DENSE_HU).sum((0, 1))
    total = np.cumsum(counts)
    if not total[-1]:
        return (image.shape[2] - 1) / 2
    return float(np.searchsorted(total, total[-1] / 2))


def split_left_right(
    label: np.ndarray,
    rules: Sequence[LeftRight],
    spacing_mm: Sequence[float],
    midline: float | None = None,
) -> list[Issue]:
    """Splits the joint labels of a canonical array in place.

    Args:
        label: [D, H, W] uint8; afterwards no `joint` id is left.
        rules: one per joint label.
        spacing_mm: (z, y, x).
        midline: index of the body's midline along x; None for the middle of the volume.

    Returns:
        Issues `left_right`; see the module for when.
    """
    middle = (label.shape[2] - 1) / 2 if midline is None else midline
    return [issue for rule in rules for issue in _split(label, rule, spacing_mm[2], middle)]


def _split(label: np.ndarray, rule: LeftRight, dx: float, midline: float) -> list[Issue]:
    wanted = np.zeros(256, bool)
    wanted[[rule.joint, *rule.inside]] = True
    box = _box(label, wanted)
    if box is None:
        return []
    crop, offset = label[box], box[2].start
    pieces = np.empty(crop.shape, np.int32)
    ndimage.label(wanted[crop], np.ones((3, 3, 3), bool), pieces)
    sizes, centres, organ = _measure(pieces, crop == rule.joint, int(pieces.max()))
    is_organ = organ > 0  # a tumour on its own gives nothing to split
    if not is_organ.any():
        return []
    sizes, centres = np.where(is_organ, sizes, 0), centres + offset
    plane, is_paired = _plane(sizes, centres, dx, midline)
    is_left = centres < plane
    issues, cuts = [], {}
    for piece in np.flatnonzero(sizes >= max(1, _SECOND * sizes.max())):
        section = np.zeros(label.shape[2], np.int64)
        section[box[2]] = sum((plane_ids == piece).sum(0) for plane_ids in pieces)
        cut, issue = _cut(section, rule.name, dx, plane)
        if cut is not None:
            cuts[piece] = cut - offset
            issues.append(issue)
    columns = np.arange(crop.shape[2])
    for ids, target in zip(pieces, crop, strict=True):
        left = is_left[ids]
        for piece, cut in cuts.items():
            left = np.where(ids == piece, columns < cut, left)
        target[:] = np.where(target == rule.joint, np.where(left, rule.left, rule.right), target)
    if not cuts and not is_paired:
        issues += _one_sided(sizes, centres, is_left, rule.name, dx, plane)
    return [issue for issue in issues if issue is not None]


def _box(label: np.ndarray, wanted: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds the wanted ids."""
    used = [np.zeros(size, bool) for size in label.shape]
    for z, plane in enumerate(label):
        mask = wanted[plane]
        used[0][z] = mask.any()
        used[1] |= mask.any(1)
        used[2] |= mask.any(0)
    if not used[0].any():
        return None
    ends = [np.flatnonzero(axis)[[0, -1]] for axis in used]
    z, y, x = (slice(int(first), int(last) + 1) for first, last in ends)
    return z, y, x


def _measure(
    pieces: np.ndarray, organ: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels, mean column and organ voxels of every piece; entry 0 is the background's, zeroed."""
    sizes, moments, organs = (np.zeros(count + 1) for _ in range(3))
    columns = np.broadcast_to(np.arange(pieces.shape[2], dtype=np.float64), pieces.shape[1:])
    for plane, is_organ in zip(pieces, organ, strict=True):
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
        moments += np.bincount(plane.ravel(), columns.ravel(), minlength=count + 1)
        organs += np.bincount(plane[is_organ], minlength=count + 1)
    sizes[0] = organs[0] = 0
    return sizes, moments / np.maximum(sizes, 1), organs


def _plane(sizes: np.ndarray, centres: np.ndarray, dx: float, midline: float) -> tuple[float, bool]:
    """Column that divides right from left, and whether two pieces decided it."""
    first, *others = np.argsort(-sizes, kind='stable')[:2]
    for second in others:
        is_large = sizes[second] >= max(1, _SECOND * sizes[first])
        if is_large and abs(centres[first] - centres[second]) * dx >= _APART_MM:
            return float(centres[first] + centres[second]) / 2, True
    return midline, False


def _cut(
    section: np.ndarray, name: str, dx: float, plane: float
) -> tuple[float | None, Issue | None]:
    """Column at which to cut a piece with these sagittal areas; None to leave it whole."""
    columns = np.arange(len(section))
    left = section[columns < plane].sum()
    total = section.sum()
    if min(left, total - left) < _BEYOND * total:
        return None, None
    near = np.abs(columns - plane) * dx <= _BRIDGE_MM
    near[[int(np.clip(round(plane), 0, len(section) - 1))]] = True
    thinnest = int(columns[near][np.argmin(section[near])])
    share = section[thinnest] / section.max()
    found = f'{name}: one piece of {total:,} voxels lies on both sides'
    if share <= _BRIDGE:
        where = abs(thinnest - plane) * dx
        return thinnest, Issue(
            'left_right',
            'warning',
            f'{found}, joined by a bridge',
            f'cut at its thinnest section, {where:.0f} mm from the dividing plane',
        )
    return plane, Issue(
        'left_right',
        'error',
        f'{found} and has no thin place (thinnest {share:.0%} of the thickest section)',
        'label the sides apart; --allow=left_right cuts it at the midline',
    )


def _one_sided(
    sizes: np.ndarray, centres: np.ndarray, is_left: np.ndarray, name: str, dx: float, plane: float
) -> list[Issue]:
    if len({bool(left) for left in is_left[sizes >= max(1, _SECOND * sizes.max())]}) > 1:
        return []
    distance = abs(float(np.average(centres, weights=sizes)) - plane) * dx
    side = 'left' if is_left[np.argmax(sizes)] else 'right'
    if distance < _UNSURE_MM:
        return [
            Issue(
                'left_right',
                'error',
                f'{name}: all of it lies within {distance:.0f} mm of the midline, so its side is '
                'unknown',
                f'label the sides apart; --allow=left_right calls it {side}',
            )
        ]
    value = f'{name}: only the {side} one is there, {distance:.0f} mm from the midline'
    return [Issue('left_right', 'warning', value, 'nothing to do if the other is absent')]
