"""Attention of the query decoder and the projections around it.

Nothing here is batch-normalised (kMaX-DeepLab is): with two volumes a step, batch statistics are
noise. Query-side projections end in LayerNorm, pixel-side ones in InstanceNorm; MaxQuery Sec. 4.2
names the two for the ends of the modules, inside them they are our choice.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax.models import initializers
from maxquery_jax.models.layers import Dense, InstanceNorm, LayerNorm
from maxquery_jax.ops.assignment import kmeans_update
from maxquery_jax.typing import Array

Dtype = Any

gelu = functools.partial(nn.gelu, approximate=False)

# Updates start at about a third of the size of the queries that they are added to.
RESIDUAL_INIT = initializers.variance_scaling(0.1)


class QueryProjection(nn.Module, kw_only=True):
    """Linear, LayerNorm, GELU.

    Attributes:
        features: output channels.
        dtype: compute dtype.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Maps [B, N, C] to [B, N, features]."""
        linear = Dense(features=self.features, use_bias=False, dtype=self.dtype, name='dense')
        return gelu(LayerNorm(dtype=self.dtype, name='norm')(linear(queries)))


class PixelProjection(nn.Module, kw_only=True):
    """1x1x1 convolution and InstanceNorm.

    Attributes:
        features: output channels.
        dtype: compute dtype.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """Maps [B, d, h, w, C] to [B, d, h, w, features]."""
        linear = Dense(features=self.features, use_bias=False, dtype=self.dtype, name='dense')
        return InstanceNorm(dtype=self.dtype, name='norm')(linear(pixels))


class KMeansCrossAttention(nn.Module, kw_only=True):
    """Moves each query towards the voxels it wins (MaxQuery Eq. 2, as in kMaX-DeepLab).

    Deviation: the equation adds the plain sum. A sum grows with the number of voxels, 256 times
    from the coarsest to the finest block of the paper's pancreas patch; a LayerNorm on it stands
    where kMaX-DeepLab has a BatchNorm.

    Attributes:
        reduction: 'sum' or 'mean' over the voxels of a query.
        dtype: compute dtype of the projections; the sum is float32.
    """

    reduction: str = 'sum'
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, query_response: Array, pixels: Array) -> Array:
        """Returns the update of the queries.

        Args:
            query_response: [B, N, d, h, w] the block's own response, which assigns the voxels.
            pixels: [B, d, h, w, C].

        Returns:
            [B, N, C].
        """
        features = pixels.shape[-1]
        values = PixelProjection(features=features, dtype=self.dtype, name='value')(pixels)
        batch, num_queries = query_response.shape[:2]
        update = kmeans_update(
            query_response.reshape(batch, num_queries, -1),
            values.reshape(batch, -1, features),
            reduction=self.reduction,
        )
        update = LayerNorm(dtype=self.dtype, name='norm')(update)
        out = Dense(features=features, kernel_init=RESIDUAL_INIT, dtype=self.dtype, name='out')
        return out(update)


class SelfAttention(nn.Module, kw_only=True):
    """Multi-head attention among the queries.

    Keys have half the width of values (kMaX-DeepLab: 16 and 32 per head).

    Unspecified in the paper: kMaX-DeepLab batch-normalises the similarities; here they are
    divided by the root of the key width.

    Attributes:
        num_heads: divides half the query width.
        dtype: compute dtype; the softmax is float32.
    """

    num_heads: int = 8
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Returns the update [B, N, C] of queries [B, N, C]."""
        features = queries.shape[-1]

        def heads(name: str, width: int) -> Array:  # [B, N, heads, width / heads]
            linear = Dense(features=width, use_bias=False, dtype=self.dtype, name=name)
            return linear(queries).reshape(*queries.shape[:2], self.num_heads, -1)

        query, key = heads('query', features // 2), heads('key', features // 2)
        value = heads('value', features)
        similarity = jnp.einsum('bqhc,bkhc->bhqk', query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(similarity * query.shape[-1] ** -0.5, axis=-1)
        retrieved = jnp.einsum('bhqk,bkhc->bqhc', weights.astype(self.dtype), value)
        retrieved = gelu(LayerNorm(dtype=self.dtype, name='norm')(retrieved.reshape(queries.shape)))
        out = Dense(features=features, kernel_init=RESIDUAL_INIT, dtype=self.dtype, name='out')
        return out(retrieved)
