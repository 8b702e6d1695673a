"""The query decoder: k-means mask transformer blocks over the pixel decoder's features.

After kMaX-DeepLab (Yu et al., ECCV 2022), which MaxQuery follows (Sec. 3.1, 4.2). Each block
predicts a segmentation of its own; that prediction's response is at once the assignment of the
k-means cross-attention and what deep supervision acts on.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import initializers
from maxquery_jax.models.attention import (
    RESIDUAL_INIT,
    Dtype,
    KMeansCrossAttention,
    PixelProjection,
    QueryProjection,
    SelfAttention,
    gelu,
)
from maxquery_jax.models.layers import MLP, Dense, DropPath
from maxquery_jax.models.partition import constrain, gather
from maxquery_jax.ops.norm import EPSILON
from maxquery_jax.typing import Array, PixelFeatures, QueryPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Sizes and choices of the query decoder; the defaults are the paper's.

    Attributes:
        num_queries: N.
        output_strides: of the pixel features that the blocks see, in order, coarse to fine.
        query_dim: width Q of the queries.
        embed_dim: width C in which queries and voxels are compared.
        num_heads: of the self-attention.
        ffn_dim: hidden width of the feed-forward parts.
        drop_path: probability of dropping each update of the queries, per sample.
        self_attention_input: 'pre' takes queries, keys and values from the block's input (as
            kMaX-DeepLab does), 'post' from the queries after the k-means update.
        kmeans_reduction: 'sum' or 'mean', see `ops.assignment.kmeans_update`.
        pixel_norm: 'instance' or 'l2', see `PixelResponse`.
        dtype: compute dtype; responses and logits are float32.
    """

    num_queries: int = 32
    output_strides: tuple[int, ...] = (32, 16, 8, 4)
    query_dim: int = 256
    embed_dim: int = 128
    num_heads: int = 8
    ffn_dim: int = 2048
    drop_path: float = 0.2
    self_attention_input: str = 'pre'
    kmeans_reduction: str = 'sum'
    pixel_norm: str = 'instance'
    dtype: Dtype = jnp.float32


class ClusterHead(nn.Module, kw_only=True):
    """Queries to cluster centres C, closed by LayerNorm, and their class logits C_K.

    Unspecified in the paper: the closing LayerNorm has no bias b. It would add b P^T to the
    responses of all queries of a voxel alike; the softmax of Eq. 3 cancels that, so that no loss
    on masks could ever hold it in place, yet it would shift the anomaly score of Eq. 9.

    Unspecified in the paper: the MLP has three layers of width C (MaskFormer) and its output is
    used raw, without softmax or void class, since the paper calls Z logits.

    Attributes:
        num_classes: K.
        embed_dim: width C of the centres.
        dtype: compute dtype.
    """

    num_classes: int
    embed_dim: int = 128
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: Array) -> tuple[Array, Array]:
        """Returns centres [B, N, C] and class logits [B, N, K] (float32) of queries [B, N, Q]."""
        linear = Dense(features=self.embed_dim, use_bias=False, dtype=self.dtype, name='center')
        centers = nn.LayerNorm(
            epsilon=EPSILON,
            use_fast_variance=False,
            use_bias=False,
            dtype=self.dtype,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axes.NORM,)),
            name='center_norm',
        )(linear(queries))
        class_logits = MLP(
            features=(self.embed_dim, self.embed_dim, self.num_classes),
            activation=gelu,
            last_axis=axes.CLASS,
            name='class_mlp',
        )(centers)
        return centers, class_logits


class PixelResponse(nn.Module, kw_only=True):
    """Query response R = C P^T with P = InstanceNorm(Conv1x1x1(features)) (MaxQuery Eq. 3).

    P is never built. The convolution is linear and InstanceNorm affine once its statistics are
    known, and those follow from the mean and covariance of the features, so that both fold into
    the centres. At the paper's patch of 1.7 million voxels this saves the 128-channel map
    (0.9 GB a sample, as often as training keeps it) and three quarters of the arithmetic.

    Unspecified in the paper: the InstanceNorm's scale starts at C^-1/2. LayerNormed centres times
    unit-variance pixels over C = 128 channels would give responses of deviation 11, and a softmax
    over queries that is saturated from the start; this gives 1. It is the magnitude that the L2
    normalisation of kMaX-DeepLab gives its pixel features.

    Attributes:
        norm: 'instance' as in the paper; 'l2' then divides each voxel of P by its length, as
            kMaX-DeepLab does. Without it a response grows with the length of the voxel's
            feature, so that a conspicuous unknown object may well respond more than an inlier.
        dtype: compute dtype; statistics and the response are float32.
    """

    norm: str = 'instance'
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Array, centers: Array) -> Array:
        """Returns R [B, N, d, h, w] float32.

        Args:
            features: [B, d, h, w, F].
            centers: [B, N, C].
        """
        kernel, scale, bias = self._parameters(features.shape[-1], centers.shape[-1])
        features = features.astype(jnp.float32)
        mean = features.mean(axis=(1, 2, 3), keepdims=True)
        centred = (features - mean).astype(self.dtype)
        num_voxels = math.prod(features.shape[1:4])
        covariance = _einsum('bdhwi,bdhwj->bij', centred, centred) / num_voxels
        variance = _einsum('bij,ic,jc->bc', covariance, kernel, kernel)  # of each channel of P
        gain = scale[None] * jax.lax.rsqrt(variance + EPSILON)
        projection = kernel[None] * gain[:, None]  # [B, F, C]; P = centred x projection + bias
        centers = centers.astype(jnp.float32)
        folded = _einsum('bnc,bic->bni', centers, projection).astype(self.dtype)
        response = _einsum('bni,bdhwi->bndhw', folded, centred)
        response += _einsum('bnc,c->bn', centers, bias)[:, :, None, None, None]
        if self.norm == 'l2':
            squared = _squared_length(centred, projection, bias)
            response *= jax.lax.rsqrt(squared + EPSILON)[:, None]
        return constrain(response, axes.RESPONSE)

    def _parameters(self, width_in: int, width: int) -> tuple[Any, Any, Any]:
        """Kernel [F, C] of the convolution, scale [C] and bias [C] of the InstanceNorm."""

        def norm(name: str, value: float) -> Any:
            init = nn.initializers.constant(value)
            init = nn.with_logical_partitioning(init, (axes.NORM,))
            return gather(self.param(name, init, (width,), jnp.float32))

        init = nn.with_logical_partitioning(initializers.lecun_normal(), axes.DENSE_KERNEL)
        kernel = self.param('kernel', init, (width_in, width), jnp.float32)
        return gather(kernel), norm('norm_scale', width**-0.5), norm('norm_bias', 0.0)


