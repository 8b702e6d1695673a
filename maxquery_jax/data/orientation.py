"""Axis order: any NIfTI storage order to canonical (z, y, x) and back, voxel for voxel.

Canonical means that the index grows towards Superior, Anterior and Right along axes 0, 1 and 2.
Oblique volumes go to the nearest such order; no voxel is interpolated. Only a sheared grid
(gantry tilt) needs interpolation, see `rectify`.
"""

import dataclasses
import functools

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation
from scipy import ndimage

SHEAR_TOLERANCE = 1e-3  # largest cosine between two axes that still counts as a right angle
_SLAB = 32  # slices interpolated at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Orientation:
    """How a canonical array was obtained from a file's array; inverts exactly.

    Attributes:
        axes: the file's axis behind canonical axes z, y and x.
        flips: whether each canonical axis runs against the file's axis.
        native_shape: the file's shape, in the file's own axis order.
        affine: [4, 4] canonical index (z, y, x, 1) to world mm (Right, Anterior, Superior).
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    native_shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Canonical shape (D, H, W)."""
        d, h, w = (self.native_shape[axis] for axis in self.axes)
        return d, h, w

    @functools.cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges (z, y, x) in mm, from the affine's columns."""
        dz, dy, dx = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return dz, dy, dx

    @functools.cached_property
    def shear(self) -> float:
        """Largest |cosine| between two axes: 0 for a right-angled grid."""
        return shear_of(self.affine)

    @property
    def is_sheared(self) -> bool:
        """Whether `rectify` is needed before spacing describes the grid."""
        return self.shear > SHEAR_TOLERANCE


def shear_of(affine: np.ndarray) -> float:
    """Largest |cosine| between two columns of an affine."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.max(np.abs(np.triu(cosines.T @ cosines, 1))))


def axis_codes(affine: np.ndarray) -> str:
    """The direction in which each index grows, such as 'LPS'."""
    return ''.join(aff2axcodes(affine))


def find_orientation(affine: np.ndarray, shape: tuple[int, ...]) -> Orientation:
    """Finds the nearest canonical order of a volume.

    Args:
        affine: [4, 4] file index (i, j, k, 1) to world mm (R, A, S), not singular.
        shape: the file's shape (3 axes).

    Returns:
        The record that `apply` and `invert` follow.
    """
    to_world = io_orientation(affine)  # row: file axis; columns: world axis, direction
    source = {int(world): axis for axis, (world, _) in enumerate(to_world)}
    axes = (source[2], source[1], source[0])
    flips = tuple(bool(to_world[axis, 1] < 0) for axis in axes)
    canonical = np.eye(4)
    canonical[:3, 3] = affine[:3, 3]
    for k, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        column = affine[:3, axis]
        canonical[:3, k] = -column if flip else column
        if flip:
            canonical[:3, 3] += column * (shape[axis] - 1)
    i, j, k = shape
    return Orientation(axes, (flips[0], flips[1], flips[2]), (i, j, k), canonical)


def apply(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A view of a file's array [i, j, k] in canonical order [D, H, W]."""
    if array.shape != orientation.native_shape:
        raise ValueError(f'array {array.shape} is not of shape {orientation.native_shape}')
    return _flip(array.transpose(orientation.axes), orientation)


def from_canonical(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A view of a canonical array [D, H, W] in the file's own order [i, j, k]."""
    if array.shape != orientation.shape:
        raise ValueError(f'array {array.shape} is not of shape {orientation.shape}')
    return _flip(array, orientation).transpose(np.argsort(orientation.axes))


def _flip(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    step = tuple(slice(None, None, -1) if flip else slice(None) for flip in orientation.flips)
    return array[step]


def rectified_grid(orientation: Orientation) -> tuple[tuple[int, int, int], np.ndarray]:
    """The right-angled grid of the same spacing that covers a sheared one.

    Returns:
        Shape (D, H, W) and affine [4, 4] (index (z, y, x, 1) to world mm).
    """
    spacing = np.asarray(orientation.spacing_mm)
    u, _, v = np.linalg.svd(orientation.affine[:3, :3] / spacing)
    rotation = u @ v  # nearest orthonormal axes
    ends = np.stack(
        np.meshgrid(*([0, size - 1] for size in orientation.shape), indexing='ij'), -1
    ).reshape(-1, 3)
    along = (ends @ orientation.affine[:3, :3].T + orientation.affine[:3, 3]) @ rotation
    low, high = along.min(0), along.max(0)
    d, h, w = (np.floor((high - low) / spacing + 1e-6).astype(int) + 1).tolist()
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = rotation @ low
    return (d, h, w), affine


def rectify(array: np.ndarray, orientation: Orientation, *, order: int, fill: float) -> np.ndarray:
    """Resamples a sheared canonical volume through its affine onto right-angled axes.

    Args:
        array: [D, H, W] canonical volume of `orientation`.
        orientation: of the sheared file.
        order: 1 for images and maps, 0 for labels.
        fill: value outside the volume.

    Returns:
        [D', H', W'] of the same dtype and spacing on `rectified_grid(orientation)`.
    """
    shape, affine = rectified_grid(orientation)
    return _through_affine(array, orientation.affine, affine, shape, order, fill)


def unrectify(
    array: np.ndarray, orientation: Orientation, *, order: int, fill: float
) -> np.ndarray:
    """Brings a volume on `rectified_grid(orientation)` back to the sheared canonical grid."""
    _, affine = rectified_grid(orientation)
    return _through_affine(array, affine, orientation.affine, orientation.shape, order, fill)


def _through_affine(
    array: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    shape: tuple[int, int, int],
    order: int,
    fill: float,
) -> np.ndarray:
    to_source = np.linalg.inv(source) @ target
    out = np.empty(shape, array.dtype)
    for start in range(0, shape[0], _SLAB):
        stop = min(start + _SLAB, shape[0])
        offset = to_source[:3, 3] + to_source[:3, 0] * start
        slab = np.empty((stop - start, *shape[1:]), np.float32)
        ndimage.affine_transform(
            array,
            to_source[:3, :3],
            offset.tolist(),
            slab.shape,
            slab,
            order,
            'grid-constant',
            fill,
            False,
        )
        out[start:stop] = slab if array.dtype.kind == 'f' else np.rint(slab)
    return out
