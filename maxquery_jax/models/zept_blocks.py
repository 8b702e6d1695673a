"""Transformer blocks of ZePT: soft attention, grouping, masked attention, joint self-attention.

Queries are a float32 residual stream; `dtype` is the compute dtype inside the updates.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models.attention import Dtype, gelu
from maxquery_jax.models.layers import MLP, Dense, LayerNorm
from maxquery_jax.ops import grouping
from maxquery_jax.ops.norm import EPSILON
from maxquery_jax.typing import Array


def positive_parameter(module: nn.Module, name: str, value: float) -> Array:
    """A learnable positive scalar, the exponential of parameter `log_<name>` [1]."""
    init = nn.initializers.constant(math.log(value))
    boxed = nn.with_logical_partitioning(init, (axes.NORM,))
    logarithm: Any = module.param(f'log_{name}', boxed, (1,), jnp.float32)
    return jnp.exp(logarithm[0])


class MultiHeadAttention(nn.Module, kw_only=True):
    """Scaled dot-product attention of queries over a context (ZePT Eq. 1, 2 and 9).

    Attributes:
        num_heads: divides the query width.
        dtype: compute dtype; the softmax is float32.
    """

    num_heads: int = 8
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array, context: Array, bias: Array | None = None) -> Array:
        """Returns the update of the queries.

        Args:
            queries: [B, N, C].
            context: [B, L, C'].
            bias: [B, L] added to the logits of every query and head (ZePT Eq. 10).

        Returns:
            [B, N, C] float32.

        Raises:
            ValueError: if the heads do not divide C.
        """
        features = queries.shape[-1]
        if features % self.num_heads:
            raise ValueError(f'{self.num_heads} heads do not divide the query width {features}')

        def heads(name: str, x: Array) -> Array:  # [B, ..., heads, C / heads]
            x = Dense(features=features, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.num_heads, -1)

        query, key, value = heads('query', queries), heads('key', context), heads('value', context)
        logits = jnp.einsum('bnhc,blhc->bhnl', query, key, preferred_element_type=jnp.float32)
        logits *= query.shape[-1] ** -0.5
        if bias is not None:
            logits += bias[:, None, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        retrieved = jnp.einsum('bhnl,blhc->bnhc', weights, value).reshape(queries.shape)
        out = Dense(features=features, dtype=self.dtype, name='out')
        return out(retrieved).astype(jnp.float32)


class SoftCrossAttentionBlock(nn.Module, kw_only=True):
    """Cross-attention over all voxels, then a feed-forward part (ZePT Eq. 1 and 2).

    Unspecified in the paper: x + attention, x + MLP(LN(x)), LN, as in the released code.

    Attributes:
        num_heads: of the attention.
        mlp_ratio: hidden width over the query width.
        dtype: compute dtype.
    """

    num_heads: int = 8
    mlp_ratio: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array, features: Array) -> Array:
        """Updates queries [B, N, C] from features [B, L, C'], float32."""
        attend = MultiHeadAttention(num_heads=self.num_heads, dtype=self.dtype, name='attention')
        queries = queries + attend(queries, features)
        queries = feed_forward(queries, self.mlp_ratio, self.dtype)
        return LayerNorm(name='norm')(queries)


class GroupingBlock(nn.Module, kw_only=True):
    """Object-aware feature grouping, then a feed-forward part (ZePT Eq. 3 to 6).

    The update is W_o applied to the grouped values; similarities are divided by sqrt(C) as in the
    released code. The temperature is learned, from one on, as in the paper (the released code
    fixes it).

    Attributes:
        hard: whether a voxel belongs to one query (straight-through) or is shared out softly.
        learn_temperature: whether the temperature is learned or stays one.
        mlp_ratio: hidden width over the query width.
        dtype: compute dtype; the assignment is float32.
    """

    hard: bool = True
    learn_temperature: bool = True
    mlp_ratio: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array, features: Array, *, train: bool = False) -> Array:
        """Updates the queries.

        Args:
            queries: [B, N, C].
            features: [B, L, C'].
            train: whether the choice is noisy (stream 'dropout').

        Returns:
            [B, N, C] float32.
        """
        width = queries.shape[-1]

        def linear(name: str, x: Array) -> Array:
            return Dense(features=width, dtype=self.dtype, name=name)(x)

        similarity = jnp.einsum(
            'bnc,blc->bnl',
            linear('query', queries),
            linear('key', features),
            preferred_element_type=jnp.float32,
        )
        learned = self.learn_temperature
        assignment = grouping.assign(
            similarity * width**-0.5,
            temperature=positive_parameter(self, 'temperature', 1.0) if learned else 1.0,
            key=self.make_rng('dropout') if train else None,
            hard=self.hard,
        )
        grouped = grouping.group_features(assignment, linear('value', features))
        queries = queries + linear('out', grouped).astype(jnp.float32)
        return feed_forward(queries, self.mlp_ratio, self.dtype)


def feed_forward(queries: Array, ratio: int, dtype: Dtype) -> Array:
    """x + MLP(LN(x)) with submodules 'mlp_norm' and 'mlp' of the calling module."""
    width = queries.shape[-1]
    hidden = LayerNorm(dtype=dtype, name='mlp_norm')(queries)
    mlp = MLP(features=(ratio * width, width), activation=gelu, dtype=dtype, name='mlp')
    return queries + mlp(hidden).astype(jnp.float32)


class SelfAttentionBlock(nn.Module, kw_only=True):
    """Self-attention among queries, then a feed-forward part, both post-normalised.

    Attributes:
        num_heads: of the attention.
        mlp_ratio: hidden width over the query width.
        activation: of the feed-forward part.
        dtype: compute dtype.
    """

    num_heads: int = 8
    mlp_ratio: int = 4
    activation: Callable[[Array], Array] = nn.relu
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Updates queries [B, N, C], float32."""
        width = queries.shape[-1]
        attend = MultiHeadAttention(num_heads=self.num_heads, dtype=self.dtype, name='attention')
        queries = LayerNorm(name='attention_norm')(queries + attend(queries, queries))
        mlp = MLP(
            features=(self.mlp_ratio * width, width),
            activation=self.activation,
            dtype=self.dtype,
            name='mlp',
        )
        return LayerNorm(name='mlp_norm')(queries + mlp(queries).astype(jnp.float32))


class GroupViTBlock(nn.Module, kw_only=True):
    """Grouping after GroupViT (Xu et al., CVPR 2022), the alternative to OFG of ZePT Tab. 12.

    Tokens attend to one another; then every voxel joins the token it is most similar to
    (Gumbel-softmax over the tokens, straight-through), and the mean of a token's voxels is added
    to it.

    Differs from OFG (`SoftCrossAttentionBlock`, then `GroupingBlock`) in two things alone, with
    equally many parameters but for the temperature:

    1. No soft cross-attention comes before the assignment: self-attention among the tokens takes
       its place. A token so is a mere centre: of a block's voxels it sees those assigned to it.
       ZePT says that GroupViT "generates a set of queries as clustering centers and clusters
       pixels with similar semantics", a "bottom-up clustering approach based on pixel semantics"
       (Sec. 6.4.4), and that OFG's soft attention, "prior to the hard assignment of local
       features, endows the queries with a global receptive field" (Sec. 6.4.6).
    2. The temperature of the Gumbel-softmax is one; OFG's is "a learnable coefficient" (Eq. 3).

    The assignment itself (Eq. 3 to 6) is GroupViT's own and is shared.

    Unspecified in the paper: how GroupViT was fitted into ZePT. Its code, unlike its paper, has a
    soft cross-attention before the assignment as well, and a ZePT with that would be the released
    OFG. Deviation from GroupViT: tokens attend to tokens, not to the voxels (attention among all
    voxels is quadratic in their number), there are as many tokens after a block as before, and a
    block groups the voxels of its own scale, not the groups of the block before.

    Attributes:
        num_heads: of the self-attention.
        mlp_ratio: hidden width over the query width.
        dtype: compute dtype; the assignment is float32.
    """

    num_heads: int = 8
    mlp_ratio: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array, features: Array, *, train: bool = False) -> Array:
        """Updates queries [B, N, C] from features [B, L, C'], see `GroupingBlock`."""
        sizes = {'mlp_ratio': self.mlp_ratio, 'dtype': self.dtype}
        attend = SelfAttentionBlock(num_heads=self.num_heads, **sizes, name='self')
        group = GroupingBlock(learn_temperature=False, **sizes, name='grouping')
        return group(attend(queries), features, train=train)


class MaskedAttentionBlock(nn.Module, kw_only=True):
    """Prompt-based masked cross-attention, self-attention, feed-forward (ZePT Eq. 9 and 10).

    Unspecified in the paper: order, post-normalisation and ReLU are the released code's.

    Attributes:
        num_heads: of both attentions.
        mlp_ratio: hidden width over the query width.
        dtype: compute dtype.
    """

    num_heads: int = 8
    mlp_ratio: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array, features: Array, bias: Array | None = None) -> Array:
        """Updates the queries.

        Args:
            queries: [B, N, C].
            features: [B, L, C].
            bias: [B, L] of `ops.prompts.attention_bias`; all voxels are seen without it.

        Returns:
            [B, N, C] float32.
        """
        attend = MultiHeadAttention(num_heads=self.num_heads, dtype=self.dtype, name='attention')
        queries = LayerNorm(name='attention_norm')(queries + attend(queries, features, bias))
        return SelfAttentionBlock(
            num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, dtype=self.dtype, name='self'
        )(queries)


class MaskHead(nn.Module, kw_only=True):
    """Query embeddings to be multiplied with the full-resolution features: LN(Linear(q)).

    Unspecified in the paper: the norm's scale starts at F^-1/2, so that logits of F channels of
    unit variance start at a deviation of one instead of sqrt(F), where a sigmoid is saturated.

    Attributes:
        features: F, channels of the full-resolution features.
        dtype: compute dtype.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Maps [B, N, C] to [B, N, F]."""
        scale, zeros = nn.initializers.constant(self.features**-0.5), nn.initializers.zeros_init()
        norm = nn.LayerNorm(
            epsilon=EPSILON,
            use_fast_variance=False,
            dtype=self.dtype,
            scale_init=nn.with_logical_partitioning(scale, (axes.NORM,)),
            bias_init=nn.with_logical_partitioning(zeros, (axes.NORM,)),
            name='norm',
        )
        return norm(Dense(features=self.features, dtype=self.dtype, name='dense')(queries))
