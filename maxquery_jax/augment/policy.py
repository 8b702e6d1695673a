"""The augmentation policy of nnU-Net and both papers, as one pure function of (batch, key).

Order, probabilities and ranges follow nnU-Net (facts 2.5). Both papers also list elastic
deformation and additive brightness, which stock nnU-Net leaves off: on here, with the values of
nnU-Net v1's default table.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.augment import intensity as tone
from maxquery_jax.augment import spatial
from maxquery_jax.augment.sample import augment_sample, deform_rate
from maxquery_jax.errors import UserError
from maxquery_jax.typing import Array, Batch

__all__ = [
    'AugmentPolicy',
    'crop_size',
    'deform_rate',
    'is_dummy_2d',
    'make_augment',
    'make_center_crop',
    'no_augmentation',
    'shard_augment',
]

Augment = Callable[..., Batch]
"""`augment(batch, key, first_row=0) -> batch`."""

_ANISOTROPY = 3  # largest to first patch edge above which deformations stay in the plane
_COMPOUND = 0.85  # nnU-Net's reserve for rotating about three axes at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """Probabilities per sample and parameter ranges; the defaults are the papers' list.

    Attributes:
        dummy_2d: rotate, scale and deform within slices only; None decides by nnU-Net's rule,
            largest patch edge over the first above 3.
        rotation_rate: uniform angles of up to `rotation_degrees` about each axis, or
            `rotation_degrees_2d` about z.
        scaling_rate: one factor of `scaling_range` for all axes; above 1 objects get smaller.
        elastic_rate: see `spatial.elastic_displacement`; `_2d` values apply within slices.
        noise_rate: Gaussian noise, standard deviation uniform in `noise_std` (nnU-Net calls it
            variance), in units of the normalised image.
        blur_rate: Gaussian blur, sigma uniform in `blur_sigma` voxels per axis and channel.
        multiplicative_rate: factor of `multiplicative_range` per channel.
        additive_rate: offset per channel, Gaussian with `additive_std`.
        contrast_rate: factor of `contrast_range` about the mean, range preserved.
        low_resolution_rate: zoom uniform in `low_resolution_zoom`, per channel.
        gamma_inverted_rate: gamma of `gamma_range` on the negative image.
        gamma_rate: gamma of `gamma_range`.
        channel_rate: probability per channel within blur, additive brightness and low resolution.
        mirror_rate: probability of flipping each of `mirror_axes`.
    """

    dummy_2d: bool | None = None
    rotation_rate: float = 0.2
    rotation_degrees: float = 30.0
    rotation_degrees_2d: float = 180.0
    scaling_rate: float = 0.2
    scaling_range: tuple[float, float] = (0.7, 1.4)
    elastic_rate: float = 0.2
    elastic_alpha: tuple[float, float] = (0.0, 900.0)
    elastic_alpha_2d: tuple[float, float] = (0.0, 200.0)
    elastic_sigma: tuple[float, float] = (9.0, 13.0)
    noise_rate: float = 0.1
    noise_std: tuple[float, float] = (0.0, 0.1)
    blur_rate: float = 0.2
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    multiplicative_rate: float = 0.15
    multiplicative_range: tuple[float, float] = (0.75, 1.25)
    additive_rate: float = 0.15
    additive_std: float = 0.1
    contrast_rate: float = 0.15
    contrast_range: tuple[float, float] = (0.75, 1.25)
    low_resolution_rate: float = 0.25
    low_resolution_zoom: tuple[float, float] = (0.5, 1.0)
    gamma_inverted_rate: float = 0.1
    gamma_rate: float = 0.3
    gamma_range: tuple[float, float] = (0.7, 1.5)
    channel_rate: float = 0.5
    mirror_rate: float = 0.5
    mirror_axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith('_rate') and not 0 <= value <= 1:
                raise UserError(f'augment.{field.name} {value} is not a probability from 0 to 1')
            if isinstance(value, tuple | list):
                object.__setattr__(self, field.name, tuple(value))
                if field.name != 'mirror_axes' and not 0 <= value[0] <= value[1]:
                    raise UserError(f'augment.{field.name} {value} is not (smallest, largest)')
        for name in ('scaling_range', 'elastic_sigma', 'blur_sigma', 'gamma_range'):
            if getattr(self, name)[0] <= 0:
                raise UserError(f'augment.{name} {getattr(self, name)} must be above 0')
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise UserError(f'augment.mirror_axes {self.mirror_axes} may hold 0, 1 and 2')


def no_augmentation() -> AugmentPolicy:
    """The policy that only crops and normalises."""
    names = [field.name for field in dataclasses.fields(AugmentPolicy)]
    off: dict[str, Any] = {
        name: 0.0 for name in names if name.endswith('_rate') and name != 'channel_rate'
    }
    return AugmentPolicy(**off)


def is_dummy_2d(policy: AugmentPolicy, patch_size: Sequence[int]) -> bool:
    """Whether deformations stay within slices (nnU-Net's rule unless the policy says)."""
    if policy.dummy_2d is not None:
        return policy.dummy_2d
    return max(patch_size) / patch_size[0] > _ANISOTROPY


def crop_size(policy: AugmentPolicy, patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Size of the crop to read, so that rotating or scaling alone needs no padding.

    96^3 gives nnU-Net's 154^3. Both at their strongest together do reach outside (1 % of a patch on
    average), which reads the lower intensity bound. In slices-only mode z is not enlarged.

    Args:
        policy: the policy.
        patch_size: (D, H, W) of the patch.

    Returns:
        (D, H, W), larger than the patch by even numbers, so that their centres coincide.
    """
    in_plane = is_dummy_2d(policy, patch_size)
    edge = np.asarray(patch_size, float) - 1  # between the outermost voxel centres
    reach = edge.copy()
    if policy.scaling_rate > 0:
        reach = np.maximum(reach, edge * policy.scaling_range[1])
    if policy.rotation_rate > 0:
        degrees = policy.rotation_degrees_2d if in_plane else policy.rotation_degrees
        planes = [(1, 2)] if in_plane else [(0, 1), (0, 2), (1, 2)]
        for a, b in [*planes, *((b, a) for a, b in planes)]:
            angle = min(math.radians(degrees), math.atan2(edge[b], edge[a]))
            turned = edge[a] * math.cos(angle) + edge[b] * math.sin(angle)
            reach[a] = max(reach[a], turned if in_plane else turned / _COMPOUND)
    if in_plane:
        reach[0] = edge[0]
    depth, height, width = (
        int(size + 2 * math.ceil((far - near) / 2 - 1e-6))
        for size, near, far in zip(patch_size, edge, reach, strict=True)
    )
    return depth, height, width


def make_center_crop(patch_size: Sequence[int], intensity: Mapping[str, Any]) -> Augment:
    """Builds the function that only crops and normalises, for validation.

    Args:
        patch_size: (D, H, W) cut from the centre of every crop.
        intensity: the manifest's `intensity`.

    Returns:
        `fn(batch, key=None, first_row=0)`; see `make_augment`.
    """

    def crop(batch: Batch, key: Array | None = None, first_row: Array | int = 0) -> Batch:
        del key, first_row
        image = jax.vmap(lambda x: spatial.center_crop(x, patch_size))(batch['image'])
        label = jax.vmap(lambda x: spatial.center_crop(x, patch_size))(batch['label'])
        image = tone.normalise_intensity(image, intensity)
        return {**batch, 'image': image, 'label': label.astype(jnp.int32)}

    return crop


def make_augment(
    policy: AugmentPolicy,
    patch_size: Sequence[int],
    intensity: Mapping[str, Any],
    *,
    per_sample: Literal['map', 'vmap'] = 'map',
) -> Augment:
    """Builds the augmentation of a batch, to be jitted.

    Randomness of a sample depends on the key and on its row in the global batch only, so sharding
    does not change the result.

    Args:
        policy: what to do.
        patch_size: (D, H, W) of the output.
        intensity: the manifest's `intensity`.
        per_sample: 'map' handles one sample after another and skips what it does not draw: right
            on CPU, and on accelerators inside `shard_map` (see `shard_augment`). 'vmap' computes
            every transform for every sample and selects: the same values, partitioned by the
            compiler along the batch.

    Returns:
        `augment(batch, key, first_row=0)`: batch holds `image` [B, *crop, P] HU and `label` [B,
        *crop], crop at least the patch; the result holds `image` float32 [B, *patch, P] normalised,
        `label` int32 [B, *patch] and the other entries unchanged. `first_row` is the global row of
        the first sample. If the batch holds `deformed`, bool [B], it says which samples are
        deformed (see `deform_rate`), and is not returned.
    """
    patch_size = tuple(patch_size)

    one_sample = functools.partial(
        augment_sample, policy, patch_size, intensity, is_dummy_2d(policy, patch_size)
    )

    def augment(batch: Batch, key: Array, first_row: Array | int = 0) -> Batch:
        indices = jnp.arange(batch['image'].shape[0], dtype=jnp.int32)
        rows = indices.astype(jnp.uint32) + jnp.asarray(first_row, jnp.uint32)
        rest = dict(batch)
        args = (indices, jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))
        if 'deformed' in batch:
            args = (*args, rest.pop('deformed'))

        def one(args: tuple[Array, ...]) -> tuple[Array, Array]:
            image, label = one_sample(batch['image'], batch['label'], *args)
            return image, label.astype(jnp.int32)

        image, label = jax.lax.map(one, args) if per_sample == 'map' else jax.vmap(one)(args)
        return {**rest, 'image': image, 'label': label}

    return augment


def shard_augment(augment: Augment, mesh: jax.sharding.Mesh, axes: Sequence[str]) -> Augment:
    """Runs an augmentation on each device's own rows, so that 'map' stays cheap when sharded.

    Args:
        augment: what `make_augment` returned.
        mesh: the mesh; axes other than `axes` repeat the work.
        axes: mesh axes over which the batch is split.

    Returns:
        `augment(batch, key)` on global arrays, whose rows must divide over `axes`; the same values
        as `augment` without sharding.
    """
    axes = tuple(axes)
    rows = jax.sharding.PartitionSpec(axes)

    def local(batch: Batch, key: Array) -> Batch:
        first_row = jax.lax.axis_index(axes) * batch['image'].shape[0]
        return augment(batch, key, first_row)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, jax.sharding.PartitionSpec()),
        out_specs=rows,
        check_vma=False,  # a branch of zeros counts as replicated, its alternative does not
    )
