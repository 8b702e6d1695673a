"""Standardized Max Logits (Jung et al., ICCV 2021) in 3D: the row SML of MaxQuery Tab. 1.

The largest logit of a voxel is standardised by the mean and variance that its predicted class had
on the training data, smoothed across the borders between predicted classes, where logits are low
for a reason that is no anomaly, and smoothed again with a dilated Gaussian.

Unspecified in the paper: MaxQuery does not say how it took SML, a method for photographs, to 3D.
Here a border is found and widened with the 6-neighbourhood, borders are filled from 3 x 3 x 3
neighbours, and the Gaussian is dilated within slices only. The reference's lengths in pixels are
taken as voxels of MaxQuery's liver CT (3 x 0.76 x 0.76 mm) and kept in millimetres on coarser
grids, see `default_width` and `default_dilation`: on voxels of 4 mm a border of 3 voxels would
cover whole tumours.
"""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import lax

from maxquery_jax.typing import Array

_WIDTH = 3  # voxels, of the reference: by how much borders are widened at first
_TAPS, _SIGMA = 7, 1.0
_DILATION = 6  # voxels, of the reference
_LIVER_MM = 0.76  # in-plane voxel size of MaxQuery's liver CT
_MIN_VARIANCE = 1e-12


@flax.struct.dataclass
class LogitMoments:
    """Count, mean and sum of squared deviations of the max logits of each predicted class.

    Attributes:
        count: [K] voxels predicted as the class.
        mean: [K].
        m2: [K] sum of (max logit - mean)^2.
    """

    count: Array | np.ndarray
    mean: Array | np.ndarray
    m2: Array | np.ndarray


@flax.struct.dataclass
class SmlStatistics:
    """What a score is standardised by.

    Attributes:
        mean: [K] float32 mean of the max logit over the voxels predicted as a class.
        std: [K] float32 its standard deviation.
    """

    mean: Array | np.ndarray
    std: Array | np.ndarray


def logit_moments(seg_logits: Array) -> LogitMoments:
    """Moments of one batch, in two passes.

    Args:
        seg_logits: [B, D, H, W, K].

    Returns:
        float32 moments; zeros for a class that is predicted nowhere.
    """
    classes = seg_logits.shape[-1]
    flat = seg_logits.astype(jnp.float32).reshape(-1, classes)
    largest = flat.max(-1)
    member = jnp.argmax(flat, -1)[:, None] == jnp.arange(classes)[None]
    count = member.sum(0, dtype=jnp.float32)
    mean = jnp.where(member, largest[:, None], 0.0).sum(0) / jnp.maximum(count, 1.0)
    deviation = largest[:, None] - mean[None]
    return LogitMoments(count, mean, jnp.where(member, jnp.square(deviation), 0.0).sum(0))


def empty_moments(num_classes: int) -> LogitMoments:
    """Moments of no voxel, float64 on the host."""
    return LogitMoments(*(np.zeros(num_classes) for _ in range(3)))


def merge_moments(a: LogitMoments, b: LogitMoments) -> LogitMoments:
    """Moments of both sets of voxels together (Chan et al.), float64 on the host."""
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = (
        [np.asarray(x, np.float64) for x in (m.count, m.mean, m.m2)] for m in (a, b)
    )
    count = n_a + n_b
    share = n_b / np.maximum(count, 1)
    step = mean_b - mean_a
    return LogitMoments(count, mean_a + step * share, m2_a + m2_b + step**2 * n_a * share)


def finish_moments(moments: LogitMoments) -> SmlStatistics:
    """Mean and standard deviation per class.

    Deviation: a class that was never predicted in training has no statistics, and the reference
    divides by zero there. It takes those of all voxels together.

    Raises:
        ValueError: there was no voxel at all.
    """
    count, mean, m2 = (np.asarray(x, np.float64) for x in (moments.count, moments.mean, moments.m2))
    if not count.sum():
        raise ValueError('no voxel was seen')
    pooled_mean = (count * mean).sum() / count.sum()
    pooled_m2 = (m2 + count * (mean - pooled_mean) ** 2).sum()
    variance = np.where(count > 0, m2 / np.maximum(count, 1), pooled_m2 / count.sum())
    return SmlStatistics(
        mean=np.where(count > 0, mean, pooled_mean).astype(np.float32),
        std=np.sqrt(np.maximum(variance, _MIN_VARIANCE)).astype(np.float32),
    )


