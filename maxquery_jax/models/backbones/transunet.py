"""(nn)TransUNet: nnU-Net with a Vision Transformer over its coarsest features (MaxQuery Tab. 1).

Unspecified in the paper, which says only that TransUNet was rebuilt on nnU-Net. What follows is the
encoder-only variant of the public 3D TransUNet (Chen et al., 2023): one token per voxel of the
coarsest features, a linear map to the transformer's width, learned positions, the blocks of ViT-B
(12 of width 768, pre-norm), a closing LayerNorm, and a linear map back to the decoder.

Deviation: that code multiplies the shortcuts, not the updates, by its layer scale of 1e-5, and
starts from ImageNet weights. Here are plain shortcuts and a random start; positions start at a
deviation of 0.02 (ViT) and are resized to other grids than the patch's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import initializers, layers
from maxquery_jax.models.attention import gelu
from maxquery_jax.models.backbones.topology import Triple
from maxquery_jax.models.backbones.unet import UNet
from maxquery_jax.models.partition import gather
from maxquery_jax.ops.spatial import resize_linear
from maxquery_jax.typing import Array

MLP_RATIO = 4


class TransformerBlock(nn.Module, kw_only=True):
    """Multi-head self-attention and MLP, each after a LayerNorm and beside a shortcut (ViT).

    Attributes:
        num_heads: divides the channels.
        dtype: compute dtype; the softmax is float32.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps [B, L, C] to the same shape."""
        width = tokens.shape[-1]

        def linear(name: str) -> layers.Dense:
            return layers.Dense(features=width, dtype=self.dtype, name=name)

        def heads(name: str, x: Array) -> Array:  # [B, L, heads, C / heads]
            return linear(name)(x).reshape(*x.shape[:2], self.num_heads, -1)

        x = layers.LayerNorm(dtype=self.dtype, name='norm1')(tokens)
        x = jax.nn.dot_product_attention(heads('query', x), heads('key', x), heads('value', x))
        tokens = tokens + linear('out')(x.reshape(tokens.shape))
        x = layers.LayerNorm(dtype=self.dtype, name='norm2')(tokens)
        mlp = layers.MLP(
            features=(MLP_RATIO * width, width), activation=gelu, dtype=self.dtype, name='mlp'
        )
        return tokens + mlp(x)


class VisionTransformer(nn.Module, kw_only=True):
    """Transformer over the voxels of a feature map, to a map of the same shape.

    Attributes:
        num_layers: blocks, named block0, block1, ...
        width: channels of the tokens.
        num_heads: of the attention.
        grid: (z, y, x) of the learned positions; those of other maps are interpolated.
        dtype: compute dtype.
    """

    num_layers: int
    width: int
    num_heads: int
    grid: Triple
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, d, h, w, C] to the same shape."""
        batch, depth, height, width, features = x.shape
        tokens = layers.Dense(features=self.width, dtype=self.dtype, name='embed')(x)
        init = nn.with_logical_partitioning(
            initializers.truncated_normal(0.02), (None, None, None, axes.FEATURES_OUT)
        )
        positions: Any = self.param('positions', init, (*self.grid, self.width), jnp.float32)
        positions = resize_linear(gather(positions)[None], (depth, height, width))
        tokens = (tokens + positions.astype(self.dtype)).reshape(batch, -1, self.width)
        for index in range(self.num_layers):
            block = TransformerBlock(
                num_heads=self.num_heads, dtype=self.dtype, name=f'block{index}'
            )
            tokens = block(tokens)
        tokens = layers.LayerNorm(dtype=self.dtype, name='norm')(tokens)
        y = layers.Dense(features=features, dtype=self.dtype, name='project')(tokens)
        return y.reshape(x.shape)


class TransUNet(UNet, kw_only=True):
    """nnU-Net whose coarsest features pass through a Vision Transformer, named `transformer`.

    Attributes:
        grid: (z, y, x) of the coarsest features of a training patch.
        transformer_layers: number of blocks.
        transformer_dim: channels of the tokens.
        transformer_heads: heads of the attention.
    """

    grid: Triple
    transformer_layers: int = 12
    transformer_dim: int = 768
    transformer_heads: int = 12

    def _bottleneck(self, x: Array, *, train: bool) -> Array:
        del train  # no dropout here
        return VisionTransformer(
            num_layers=self.transformer_layers,
            width=self.transformer_dim,
            num_heads=self.transformer_heads,
            grid=self.grid,
            dtype=self.dtype,
            name='transformer',
        )(x)
