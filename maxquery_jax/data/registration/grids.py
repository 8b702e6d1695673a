"""Grids of voxels, coarser copies of a volume, and their exchange with SimpleITK.

Arrays are canonical, [D, H, W] with indices growing towards S, A, R. World coordinates are NIfTI's
(mm towards Right, Anterior, Superior) on our side and ITK's (Left, Posterior, Superior) inside
SimpleITK; only this module converts.
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from maxquery_jax.data.orientation import Orientation
from maxquery_jax.errors import UserError

MIN_VOXELS = 8  # per axis, below which a volume is not made coarser
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_SLAB = 32  # planes resampled at a time


@functools.cache
def simpleitk() -> Any:
    """The package SimpleITK.

    Raises:
        UserError: it is not installed.
    """
    try:
        package = importlib.import_module('SimpleITK')
    except ImportError:
        raise UserError(
            "registering phases needs SimpleITK: install the extra 'registration', or pip install "
            'SimpleITK'
        ) from None
    package.ProcessObject.SetGlobalWarningDisplay(False)  # they go to stderr, past our messages
    return package


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets ITK work in one thread, so that its sums always round alike.

    Setting the threads of a registration alone is not enough: its helpers take the global number.
    """
    process = simpleitk().ProcessObject
    threads = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(threads)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a canonical volume lie.

    Attributes:
        shape: (D, H, W).
        affine: [4, 4] index (z, y, x, 1) to world mm (R, A, S).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, orientation: Orientation) -> 'Grid':
        """The canonical grid of a volume that was read."""
        return cls(orientation.shape, orientation.affine)

    @functools.cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges (z, y, x)."""
        dz, dy, dx = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return dz, dy, dx

    @functools.cached_property
    def centre_mm(self) -> np.ndarray:
        """[3] world coordinates (R, A, S) of the middle."""
        return self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]

    def points(self) -> np.ndarray:
        """[D, H, W, 3] world coordinates (R, A, S) of the voxels."""
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing='ij'), -1)
        return np.einsum('...j,ij->...i', index, self.affine[:3, :3]) + self.affine[:3, 3]

    def slab(self, start: int, stop: int) -> 'Grid':
        """Planes `start` to `stop` (may lie outside) along z."""
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 0]
        return Grid((stop - start, *self.shape[1:]), affine)

    def factors(self, spacing_mm: float) -> tuple[int, int, int]:
        """Voxels per axis to merge so that edges come near `spacing_mm`."""
        fz, fy, fx = (
            max(1, min(round(spacing_mm / edge), size // MIN_VOXELS))
            for edge, size in zip(self.spacing_mm, self.shape, strict=True)
        )
        return fz, fy, fx

    def coarser(self, factors: tuple[int, int, int]) -> 'Grid':
        """The grid of blocks of voxels; an incomplete block at the end is left out."""
        d, h, w = (size // factor for size, factor in zip(self.shape, factors, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ ((np.array(factors) - 1) / 2)
        affine[:3, :3] *= factors
        return Grid((d, h, w), affine)

    def padded(self, before: int, after: int) -> 'Grid':
        """The grid with more voxels at both ends of every axis."""
        d, h, w = (size + before + after for size in self.shape)
        affine = self.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, before)
        return Grid((d, h, w), affine)


def block_mean(array: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Mean over blocks of [D, H, W]: float32 on `Grid.coarser(factors)`."""
    (fz, fy, fx), shape = factors, array.shape
    d, h, w = (size // factor for size, factor in zip(shape, factors, strict=True))
    out = np.empty((d, h, w), np.float32)
    for plane in range(d):
        slab = array[plane * fz : (plane + 1) * fz, : h * fy, : w * fx]
        out[plane] = slab.reshape(fz, h, fy, w, fx).mean((0, 2, 4), dtype=np.float64)
    return out


class Pyramid:
    """A volume and its coarser copies.

    Attributes:
        array: [D, H, W] int16 HU.
        grid: of the array.
    """

    def __init__(self, array: np.ndarray, grid: Grid):
        self.array, self.grid = array, grid
        self._levels: dict[tuple[int, int, int], tuple[np.ndarray, Grid]] = {}

    def level(self, spacing_mm: float) -> tuple[np.ndarray, Grid]:
        """[d, h, w] float32 HU with edges near `spacing_mm` or as they are, and its grid."""
        factors = self.grid.factors(spacing_mm)
        if factors not in self._levels:
            coarse = block_mean(self.array, factors), self.grid.coarser(factors)
            self._levels[factors] = coarse
        return self._levels[factors]


def to_image(array: np.ndarray, grid: Grid) -> Any:
    """A SimpleITK image of a canonical [D, H, W], or [D, H, W, 3] of vectors (R, A, S)."""
    sitk = simpleitk()
    is_vector = array.ndim == 4
    if is_vector:
        array = array.astype(np.float64) * RAS_TO_LPS
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=is_vector)
    spacing, origin, direction = _itk_geometry(grid)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _itk_geometry(grid: Grid) -> tuple[list[float], list[float], list[float]]:
    spacing = np.array(grid.spacing_mm)
    direction = (grid.affine[:3, :3] / spacing)[:, ::-1] * RAS_TO_LPS[:, None]
    origin = grid.affine[:3, 3] * RAS_TO_LPS
    return spacing[::-1].tolist(), origin.tolist(), direction.ravel().tolist()


def resample(
    image: Any, grid: Grid, transform: Any | None, *, fill: float, is_nearest: bool = False
) -> np.ndarray:
    """Values of a SimpleITK image at the voxels of a grid.

    Args:
        image: the moving image.
        grid: the fixed grid.
        transform: maps world points of the grid to points of the image; None for the identity.
        fill: value outside the image.
        is_nearest: nearest voxel instead of trilinear interpolation.

    Returns:
        [D, H, W] of the image's type, float32 for any floats; integers are rounded.
    """
    sitk = simpleitk()
    dtype = sitk.GetArrayViewFromImage(image).dtype
    is_float = dtype.kind == 'f'
    method = sitk.sitkNearestNeighbor if is_nearest else sitk.sitkLinear
    result = np.empty(grid.shape, np.float32 if is_float else dtype)
    for start in range(0, grid.shape[0], _SLAB):
        stop = min(start + _SLAB, grid.shape[0])
        part = grid.slab(start, stop)
        spacing, origin, direction = _itk_geometry(part)
        # Into float32 and rounded here: ITK cuts fractions off when it writes integers.
        out = sitk.Resample(
            image,
            part.shape[::-1],
            transform or sitk.Transform(),
            method,
            origin,
            spacing,
            direction,
            fill,
            sitk.sitkFloat32,
        )
        values = sitk.GetArrayFromImage(out)
        result[start:stop] = values if is_float else np.rint(values)
    return result


def displacement_of(transform: Any, grid: Grid) -> np.ndarray:
    """[D, H, W, 3] mm (R, A, S) by which a transform moves the voxels of a grid."""
    sitk = simpleitk()
    spacing, origin, direction = _itk_geometry(grid)
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.shape[::-1], origin, spacing, direction
    )
    return sitk.GetArrayFromImage(field) * RAS_TO_LPS


def field_transform(field: np.ndarray, grid: Grid) -> Any:
    """The transform of a displacement field [D, H, W, 3] in mm (R, A, S); identity outside."""
    return simpleitk().DisplacementFieldTransform(to_image(field, grid))
