"""How well a phase lies on the reference: overlap, similarity, folding.

Everything is numpy on canonical [D, H, W] arrays, of a few mm per voxel.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from maxquery_jax.data.registration.grids import Grid

BODY_HU = -300.0
SOFT_TISSUE_HU = (-30.0, 300.0)
WINDOW_HU = (-250.0, 350.0)
BINS = 32
_SLAB = 8


@dataclasses.dataclass(frozen=True)
class Likeness:
    """Agreement of a phase with the reference.

    Attributes:
        body_dice: overlap of the body masks, 0 to 1; NaN if both are empty.
        soft_tissue_dice: overlap of soft tissue (-30 to 300 HU) inside the bodies.
        ncc: Pearson correlation of HU clipped to -250..350; NaN for a constant image.
        mutual_information: of the same in nats, 32 bins.
        coverage: share of the reference's body where the phase has data.
    """

    body_dice: float
    soft_tissue_dice: float
    ncc: float
    mutual_information: float
    coverage: float


@dataclasses.dataclass(frozen=True)
class Folding:
    """Where a transform is not invertible.

    Attributes:
        share: of voxels with a Jacobian determinant of zero or less.
        minimum: smallest determinant.
        largest_mm: largest displacement.
    """

    share: float
    minimum: float
    largest_mm: float


def body_mask(image: np.ndarray) -> np.ndarray:
    """[D, H, W] bool: the largest object above -300 HU, its holes in axial planes filled.

    One step of opening takes the table off where it touches by a thin sheet.
    """
    dense = image > BODY_HU
    cross = ndimage.generate_binary_structure(3, 1)
    cross[0, 1, 1] = cross[2, 1, 1] = False  # in plane: slices may be thick
    opened = ndimage.binary_opening(dense, cross)
    parts = np.empty(image.shape, np.int32)
    ndimage.label(opened if opened.any() else dense, output=parts)
    sizes = np.bincount(parts.ravel())
    if len(sizes) < 2:
        return np.zeros(image.shape, bool)
    mask = parts == 1 + int(np.argmax(sizes[1:]))
    for plane in mask:
        ndimage.binary_fill_holes(plane, output=plane)
    return mask


def soft_tissue_mask(image: np.ndarray, body: np.ndarray) -> np.ndarray:
    """[D, H, W] bool: voxels of the body in -30..300 HU."""
    low, high = SOFT_TISSUE_HU
    return body & (image > low) & (image < high)


def compare(
    reference: np.ndarray,
    phase: np.ndarray,
    *,
    body: np.ndarray,
    covered: np.ndarray,
    region: np.ndarray,
) -> Likeness:
    """Compares a phase with the reference inside a region.

    Args:
        reference: [D, H, W] HU.
        phase: the same grid.
        body: mask of the reference.
        covered: where the phase has data.
        region: where to compare; the same for all candidates of a phase.
    """
    inside = np.where(covered, phase, -1024)
    phase_body = body_mask(inside) & region
    own_body = body & region
    near = region & ndimage.binary_dilation(body, iterations=2)
    a, b = (np.clip(image[near], *WINDOW_HU) for image in (reference, phase))
    return Likeness(
        dice(own_body, phase_body),
        dice(soft_tissue_mask(reference, own_body), soft_tissue_mask(phase, phase_body)),
        correlation(a, b),
        mutual_information(a, b),
        float(covered[body].mean()) if body.any() else float('nan'),
    )


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float('nan')


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's coefficient of two vectors."""
    if a.size < 2:
        return float('nan')
    a, b = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (a, b))
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else float('nan')


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two vectors of HU within `WINDOW_HU`."""
    if not a.size:
        return float('nan')
    joint, _, _ = np.histogram2d(a, b, BINS, (WINDOW_HU, WINDOW_HU))
    joint /= joint.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def jacobian_determinant(displacement: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Jacobian determinant of x -> x + u(x), by central differences.

    Args:
        displacement: [D, H, W, 3] u in mm, in world axes (R, A, S).
        affine: [4, 4] index (z, y, x, 1) to world mm.

    Returns:
        [D, H, W].
    """
    by_index = np.zeros((*displacement.shape, 3))  # component, axis
    for axis, size in enumerate(displacement.shape[:3]):
        if size > 1:
            by_index[..., axis] = np.gradient(displacement, axis=axis)
    by_world = np.einsum('...ck,kw->...cw', by_index, np.linalg.inv(affine[:3, :3]))
    return np.linalg.det(by_world + np.eye(3))


def measure_folding(displacement_of: Callable[[Grid], np.ndarray], grid: Grid) -> Folding:
    """Folding of a transform at the voxels of a grid, a few planes at a time.

    Args:
        displacement_of: gives [d, H, W, 3] mm (R, A, S) on some planes of the grid.
        grid: where to look.
    """
    folded, minimum, largest = 0, np.inf, 0.0
    depth = grid.shape[0]
    for start in range(0, depth, _SLAB):
        stop = min(start + _SLAB, depth)
        low, high = max(start - 1, 0), min(stop + 1, depth)  # neighbours for the differences
        u = displacement_of(grid.slab(low, high))
        part = slice(start - low, stop - low)
        determinant = jacobian_determinant(u, grid.affine)[part]
        folded += int((determinant <= 0).sum())
        minimum = min(minimum, float(determinant.min()))
        largest = max(largest, float(np.sqrt((u[part] ** 2).sum(-1).max())))
    return Folding(folded / int(np.prod(grid.shape)), minimum, largest)
