"""Resampling by nnU-Net's rules, and the intensity and spacing statistics of a data set.

B-spline interpolation is separable, so a volume is resampled by one small matrix per axis, slab by
slab along z: the memory is the input, the output and a few slices, in float32. Voxel centres lie
at half-integers (a volume covers the same box before and after), edges are extended.

Deviation: nnU-Net normalises before it resamples; here HU are resampled, rounded to int16 and
normalised on the accelerator, so that a store serves any intensity window.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

ANISOTROPY = 3.0  # ratio of voxel edges beyond which the coarse axis is treated apart
_SLAB = 32  # output slices at a time
_SUPPORT = 1e-6  # spline weights below this do not reach a rounded HU
_PLANES = 8  # slices resampled in their plane at a time
_BLOCK = 64  # rows of a matrix multiplied at a time
_COUNTED = 1 << 17  # voxels whose neighbours are counted at a time
_LABEL_MAX = 255


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Shape (D, H, W) of the same box at another spacing (z, y, x)."""
    d, h, w = (
        max(1, round(size * old / new))
        for size, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return d, h, w


def coarse_axis(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """The axis to interpolate apart from the others, if any (nnU-Net's separate z).

    It is the one with the largest edge, where edges differ by more than `ANISOTROPY` in the old
    or, failing that, in the new spacing. With two equally coarse axes there is none.
    """
    for spacing in (np.asarray(spacing_mm), np.asarray(new_spacing_mm)):
        if spacing.max() / spacing.min() > ANISOTROPY:
            coarse = np.flatnonzero(spacing == spacing.max())
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def resample_image(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    shape: Sequence[int] | None = None,
    order: int = 3,
    coarse_order: int = 0,
) -> np.ndarray:
    """Resamples an image or a map (nnU-Net: cubic; order 0 along a coarse axis).

    Args:
        image: [D, H, W] integers or float32.
        spacing_mm: (z, y, x) voxel edges of `image`.
        new_spacing_mm: voxel edges of the result.
        shape: of the result; from the spacings if None. Give the original's to go back.
        order: spline order 0, 1 or 3.
        coarse_order: order along a coarse axis (`coarse_axis`), 0 or 1.

    Returns:
        [*shape] of the input's dtype, within the input's range (no overshoot); integers rounded.
    """
    target = tuple(shape or resampled_shape(image.shape, spacing_mm, new_spacing_mm))
    if target == image.shape:
        return image
    apart = coarse_axis(spacing_mm, new_spacing_mm)
    orders = [min(coarse_order, order) if axis == apart else order for axis in range(3)]
    weights = [_weights(*sizes) for sizes in zip(image.shape, target, orders, strict=True)]
    low, high = image.min(), image.max()
    out = np.empty(target, image.dtype)
    for start, slab in _slabs(image, weights):
        np.clip(slab, low, high, out=slab)
        out[start : start + len(slab)] = slab if out.dtype.kind == 'f' else np.rint(slab)
    return out


def resample_label(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    shape: Sequence[int] | None = None,
    method: str = 'linear',
) -> np.ndarray:
    """Resamples a label map: 'linear' weights of each class, the largest wins; or 'nearest'.

    Where a class has at least half the weight this is nnU-Net's rule (ties go to the higher id).
    Deviation: where none has, nnU-Net writes background; here the largest share wins.

    Args:
        label: [D, H, W] ids 0 to 255.
        spacing_mm: (z, y, x) voxel edges of `label`.
        new_spacing_mm: voxel edges of the result.
        shape: of the result; from the spacings if None.
        method: 'linear' or 'nearest'; a coarse axis is always 'nearest'.

    Returns:
        [*shape] uint8.

    Raises:
        ValueError: unknown method, or ids above 255.
    """
    if method not in ('linear', 'nearest'):
        raise ValueError(f'method is {method!r}')
    if label.dtype != np.uint8:
        if label.min() < 0 or label.max() > _LABEL_MAX:
            raise ValueError(f'label ids {label.min()} to {label.max()} do not fit into uint8')
        label = label.astype(np.uint8)
    target = tuple(shape or resampled_shape(label.shape, spacing_mm, new_spacing_mm))
    if target == label.shape:
        return label
    apart = coarse_axis(spacing_mm, new_spacing_mm)
    taps = [
        _taps(*sizes, is_linear=method == 'linear' and axis != apart)
        for axis, sizes in enumerate(zip(label.shape, target, strict=True))
    ]
    out = np.empty(target, np.uint8)
    for start in range(0, target[0], _SLAB):
        indices, shares = (part[start : start + _SLAB] for part in taps[0])
        out[start : start + _SLAB] = _vote(label, [(indices, shares), *taps[1:]])
    return out


@functools.lru_cache(maxsize=32)
def _weights(size: int, new_size: int, order: int) -> np.ndarray | None:
    """[new_size, size] interpolation matrix of one axis; None for the identity."""
    if size == new_size:
        return None
    if order == 0:  # nearest centre, the higher one in the middle (scipy's map_coordinates)
        centres = (np.arange(new_size) + 0.5) * size / new_size
        nearest = np.clip(np.floor(centres + 1e-9).astype(int), 0, size - 1)
        return np.eye(size, dtype=np.float32)[nearest]
    columns = [
        np.asarray(ndimage.zoom(unit, new_size / size, order=order, mode='nearest', grid_mode=True))
        for unit in np.eye(size)
    ]
    matrix = np.stack(columns, axis=1)
    matrix[np.abs(matrix) < _SUPPORT] = 0
    return matrix.astype(np.float32)


def _banded(matrix: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, slice]:
    """Rows `start:stop` of a matrix and the range of columns that they touch."""
    touched = np.flatnonzero(matrix[start:stop].any(axis=0))
    columns = slice(int(touched[0]), int(touched[-1]) + 1)
    return matrix[start:stop, columns], columns


def _in_plane(volume: np.ndarray, weights: Sequence[np.ndarray | None]) -> np.ndarray:
    """[d, H, W] to float32 [d, H', W'], a few slices at a time."""
    height, width = (
        size if matrix is None else len(matrix)
        for size, matrix in zip(volume.shape[1:], weights, strict=True)
    )
    out = np.empty((len(volume), height, width), np.float32)
    for start in range(0, len(volume), _PLANES):
        planes = np.ascontiguousarray(volume[start : start + _PLANES], np.float32)
        if weights[1] is not None:
            planes = _multiply(weights[1], planes.swapaxes(1, 2)).swapaxes(1, 2)
        out[start : start + _PLANES] = _multiply(weights[0], planes)
    return out


def _multiply(matrix: np.ndarray | None, planes: np.ndarray) -> np.ndarray:
    """`matrix` [h, H] times each of `planes` [n, H, W], skipping what is zero."""
    if matrix is None:
        return planes
    out = np.empty((len(planes), len(matrix), planes.shape[2]), np.float32)
    for start in range(0, len(matrix), _BLOCK):  # the weights form a narrow band
        rows, columns = _banded(matrix, start, start + _BLOCK)
        np.matmul(rows, planes[:, columns], out=out[:, start : start + _BLOCK])
    return out


def _slabs(
    image: np.ndarray, weights: Sequence[np.ndarray | None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Resampled slabs (first slice, float32 [n, H', W']); each input slice is visited once."""
    along_z = weights[0]
    if along_z is None:
        for start in range(0, len(image), _SLAB):
            yield start, _in_plane(image[start : start + _SLAB], weights[1:])
        return
    first, ready = 0, _in_plane(image[:0], weights[1:])  # input slices first, first + 1, ...
    for start in range(0, len(along_z), _SLAB):
        rows, columns = _banded(along_z, start, start + _SLAB)
        kept = ready[max(0, columns.start - first) :]
        begin = max(columns.start, first + len(ready))
        added = _in_plane(image[begin : columns.stop], weights[1:])
        first, ready = columns.start, np.concatenate([kept, added])
        slab = rows @ ready[: columns.stop - first].reshape(len(rows[0]), -1)
        yield start, slab.reshape(-1, *ready.shape[1:])


def _taps(size: int, new_size: int, *, is_linear: bool) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation of one axis: indices [new_size, 2] and weights [new_size, 2]."""
    centres = (np.arange(new_size) + 0.5) * size / new_size
    if not is_linear:  # the higher one in the middle
        centres = np.floor(centres + 1e-9) + 0.5
    low = np.floor(centres - 0.5)
    share = centres - 0.5 - low
    indices = np.clip(np.stack([low, low + 1], axis=1).astype(int), 0, size - 1)
    return indices, np.stack([1 - share, share], axis=1)


def _vote(label: np.ndarray, taps: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The label of largest weight among the 8 around each output voxel; ties to the higher id.

    Nearly all voxels have 8 equal neighbours; only the others are counted, so the cost does not
    grow with the number of classes.
    """
    low = high = label
    for axis, (indices, _) in enumerate(taps):
        low, high = (
            choose(part.take(indices[:, 0], axis), part.take(indices[:, 1], axis))
            for choose, part in ((np.minimum, low), (np.maximum, high))
        )
    mixed = np.flatnonzero(low != high)
    winner = low.ravel()
    for start in range(0, len(mixed), _COUNTED):
        voxels = mixed[start : start + _COUNTED]
        z, y, x = np.unravel_index(voxels, low.shape)
        (iz, wz), (iy, wy), (ix, wx) = (
            (indices[place], weights[place])
            for (indices, weights), place in zip(taps, (z, y, x), strict=True)
        )
        around = label[iz[:, :, None, None], iy[:, None, :, None], ix[:, None, None, :]]
        weights = wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]
        winner[voxels] = _heaviest(around.reshape(-1, 8), weights.reshape(-1, 8))
    return winner.reshape(low.shape)


def _heaviest(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Per row of [M, 8] the id whose weights add up to most."""
    best = np.full(len(ids), -1, np.int64)
    for candidate in ids.T:
        share = np.where(ids == candidate[:, None], weights, 0).sum(1)
        # Rounded, so that exact ties go to the higher id in spite of rounding.
        rank = np.rint(share * 1e5).astype(np.int64) * (_LABEL_MAX + 1) + candidate
        np.maximum(best, rank, out=best)
    return best % (_LABEL_MAX + 1)


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """nnU-Net's target spacing: the median; finer along a strongly anisotropic axis.

    If the coarsest axis has both an edge over 3 times the others' and fewer voxels than a third
    of theirs, its 10th percentile is taken, but no finer than the other axes.

    Args:
        spacings_mm: (z, y, x) of every training case.
        shapes: (D, H, W) of every training case.
    """
    spacings, sizes = np.asarray(spacings_mm, float), np.asarray(shapes, float)
    target = np.median(spacings, axis=0)
    size = np.median(sizes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    is_coarse = target[worst] > ANISOTROPY * target[others].max()
    if is_coarse and size[worst] * ANISOTROPY < size[others].min():
        finer = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(finer, target[others].max())
    dz, dy, dx = (round(edge, 6) for edge in target.tolist())
    return dz, dy, dx


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of whole HU; adds up over slabs, cases and processes.

    Attributes:
        start: the value that `counts[0]` counts.
        counts: int64 voxels per value.
    """

    start: int = 0
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: np.ndarray) -> 'Histogram':
        """Counts an int16 array."""
        if not values.size:
            return cls()
        start = int(values.min())
        return cls(start, np.bincount(values.ravel().astype(np.int32) - start).astype(np.int64))

    def __add__(self, other: 'Histogram') -> 'Histogram':
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        start = min(self.start, other.start)
        stop = max(self.start + self.counts.size, other.start + other.counts.size)
        counts = np.zeros(stop - start, np.int64)
        for part in (self, other):
            counts[part.start - start :][: part.counts.size] += part.counts
        return Histogram(start, counts)

    @property
    def total(self) -> int:
        """Voxels counted."""
        return int(self.counts.sum())

    def mean(self) -> float:
        """Mean HU."""
        values = np.arange(self.start, self.start + self.counts.size)
        return float(values @ self.counts / self.total)

    def std(self) -> float:
        """Population standard deviation in HU."""
        values = np.arange(self.start, self.start + self.counts.size) - self.mean()
        return float(np.sqrt(values**2 @ self.counts / self.total))

    def percentile(self, q: float) -> float:
        """The q-th percentile, interpolated as `numpy.percentile` does."""
        rank = (self.total - 1) * q / 100
        ends = np.cumsum(self.counts)
        low, high = np.searchsorted(ends, [np.floor(rank), np.ceil(rank)], side='right')
        return float(self.start + low + (high - low) * (rank - np.floor(rank)))


def intensity_of(histograms: Sequence[Histogram]) -> dict[str, object]:
    """nnU-Net's CT normalisation from the foreground of the training cases.

    Args:
        histograms: one per channel.

    Returns:
        `lower`, `upper` (0.5th and 99.5th percentile), `shift` (mean) and `scale` (standard
        deviation): lists of P floats; and `method`.
    """
    lower = [histogram.percentile(0.5) for histogram in histograms]
    upper = [histogram.percentile(99.5) for histogram in histograms]
    return {
        'method': 'ct_foreground',
        'lower': lower,
        'upper': [max(high, low + 1) for low, high in zip(lower, upper, strict=True)],
        'shift': [histogram.mean() for histogram in histograms],
        'scale': [max(histogram.std(), 1.0) for histogram in histograms],
    }


def intensity_of_window(lower: float, upper: float, num_channels: int) -> dict[str, object]:
    """A fixed HU window mapped to 0..1 (ZePT and the Universal model: -175 to 250)."""
    return {
        'method': 'window',
        'lower': [float(lower)] * num_channels,
        'upper': [float(upper)] * num_channels,
        'shift': [float(lower)] * num_channels,
        'scale': [float(upper - lower)] * num_channels,
    }
