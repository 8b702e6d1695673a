"""Swin Transformer in 3D, the encoder of Swin UNETR (Hatamizadeh et al., 2022).

Equal to MONAI's `SwinTransformer` with the same weights. Sides that a patch, a merging or a window
does not divide are padded with zeros at their end, as there.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax.models import initializers, layers
from maxquery_jax.models.attention import gelu
from maxquery_jax.models.partition import gather
from maxquery_jax.models.remat import rematerialise
from maxquery_jax.ops import windows
from maxquery_jax.ops.windows import Triple
from maxquery_jax.typing import Array

# Order in which a merging lists the 8 voxels of a 2x2x2 block; voxel (z, y, x) is 4z + 2y + x.
MERGING_ORDERS = {
    'merging': (0, 4, 2, 1, 6, 5, 3, 7),  # MONAI's default since January 2025 (#8285)
    'mergingv2': (0, 1, 2, 3, 4, 5, 6, 7),
    'legacy': (0, 4, 2, 1, 5, 2, 1, 7),  # the default before: 1 and 2 twice, 3 and 6 never
}
MLP_RATIO = 4


def pad_to_multiple(x: Array, multiple: Triple) -> Array:
    """Zeros at the end of the axes of [B, D, H, W, C] up to multiples of (z, y, x)."""
    grid = x.shape[1:4]
    ends = [(0, -n % side) for n, side in zip(grid, multiple, strict=True)]
    return jnp.pad(x, [(0, 0), *ends, (0, 0)]) if any(end for _, end in ends) else x


def blocks_of_eight(x: Array) -> Array:
    """[B, D, H, W, C] to [B, D/2, H/2, W/2, 8, C], odd sides padded; order of `MERGING_ORDERS`."""
    x = pad_to_multiple(x, (2, 2, 2))
    batch, depth, height, width, features = x.shape
    x = x.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, features)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(*x.shape[:4], 8, features)


class WindowAttention(nn.Module, kw_only=True):
    """Multi-head attention within windows, with a bias per offset of two tokens.

    Attributes:
        num_heads: divides the channels.
        window_size: side of a full window, which sizes the bias' table.
        qkv_bias: whether queries, keys and values have a bias.
        dtype: compute dtype; the softmax is float32.
    """

    num_heads: int
    window_size: int = 7
    qkv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, window: Triple, shift: Triple) -> Array:
        """Attends within `window` on a grid [B, D, H, W, C] that is rolled by `shift` first."""
        grid = (x.shape[1], x.shape[2], x.shape[3])
        features = x.shape[-1]
        is_shifted = any(shift)
        if is_shifted:
            x = jnp.roll(x, [-s for s in shift], axis=(1, 2, 3))
        x = windows.partition(x, window)  # [B, windows, T, C]
        linear = layers.Dense(
            features=3 * features, use_bias=self.qkv_bias, dtype=self.dtype, name='qkv'
        )
        qkv = linear(x).reshape(*x.shape[:3], 3, self.num_heads, -1)
        x = windows.window_attention(
            qkv[..., 0, :, :],
            qkv[..., 1, :, :],
            qkv[..., 2, :, :],
            windows.relative_bias(self._table(), self.window_size, math.prod(window)),
            windows.region_ids(grid, window, shift) if is_shifted else None,
        )
        x = x.reshape(*x.shape[:3], features)
        x = layers.Dense(features=features, dtype=self.dtype, name='out')(x)
        x = windows.unpartition(x, window, grid)
        return jnp.roll(x, shift, axis=(1, 2, 3)) if is_shifted else x

    def _table(self) -> Array:
        init = nn.with_logical_partitioning(initializers.truncated_normal(0.02), (None, None))
        shape = ((2 * self.window_size - 1) ** 3, self.num_heads)
        return gather(self.param('relative_bias', init, shape, jnp.float32))


class SwinBlock(nn.Module, kw_only=True):
    """Window attention and MLP, each after a LayerNorm and beside a shortcut.

    Attributes:
        num_heads: see `WindowAttention`.
        window_size: side of a window; a shorter axis is one window.
        is_shifted: whether windows are displaced by half a side.
        qkv_bias: see `WindowAttention`.
        dtype: compute dtype.
    """

    num_heads: int
    window_size: int = 7
    is_shifted: bool = False
    qkv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens [B, D, H, W, C] to the same shape."""
        depth, height, width, features = x.shape[1:]
        window, shift = windows.fit_window(
            (depth, height, width),
            self.window_size,
            self.window_size // 2 if self.is_shifted else 0,
        )
        attend = WindowAttention(
            num_heads=self.num_heads,
            window_size=self.window_size,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            name='attention',
        )
        y = layers.LayerNorm(dtype=self.dtype, name='norm1')(x)
        y = attend(pad_to_multiple(y, window), window, shift)
        x = x + y[:, :depth, :height, :width]
        y = layers.LayerNorm(dtype=self.dtype, name='norm2')(x)
        return x + layers.MLP(
            features=(MLP_RATIO * features, features), activation=gelu, dtype=self.dtype, name='mlp'
        )(y)