def _squared_length(centred: Array, projection: Array, bias: Array) -> Array:
    """|P|^2 at every voxel [B, d, h, w], a quadratic form in the features."""
    gram = _einsum('bic,bjc->bij', projection, projection).astype(centred.dtype)
    cross = 2.0 * _einsum('bic,c->bi', projection, bias)[:, None, None, None]
    rotated = _einsum('bij,bdhwj->bdhwi', gram, centred) + cross
    squared = jnp.sum(rotated * centred.astype(jnp.float32), axis=-1) + jnp.sum(bias**2)
    return jnp.maximum(squared, 0.0)  # rounding


def _einsum(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(
        subscripts,
        *operands,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


class KMaxBlock(nn.Module, kw_only=True):
    """k-means cross-attention, self-attention, GELU, feed-forward, GELU; residual throughout.

    Unspecified in the paper: the order of the parts and all widths are kMaX-DeepLab's.
    Deviation: kMaX-DeepLab's predictor has a depthwise 5x5 convolution on its pixel side; Eq. 3
    has none.

    Attributes:
        num_classes: K.
        options: of the decoder.
    """

    num_classes: int
    options: DecoderOptions

    @nn.compact
    def __call__(
        self, queries: Array, pixels: Array, *, train: bool = False
    ) -> tuple[Array, QueryPrediction]:
        """Updates the queries from the voxels of one stride.

        Args:
            queries: [B, N, Q] float32.
            pixels: [B, d, h, w, F] pixel decoder's features.
            train: whether drop path is active (stream 'dropout').

        Returns:
            Updated queries [B, N, Q] float32, and the prediction of the queries before the update.
        """
        options, width = self.options, queries.shape[-1]
        projection = QueryProjection(features=width, dtype=options.dtype, name='query_projection')
        query_space = projection(queries)
        pixel_space = gelu(
            PixelProjection(features=width, dtype=options.dtype, name='pixel_projection')(
                gelu(pixels)
            )
        )
        prediction = self._predict(query_space, pixel_space)

        update = KMeansCrossAttention(
            reduction=options.kmeans_reduction, dtype=options.dtype, name='kmeans'
        )(prediction.query_response, pixel_space)
        queries += self._drop(update, 'kmeans_drop', train)

        attend = SelfAttention(num_heads=options.num_heads, dtype=options.dtype, name='attention')
        update = attend(
            query_space if options.self_attention_input == 'pre' else projection(queries)
        )
        queries = gelu(queries + self._drop(update, 'attention_drop', train))

        hidden = QueryProjection(features=options.ffn_dim, dtype=options.dtype, name='ffn_hidden')
        out = Dense(features=width, kernel_init=RESIDUAL_INIT, dtype=options.dtype, name='ffn_out')
        queries = gelu(queries + self._drop(out(hidden(queries)), 'ffn_drop', train))
        return queries, prediction

    def _predict(self, query_space: Array, pixel_space: Array) -> QueryPrediction:
        options = self.options
        centers, class_logits = ClusterHead(
            num_classes=self.num_classes,
            embed_dim=options.embed_dim,
            dtype=options.dtype,
            name='cluster_head',
        )(query_space)
        respond = PixelResponse(norm=options.pixel_norm, dtype=options.dtype, name='pixel_response')
        response = respond(pixel_space, centers)
        return QueryPrediction(query_response=response, class_logits=class_logits)

    def _drop(self, update: Array, name: str, train: bool) -> Array:
        """Drop path; float32, as the queries that the update is added to."""
        return DropPath(rate=self.options.drop_path, name=name)(
            update.astype(jnp.float32), train=train
        )


class QueryDecoder(nn.Module, kw_only=True):
    """Learned queries through one block per output stride, coarse to fine (MaxQuery Sec. 4.2).

    Attributes:
        num_classes: K.
        options: sizes and choices.
    """

    num_classes: int
    options: DecoderOptions

    @nn.compact
    def __call__(
        self, features: PixelFeatures, *, train: bool = False
    ) -> tuple[Array, tuple[QueryPrediction, ...]]:
        """Returns queries [B, N, Q] (float32) and the prediction of each block."""
        init = nn.with_logical_partitioning(
            initializers.truncated_normal(1.0), (axes.QUERY, axes.FEATURES_OUT)
        )
        shape = (self.options.num_queries, self.options.query_dim)
        initial: Any = self.param('queries', init, shape, jnp.float32)
        queries = jnp.broadcast_to(gather(initial)[None], (features.full.shape[0], *shape))
        predictions = []
        for i, stride in enumerate(self.options.output_strides):
            block = KMaxBlock(num_classes=self.num_classes, options=self.options, name=f'block{i}')
            queries, prediction = block(queries, features.decoder[stride], train=train)
            predictions.append(prediction)
        return queries, tuple(predictions)