def default_dilation(spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Dilation of the Gaussian for a voxel size.

    In-plane 6 at 0.76 mm and below, fewer on coarser grids for the same reach in millimetres.
    Slices are several millimetres apart: along z there is no dilation.

    Args:
        spacing_mm: (z, y, x).

    Returns:
        (z, y, x) in voxels.
    """
    return 1, _scaled(_DILATION, spacing_mm[1]), _scaled(_DILATION, spacing_mm[2])


def default_width(spacing_mm: Sequence[float]) -> int:
    """Width of `suppress_boundaries` for a voxel size: 3 at 0.76 mm and below, 1 at 4 mm.

    Args:
        spacing_mm: (z, y, x), of which the in-plane ones count.
    """
    return _scaled(_WIDTH, max(spacing_mm[1:]))


def _scaled(voxels: int, mm: float) -> int:
    """Voxels of `mm` that reach as far as so many of the liver CT do; 1 to `voxels`."""
    return min(voxels, max(1, round(voxels * _LIVER_MM / float(mm))))


def standardise(seg_logits: Array, statistics: SmlStatistics) -> tuple[Array, Array]:
    """s = (max logit - mean of the predicted class) / its standard deviation.

    Args:
        seg_logits: [B, D, H, W, K].
        statistics: of the training data.

    Returns:
        s [B, D, H, W] float32 and the predicted classes [B, D, H, W].
    """
    logits = seg_logits.astype(jnp.float32)
    label = jnp.argmax(logits, -1)
    mean, std = jnp.asarray(statistics.mean), jnp.asarray(statistics.std)
    return (logits.max(-1) - mean[label]) / std[label], label


def find_boundaries(label: Array) -> Array:
    """Voxels that have a 6-neighbour of another class: dilation and erosion differ.

    Args:
        label: [B, D, H, W] integer.

    Returns:
        [B, D, H, W] bool; a border is two voxels wide, one on either side.
    """
    found = jnp.zeros(label.shape, bool)
    for axis in (1, 2, 3):
        length = label.shape[axis]
        before = lax.slice_in_dim(label, 0, length - 1, axis=axis)
        after = lax.slice_in_dim(label, 1, length, axis=axis)
        differs = before != after
        found = found | _extend(differs, axis, 0, 1) | _extend(differs, axis, 1, 0)
    return found


def widen(mask: Array) -> Array:
    """Dilates a bool mask [B, D, H, W] with the 6-neighbourhood."""
    grown = mask
    for axis in (1, 2, 3):
        length = mask.shape[axis]
        before = lax.slice_in_dim(mask, 0, length - 1, axis=axis)
        after = lax.slice_in_dim(mask, 1, length, axis=axis)
        grown = grown | _extend(before, axis, 1, 0) | _extend(after, axis, 0, 1)
    return grown


def suppress_boundaries(score: Array, label: Array, width: int = _WIDTH) -> Array:
    """Fills borders between predicted classes from outside, in `width` + 1 rounds.

    In each round every voxel within 3, 2, 1, then 0 voxels of a border becomes the mean of those of
    its 27 neighbours that are not; without any it keeps its value. At the edge of the patch the
    outermost voxels repeat, as in the reference.

    Args:
        score: [B, D, H, W] float32.
        label: [B, D, H, W] predicted classes.
        width: by how many voxels borders are widened in the first round; one less in each other.

    Returns:
        [B, D, H, W] float32.
    """

    # Loops, although short: written out, XLA fuses the rounds into one another and compiles for
    # half a minute.
    def grow(mask: Array, _: None) -> tuple[Array, Array]:
        return widen(mask), mask

    def fill(score: Array, inside: Array) -> tuple[Array, None]:
        outside = jnp.where(inside, 0.0, 1.0)
        total, count = _sum27(score * outside), _sum27(outside)
        filled = total / jnp.maximum(count, 1.0)
        return jnp.where(inside & (count > 0), filled, score), None

    _, inside = lax.scan(grow, find_boundaries(label), length=width + 1)
    return lax.scan(fill, score, inside[::-1])[0]


def smooth(score: Array, dilation: Sequence[int]) -> Array:
    """Separable Gaussian of 7 taps and sigma 1 (in taps), dilated; the edge repeats.

    Args:
        score: [B, D, H, W] float32; may be smaller than the filter.
        dilation: (z, y, x) distance of the taps in voxels.
    """
    offsets = np.arange(_TAPS) - _TAPS // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis, distance in enumerate(dilation, start=1):
        length = score.shape[axis]
        padded = _pad_edge(score, axis, distance * (_TAPS // 2))
        score = sum(
            float(weight) * lax.slice_in_dim(padded, k * distance, k * distance + length, axis=axis)
            for k, weight in enumerate(weights)
        )  # pyright: ignore[reportAssignmentType]
    return score


def sml_score(
    seg_logits: Array,
    statistics: SmlStatistics,
    *,
    width: int = _WIDTH,
    dilation: Sequence[int] = (1, _DILATION, _DILATION),
) -> Array:
    """Anomaly A = -s after boundary suppression and smoothing.

    Args:
        seg_logits: [B, D, H, W, K].
        statistics: of the training data.
        width: of the borders, see `default_width`.
        dilation: (z, y, x) of the Gaussian, see `default_dilation`.

    Returns:
        [B, D, H, W] float32, larger is more anomalous.
    """
    score, label = standardise(seg_logits, statistics)
    return -smooth(suppress_boundaries(score, label, width), dilation)


def _extend(mask: Array, axis: int, before: int, after: int) -> Array:
    """Pads one axis of a bool mask with False."""
    padding = [(0, 0)] * mask.ndim
    padding[axis] = (before, after)
    return jnp.pad(mask, padding)


def _pad_edge(x: Array, axis: int, count: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (count, count)
    return jnp.pad(x, padding, mode='edge')


def _sum27(x: Array) -> Array:
    """Sum over the 3 x 3 x 3 neighbourhood, the voxel itself included; the edge repeats."""
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1)], mode='edge')
    for window in ((1, 3, 1, 1), (1, 1, 3, 1), (1, 1, 1, 3)):
        padded = lax.reduce_window(padded, 0.0, lax.add, window, (1, 1, 1, 1), 'VALID')
    return padded