class SwinStage(nn.Module, kw_only=True):
    """Swin blocks, every second one shifted, then a merging that halves the grid.

    Attributes:
        depth: number of blocks, named block0, block1, ...
        num_heads: see `WindowAttention`.
        window_size: see `SwinBlock`.
        qkv_bias: see `WindowAttention`.
        merging: key of `MERGING_ORDERS`.
        residual_conv: whether a residual convolution block comes first (MONAI's `use_v2`).
        conv_form: formulation of its convolutions.
        remat: which activations of a block are kept, see `models.remat`.
        dtype: compute dtype.
    """

    depth: int
    num_heads: int
    window_size: int = 7
    qkv_bias: bool = True
    merging: str = 'merging'
    residual_conv: bool = False
    conv_form: str = 'plain'
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens [B, D, H, W, C] to [B, ceil(D/2), ceil(H/2), ceil(W/2), 2C]."""
        features = x.shape[-1]
        if self.residual_conv:
            x = layers.ResidualBlock(
                features=features, form=self.conv_form, dtype=self.dtype, name='residual_conv'
            )(x)
        for index in range(self.depth):
            x = rematerialise(SwinBlock, self.remat)(
                num_heads=self.num_heads,
                window_size=self.window_size,
                is_shifted=index % 2 == 1,
                qkv_bias=self.qkv_bias,
                dtype=self.dtype,
                name=f'block{index}',
            )(x)
        blocks = blocks_of_eight(x)
        order = MERGING_ORDERS[self.merging]
        x = jnp.concatenate([blocks[..., voxel, :] for voxel in order], axis=-1)
        x = layers.LayerNorm(dtype=self.dtype, name='merging_norm')(x)
        return layers.Dense(
            features=2 * features, use_bias=False, dtype=self.dtype, name='merging'
        )(x)


class SwinTransformer(nn.Module, kw_only=True):
    """Patch embedding of 2x2x2 voxels and stages that halve the grid and double the channels.

    Attributes:
        features: channels after the patch embedding.
        depths: blocks per stage; stages are named stage0, stage1, ...
        num_heads: heads per stage.
        window_size: see `SwinBlock`.
        qkv_bias: see `WindowAttention`.
        normalize: whether the states are layer-normalised, without parameters, on their way out.
        merging: see `SwinStage`.
        residual_conv: see `SwinStage`.
        conv_form: see `SwinStage`.
        remat: see `SwinStage`.
        dtype: compute dtype.
    """

    features: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    qkv_bias: bool = True
    normalize: bool = True
    merging: str = 'merging'
    residual_conv: bool = False
    conv_form: str = 'plain'
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        """Returns the hidden states of an image [B, D, H, W, P], fine to coarse.

        State s is [B, ceil(D / 2^(s+1)), ..., features * 2^s], s = 0 to the number of stages.
        """
        x = blocks_of_eight(image.astype(self.dtype))
        x = x.reshape(*x.shape[:4], -1)
        x = layers.Dense(features=self.features, dtype=self.dtype, name='patch_embed')(x)
        states = [x]
        for index, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            x = SwinStage(
                depth=depth,
                num_heads=heads,
                window_size=self.window_size,
                qkv_bias=self.qkv_bias,
                merging=self.merging,
                residual_conv=self.residual_conv,
                conv_form=self.conv_form,
                remat=self.remat,
                dtype=self.dtype,
                name=f'stage{index}',
            )(x)
            states.append(x)
        if not self.normalize:
            return states
        return [layers.LayerNorm(affine=False, dtype=self.dtype)(x) for x in states]
