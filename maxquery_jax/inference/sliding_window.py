"""Sliding-window prediction that reduces finished slices online (nnU-Net's tiling).

Tiles are visited by increasing z. Only one slab of accumulators, as deep as a patch, exists at a
time: as soon as no later tile can touch a slice, the slice is reduced to a class (uint8) and to
one float16 value per anomaly score, and leaves through the generator. Memory is therefore

    4 * patch_depth * H * W * (K + S + 1) bytes  (K channels of logits, S scores, 1 weight)

and never grows with classes x volume.

What is averaged: the class logits Z and the anomaly score maps A, each weighted by the Gaussian
importance (and over the mirrored passes). Unspecified in the paper: MaxQuery does not say how
overlapping tiles are merged. Averaging the query response R and taking the maximum over queries
afterwards is not the same as averaging A = -max_N R, but A needs 1 channel where R needs N, and
the queries that respond in two overlapping tiles need not agree; so Z and A are averaged.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from maxquery_jax.inference.decision import Decision, largest_logit
from maxquery_jax.inference.tile_program import gaussian_importance
from maxquery_jax.typing import Array

Size = tuple[int, int, int]
TileFunction = Callable[[np.ndarray], Array]


class Volume(Protocol):
    """Raw intensities [D, H, W, P] that can be cut: an array, a memory map."""

    def __getitem__(self, area: Any, /) -> np.ndarray:
        """A box of voxels, all channels."""
        ...


_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one volume lie.

    Attributes:
        shape: (D, H, W) of the volume.
        patch_size: (D, H, W) of a tile.
        padded_shape: the volume's shape, enlarged to at least one patch along each axis.
        margin: voxels of padding before the volume along each axis.
        starts: first voxel of every tile per axis, in the padded volume.
    """

    shape: Size
    patch_size: Size
    padded_shape: Size
    margin: Size
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def num_tiles(self) -> int:
        """Tiles in the whole volume."""
        return math.prod(len(axis) for axis in self.starts)


@dataclasses.dataclass(frozen=True)
class Slab:
    """A run of finished slices.

    Attributes:
        start: first slice in the volume.
        label: [d, H, W] uint8 class, decided on the mean logits.
        scores: name to [d, H, W] float16 mean anomaly score.
    """

    start: int
    label: np.ndarray
    scores: dict[str, np.ndarray]


def axis_starts(size: int, patch: int, step_size: float) -> tuple[int, ...]:
    """Spreads tiles evenly over one axis (nnU-Net's rule).

    Args:
        size: voxels along the axis, at least `patch`.
        patch: voxels of a tile.
        step_size: largest distance between neighbours as a fraction of `patch`, in (0, 1].

    Returns:
        First voxel of each tile; the first is 0, the last ends with the axis.
    """
    count = math.ceil((size - patch) / (patch * step_size)) + 1
    if count < 2:
        return (0,)
    step = (size - patch) / (count - 1)
    return tuple(int(np.round(step * i)) for i in range(count))


