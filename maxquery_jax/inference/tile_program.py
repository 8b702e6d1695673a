"""The compiled network as the sliding window calls it: weighted, mirrored, on several devices."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage

from maxquery_jax.typing import Array, PyTree

Forward = Callable[[PyTree, Array], tuple[Array, dict[str, Array]]]

_TILES = 'tiles'  # mesh axis


def gaussian_importance(patch_size: Sequence[int]) -> np.ndarray:
    """Weight of a tile's voxels: a Gaussian of sigma = size / 8 around the centre (nnU-Net).

    Args:
        patch_size: (D, H, W).

    Returns:
        [D, H, W] float32, peak 1; voxels beyond the filter's reach get the smallest non-zero
        weight, so that every voxel counts.
    """
    delta = np.zeros(patch_size, np.float64)
    delta[tuple(size // 2 for size in patch_size)] = 1.0
    sigma = [size / 8 for size in patch_size]
    weight = ndimage.gaussian_filter(delta, sigma, mode='constant', cval=0.0)
    weight = (weight / weight.max()).astype(np.float32)
    weight[weight == 0] = weight[weight > 0].min()
    return weight


class TileProgram:
    """The compiled network with the Gaussian importance and, if asked, mirroring.

    Called with (params, raw tiles [b, D, H, W, P]) it returns [b, D, H, W, K + S] float32, already
    weighted. It is compiled once per shape and dtype of the tiles.

    The tiles of a call are shared out to the largest number of devices that divides b. Every device
    runs the program of its own tiles; nothing is communicated.
    """

    def __init__(
        self,
        forward: Forward,
        score_names: Sequence[str],
        patch_size: Sequence[int],
        *,
        mirror: bool = False,
        devices: Sequence[Any] | None = None,
    ):
        """Prepares the program; nothing is compiled yet.

        Args:
            forward: (params, raw tiles) to (seg_logits [b, D, H, W, K], scores name to
                [b, D, H, W]). It normalises the intensities itself.
            score_names: scores to keep, in the order of the last channels of the result.
            patch_size: (D, H, W).
            mirror: averages the logits and the scores over the 8 mirrored copies of each tile
                (nnU-Net's test-time augmentation; 8 times the work).
            devices: to use; by default those of this process.
        """
        self._forward = forward
        self._score_names = tuple(score_names)
        self._importance = jnp.asarray(gaussian_importance(patch_size))[None, ..., None]
        self._run = self._mirrored if mirror else self._weighted
        self._devices = tuple(jax.local_devices() if devices is None else devices)
        self._compiled: dict[tuple, jax.stages.Compiled] = {}
        self._copies: dict[int, tuple[PyTree, tuple[PyTree, Array]]] = {}

    def __call__(self, params: PyTree, tiles: np.ndarray) -> Array:
        compiled = self._compile(params, tiles.shape, tiles.dtype)
        return compiled(*self._constants(params, self._num_devices(tiles.shape)), tiles)

    def memory_bytes(self, params: PyTree, shape: Sequence[int], dtype: np.typing.DTypeLike) -> int:
        """Bytes that one call needs, parameters and result included, as XLA reports them.

        They are those of all devices together.

        Args:
            params: parameter tree.
            shape: of the tiles, [b, D, H, W, P].
            dtype: of the tiles.
        """
        report = self._compile(params, shape, dtype).memory_analysis()
        if report is None:
            return 0
        return self._num_devices(shape) * int(
            report.temp_size_in_bytes
            + report.argument_size_in_bytes
            + report.output_size_in_bytes
            + report.generated_code_size_in_bytes
        )

    def _compile(self, params: PyTree, shape: Sequence[int], dtype: np.typing.DTypeLike):
        key = (tuple(shape), np.dtype(dtype))
        if key not in self._compiled:
            tiles, count = jax.ShapeDtypeStruct(*key), self._num_devices(shape)
            constants = self._constants(params, count)
            self._compiled[key] = self._jit(count).lower(*constants, tiles).compile()
        return self._compiled[key]

    def _num_devices(self, shape: Sequence[int]) -> int:
        """Largest number of devices that divides the tiles of a call."""
        return max(d for d in range(1, len(self._devices) + 1) if shape[0] % d == 0)

    def _jit(self, count: int):
        """The program for `count` devices, to be lowered."""
        if count == 1:
            return jax.jit(self._run)
        whole, rows = PartitionSpec(), PartitionSpec(_TILES)
        mesh = self._mesh(count)
        run = jax.shard_map(
            self._run, mesh=mesh, in_specs=(whole, whole, rows), out_specs=rows, check_vma=False
        )
        shardings = [NamedSharding(mesh, spec) for spec in (whole, whole, rows)]
        return jax.jit(run, in_shardings=tuple(shardings))

    def _mesh(self, count: int) -> jax.sharding.Mesh:
        return jax.sharding.Mesh(np.array(self._devices[:count]), (_TILES,))

    def _constants(self, params: PyTree, count: int) -> tuple[PyTree, Array]:
        """Parameters and importance on `count` devices; copied there once."""
        if count == 1:
            return params, self._importance
        if count not in self._copies or self._copies[count][0] is not params:
            everywhere = NamedSharding(self._mesh(count), PartitionSpec())
            placed = jax.device_put((params, self._importance), everywhere)
            self._copies[count] = params, placed
        return self._copies[count][1]

    def _stack(self, params: PyTree, tiles: Array) -> Array:
        seg_logits, scores = self._forward(params, tiles)
        maps = [scores[name].astype(jnp.float32)[..., None] for name in self._score_names]
        return jnp.concatenate([seg_logits.astype(jnp.float32), *maps], axis=-1)

    def _weighted(self, params: PyTree, importance: Array, tiles: Array) -> Array:
        return self._stack(params, tiles) * importance

    def _mirrored(self, params: PyTree, importance: Array, tiles: Array) -> Array:
        # A scan traces the network once; the eight passes differ only in their flags.
        flips = jnp.asarray(list(itertools.product((False, True), repeat=3)))

        def add(total: Array, flip: Array) -> tuple[Array, None]:
            return total + _flip_where(self._stack(params, _flip_where(tiles, flip)), flip), None

        shape = jax.eval_shape(self._stack, params, tiles).shape
        total, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), flips)
        return total * (importance / flips.shape[0])


def _flip_where(x: Array, flip: Array) -> Array:
    """Mirrors the spatial axes of [b, D, H, W, C] whose flag is set."""
    for axis in range(3):
        x = jnp.where(flip[axis], jnp.flip(x, axis + 1), x)
    return x
