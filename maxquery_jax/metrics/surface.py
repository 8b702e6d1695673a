"""Surface distances of masks: NSD and HD95, by the definitions of DeepMind's `surface-distance`.

A surface is the set of voxel corners whose 2 x 2 x 2 neighbourhood is mixed, each with the area of
the surface that crosses it; voxels outside the volume are empty. From the distance of each corner
to the other mask's surface:

- NSD, the normalised surface distance or surface Dice: the share of both areas within a tolerance.
- HD95: the distance below which 95% of the area lies, the larger of the two directions, in mm.

Policy for empty masks: both empty leaves both undefined (NaN). One empty gives NSD 0 and HD95
infinity; means leave out an infinite HD95, and how many there were has to stand beside it, since
a method that finds less would look better otherwise.

The library gives the areas and both formulas. Its own distances need some 60 bytes per voxel of
the box around both masks, a sort in Python, and names that scipy 2 drops; here they come from a
k-d tree over the surface: about 100 bytes per corner, a few MB for an organ whatever the size of
the scan. Only a mask that is noise throughout the scan has more corners than that.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import surface_distance
from scipy import ndimage, spatial
from surface_distance import lookup_tables

NSD_TOLERANCE_MM = 2.0
"""Unspecified in the papers; 2 mm is what the MedSAM papers use."""

_PERCENT = 95
_BLOCK_CORNERS = 1 << 20  # looked at in one go: temporaries of about 100 MB
_ALL_INSIDE = 255


@dataclasses.dataclass(frozen=True)
class SurfaceMetrics:
    """Surface metrics of one case, a value per class.

    Attributes:
        nsd: [K] in [0, 1]; NaN where both masks are empty.
        hd95_mm: [K] in mm; NaN where both masks are empty, infinity where one is.
    """

    nsd: np.ndarray
    hd95_mm: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Surface:
    """Corners [n, 3] (index along each axis, int32) and the area at each [n], mm2."""

    corners: np.ndarray
    areas: np.ndarray


def measure_surfaces(
    prediction: np.ndarray,
    truth: np.ndarray,
    class_ids: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> SurfaceMetrics:
    """Measures each class of a label map.

    Args:
        prediction: [D, H, W] integer labels, 0 and more.
        truth: the same shape.
        class_ids: K labels of 1 and more.
        spacing_mm: voxel size along each axis.
        tolerance_mm: of the NSD.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f'shapes differ: {prediction.shape} and {truth.shape}')
    highest = max(class_ids, default=0)
    boxes = [ndimage.find_objects(labels, highest) for labels in (prediction, truth)]
    values = [
        _measure_class(
            (prediction, truth), (boxes[0][i - 1], boxes[1][i - 1]), i, spacing_mm, tolerance_mm
        )
        for i in class_ids
    ]
    nsd, hd95_mm = np.array(values, np.float64).reshape(-1, 2).T
    return SurfaceMetrics(nsd, hd95_mm)


def _measure_class(
    labels: tuple[np.ndarray, np.ndarray],
    boxes: tuple[tuple[slice, ...] | None, tuple[slice, ...] | None],
    class_id: int,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float, float]:
    """NSD and HD95 of one class; a box is None where the class does not occur."""
    predicted_box, true_box = boxes
    if predicted_box is None or true_box is None:
        return (np.nan, np.nan) if predicted_box is true_box else (0.0, np.inf)
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    predicted = _find_surface(labels[0], predicted_box, class_id, areas)
    true = _find_surface(labels[1], true_box, class_id, areas)
    distances = {
        **_directed('gt', 'pred', true, predicted, spacing_mm),
        **_directed('pred', 'gt', predicted, true, spacing_mm),
    }
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(surface_distance.compute_robust_hausdorff(distances, _PERCENT))


def _find_surface(
    labels: np.ndarray, box: tuple[slice, ...], class_id: int, area_table: np.ndarray
) -> _Surface:
    """The surface of a class inside the box that holds it, slab by slab.

    Args:
        labels: [D, H, W].
        box: smallest one around the class.
        class_id: label of the class.
        area_table: [256] area of each neighbourhood, mm2.

    Returns:
        Corners in the indices of `labels`: corner c lies between voxels c - 1 and c.
    """
    crop = labels[box]
    depth, height, width = crop.shape
    thickness = max(1, _BLOCK_CORNERS // ((height + 1) * (width + 1)))
    corners, areas = [], []
    for start in range(0, depth + 1, thickness):
        stop = min(start + thickness, depth + 1)
        first, last = max(start - 1, 0), min(stop, depth)
        inside = np.zeros((stop - start + 1, height + 2, width + 2), np.uint8)
        offset = first - (start - 1)
        inside[offset : offset + last - first, 1:-1, 1:-1] = crop[first:last] == class_id
        codes = _neighbourhood_codes(inside)
        places = np.flatnonzero((codes != 0) & (codes != _ALL_INSIDE))
        index = np.stack(np.unravel_index(places, codes.shape), axis=1).astype(np.int32)
        corners.append(index + np.array([start, 0, 0], np.int32))
        areas.append(area_table[codes.ravel()[places]])
    shift = np.array([part.start for part in box], np.int32)
    return _Surface(np.concatenate(corners) + shift, np.concatenate(areas))


def _neighbourhood_codes(inside: np.ndarray) -> np.ndarray:
    """A bit per voxel around each inner corner: [d, h, w] of 0 or 1 to uint8 [d-1, h-1, w-1]."""
    shape = tuple(size - 1 for size in inside.shape)
    codes = np.zeros(shape, np.uint8)
    for offset, weight in np.ndenumerate(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL):
        part = tuple(slice(o, o + size) for o, size in zip(offset, shape, strict=True))
        codes |= inside[part] * np.uint8(weight)
    return codes


def _directed(
    name: str, other_name: str, surface: _Surface, other: _Surface, spacing_mm: Sequence[float]
) -> dict[str, np.ndarray]:
    """Distances from one surface to the other and its areas, as the library's formulas want them.

    They are sorted by distance. Distances are of whole numbers of voxels, so that one which equals
    the tolerance is not lost to rounding.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    # The corners lie on a grid: median splits would only cost time.
    tree = spatial.KDTree(other.corners * spacing, balanced_tree=False, compact_nodes=False)
    distances = np.empty(len(surface.corners))
    for start in range(0, len(distances), _BLOCK_CORNERS):
        part = slice(start, start + _BLOCK_CORNERS)
        _, nearest = tree.query(surface.corners[part] * spacing)
        steps = (surface.corners[part] - other.corners[nearest]) * spacing
        distances[part] = np.sqrt(np.square(steps).sum(axis=1))
    order = np.argsort(distances, kind='stable')
    return {
        f'distances_{name}_to_{other_name}': distances[order],
        f'surfel_areas_{name}': surface.areas[order],
    }