def plan_tiles(shape: Sequence[int], patch_size: Sequence[int], step_size: float = 0.5) -> TilePlan:
    """Plans the tiles of a volume; a volume smaller than the patch is padded around its centre.

    Args:
        shape: (D, H, W) of the volume.
        patch_size: (D, H, W) of a tile.
        step_size: distance between tiles as a fraction of the patch, in (0, 1].

    Raises:
        ValueError: if `step_size` is outside (0, 1].
    """
    if not 0 < step_size <= 1:
        raise ValueError(f'step_size must lie in (0, 1], got {step_size}')
    depth, height, width = (int(size) for size in shape)
    patch = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
    padded = (max(depth, patch[0]), max(height, patch[1]), max(width, patch[2]))
    margin = ((padded[0] - depth) // 2, (padded[1] - height) // 2, (padded[2] - width) // 2)
    starts = (
        axis_starts(padded[0], patch[0], step_size),
        axis_starts(padded[1], patch[1], step_size),
        axis_starts(padded[2], patch[2], step_size),
    )
    return TilePlan((depth, height, width), patch, padded, margin, starts)


def predict_slabs(
    volume: Volume,
    tile_fn: TileFunction,
    plan: TilePlan,
    *,
    num_classes: int,
    score_names: Sequence[str],
    lower: Sequence[float],
    decide: Decision = largest_logit,
    batch_size: int = 1,
    reuse_air: bool = True,
    on_tiles: Callable[[int], None] | None = None,
) -> Iterator[Slab]:
    """Predicts a volume and yields its slices in order as soon as they are final.

    Args:
        volume: [D, H, W, P] raw intensities; anything that can be sliced.
        tile_fn: raw tiles [b, *patch, P] to weighted [b, *patch, K + S], see `TileProgram`.
        plan: from `plan_tiles(volume.shape[:3], ...)`.
        num_classes: K channels of logits, at most 256.
        score_names: names of the last S channels.
        lower: P lower bounds of the intensity window; pads volumes smaller than the patch.
        decide: turns logits into classes.
        batch_size: tiles per call of `tile_fn`; the last batch is padded, so that it is always
            the same compiled program.
        reuse_air: computes tiles that lie entirely at or below `lower` once. This is exact, not
            an approximation: clipping makes all of them the same input.
        on_tiles: called with the number of tiles finished since the last call.

    Yields:
        Slabs that together cover the volume once, from the first slice to the last.

    Raises:
        FloatingPointError: if the network returned NaN or infinity.
    """
    depth, height, width = plan.padded_shape
    patch = plan.patch_size
    weight = gaussian_importance(patch)
    total = np.zeros((patch[0], height, width, num_classes + len(score_names)), np.float32)
    total_weight = np.zeros((patch[0], height, width), np.float32)
    source = _TileSource(volume, plan, np.asarray(lower), batch_size, reuse_air, tile_fn)
    for row, z in enumerate(plan.starts[0]):
        for (y, x), contribution in source.row(z):
            area = (slice(None), slice(y, y + patch[1]), slice(x, x + patch[2]))
            total[area] += contribution
            total_weight[area] += weight
            if on_tiles is not None:
                on_tiles(1)
        following = plan.starts[0][row + 1] if row + 1 < len(plan.starts[0]) else depth
        finished = following - z
        parts = total[:finished], total_weight[:finished]
        slab = _reduce(*parts, z, plan, num_classes, score_names, decide)
        if slab is not None:
            yield slab
        for i in range(patch[0]):  # slice by slice: an overlapping copy would double the memory
            keep = i + finished < patch[0]
            total[i] = total[i + finished] if keep else 0
            total_weight[i] = total_weight[i + finished] if keep else 0


@dataclasses.dataclass
class _TileSource:
    """Reads, batches and runs the tiles of one row (equal z)."""

    volume: Volume
    plan: TilePlan
    lower: np.ndarray  # [P]
    batch_size: int
    reuse_air: bool
    tile_fn: TileFunction
    air: np.ndarray | None = None  # contribution of a tile of air, computed when first met

    def row(self, z: int) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yields ((y, x), weighted output [*patch, K + S]) of every tile that starts at z."""
        waiting: list[tuple[tuple[int, int], np.ndarray]] = []
        running: tuple[list[tuple[int, int]], Array] | None = None
        for corner in itertools.product(self.plan.starts[1], self.plan.starts[2]):
            tile = self._read((z, *corner))
            if self.reuse_air and np.all(tile.max(axis=(0, 1, 2)) <= self.lower):
                if self.air is None:
                    self.air = np.array(self._run([tile])[0])
                yield corner, self.air
                continue
            waiting.append((corner, tile))
            if len(waiting) == self.batch_size:
                # Dispatch is asynchronous: the host adds one batch while the next one computes.
                started = self._start(waiting)
                waiting = []
                if running is not None:
                    yield from self._collect(running)
                running = started
        if running is not None:
            yield from self._collect(running)
        if waiting:
            yield from self._collect(self._start(waiting))

    def _read(self, start: Sequence[int]) -> np.ndarray:
        """Returns the raw tile [*patch, P], padded with `lower` outside the volume."""
        plan = self.plan
        begin = [s - m for s, m in zip(start, plan.margin, strict=True)]
        inside = tuple(
            slice(max(b, 0), min(b + p, size))
            for b, p, size in zip(begin, plan.patch_size, plan.shape, strict=True)
        )
        block = np.asarray(self.volume[inside])
        if block.shape[:3] == plan.patch_size:
            return block
        fill = self.lower
        if np.issubdtype(block.dtype, np.integer):
            limits = np.iinfo(block.dtype)
            fill = np.clip(np.floor(fill), limits.min, limits.max)
        tile = np.empty((*plan.patch_size, block.shape[3]), block.dtype)
        tile[:] = fill
        tile[tuple(slice(s.start - b, s.stop - b) for s, b in zip(inside, begin, strict=True))] = (
            block
        )
        return tile

    def _run(self, tiles: list[np.ndarray]) -> Array:
        """Runs up to `batch_size` tiles; the missing ones repeat the last."""
        missing = self.batch_size - len(tiles)
        return self.tile_fn(np.stack(tiles + [tiles[-1]] * missing))

    def _start(
        self, waiting: list[tuple[tuple[int, int], np.ndarray]]
    ) -> tuple[list[tuple[int, int]], Array]:
        """Starts a batch; returns the corners and the output that is being computed."""
        return [corner for corner, _ in waiting], self._run([tile for _, tile in waiting])

    @staticmethod
    def _collect(
        running: tuple[list[tuple[int, int]], Array],
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Waits for a batch and yields its tiles without the padding."""
        corners, output = running
        yield from zip(corners, np.asarray(output), strict=False)


def _reduce(
    total: np.ndarray,
    weight: np.ndarray,
    z: int,
    plan: TilePlan,
    num_classes: int,
    score_names: Sequence[str],
    decide: Decision,
) -> Slab | None:
    """Reduces finished slices [d, H', W', K + S] to classes and scores, without the padding."""
    first = max(z, plan.margin[0])
    last = min(z + total.shape[0], plan.margin[0] + plan.shape[0])
    if first >= last:
        return None
    _, height, width = plan.shape
    y, x = plan.margin[1], plan.margin[2]
    shape = (last - first, height, width)
    label = np.empty(shape, np.uint8)
    scores = {name: np.empty(shape, np.float16) for name in score_names}
    for i in range(shape[0]):  # one slice at a time keeps argmax's int64 small
        area = (first - z + i, slice(y, y + height), slice(x, x + width))
        values, share = total[area], weight[area]
        if not np.isfinite(values.sum(dtype=np.float64)):
            where = first + i - plan.margin[0]
            raise FloatingPointError(f'the network returned NaN or infinity in slice {where}')
        label[i] = decide(values[..., :num_classes])
        for channel, name in enumerate(score_names, start=num_classes):
            mean = values[..., channel] / share
            scores[name][i] = np.clip(mean, -_FLOAT16_MAX, _FLOAT16_MAX)
    return Slab(first - plan.margin[0], label, scores)


def predict_volume(
    volume: Volume,
    tile_fn: TileFunction,
    plan: TilePlan,
    *,
    num_classes: int,
    score_names: Sequence[str],
    **options,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Collects `predict_slabs` into label [D, H, W] uint8 and scores name to [D, H, W] float16."""
    label = np.zeros(plan.shape, np.uint8)
    scores = {name: np.zeros(plan.shape, np.float16) for name in score_names}
    slabs = predict_slabs(
        volume, tile_fn, plan, num_classes=num_classes, score_names=score_names, **options
    )
    for slab in slabs:
        area = slice(slab.start, slab.start + slab.label.shape[0])
        label[area] = slab.label
        for name in score_names:
            scores[name][area] = slab.scores[name]
    return label, scores
