"""MaxQuery: a backbone, the query decoder, and the two-stage cluster head (MaxQuery Sec. 3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models.kmax_decoder import (
    ClusterHead,
    DecoderOptions,
    PixelResponse,
    QueryDecoder,
)
from maxquery_jax.models.partition import constrain
from maxquery_jax.ops import anomaly
from maxquery_jax.ops.assignment import aggregate, assignment
from maxquery_jax.ops.spatial import resize_linear
from maxquery_jax.typing import Array, MaxQueryOutputs, QueryPrediction


@jax.checkpoint
def segment(class_logits: Array, query_response: Array) -> Array:
    """Z = C_K^T softmax_N(R) (MaxQuery Eq. 3 and 4).

    The assignment is recomputed in the backward pass: at the paper's patch it is as large as the
    response, 0.2 GB a sample.

    Args:
        class_logits: [B, N, K] C_K.
        query_response: [B, N, D, H, W] R.

    Returns:
        [B, D, H, W, K] float32 Z.
    """
    return aggregate(class_logits, assignment(query_response))


class MaxQuery(nn.Module, kw_only=True):
    """Mask transformer for segmentation of known and localisation of unknown tumours.

    Unspecified in the paper: P comes from the pixel decoder's output at the input's resolution,
    as Eq. 3 reads. A coarser `pixel_stride` averages that output first, and Z is then resized.

    Attributes:
        backbone: image to PixelFeatures.
        num_classes: K.
        decoder: sizes and choices of the query decoder.
        deep_supervision: whether training returns the blocks' predictions. Without it the blocks'
            cluster heads and pixel responses get no gradient: the hard assignment passes none.
        pixel_stride: (z, y, x) stride of P.
    """

    backbone: nn.Module
    num_classes: int
    decoder: DecoderOptions = DecoderOptions()
    deep_supervision: bool = True
    pixel_stride: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(
        self, image: Array, *, train: bool = False, freeze_backbone: bool = False
    ) -> MaxQueryOutputs:
        """Segments a batch of patches.

        Args:
            image: [B, D, H, W, P].
            train: drop path is active (stream 'dropout') and `aux_outputs` are returned.
            freeze_backbone: stop gradients at the pixel features, which saves the backbone's
                backward pass.
        """
        features = self.backbone(image, train=train)
        if freeze_backbone:
            features = jax.tree.map(jax.lax.stop_gradient, features)
        options = self.decoder
        queries, block_predictions = QueryDecoder(
            num_classes=self.num_classes, options=options, name='query_decoder'
        )(features, train=train)
        centers, class_logits = ClusterHead(
            num_classes=self.num_classes,
            embed_dim=options.embed_dim,
            dtype=options.dtype,
            name='cluster_head',
        )(queries)
        pixels = average_pool(features.full, self.pixel_stride)
        respond = PixelResponse(norm=options.pixel_norm, dtype=options.dtype, name='pixel_response')
        response = respond(pixels, centers)
        seg_logits = resize_to(segment(class_logits, response), image.shape[1:4])
        return MaxQueryOutputs(
            final=QueryPrediction(query_response=response, class_logits=class_logits),
            aux_outputs=block_predictions if train and self.deep_supervision else (),
            seg_logits=constrain(seg_logits, axes.VOLUME),
        )


def average_pool(x: Array, stride: tuple[int, int, int]) -> Array:
    """Mean over blocks of `stride` voxels; [B, D, H, W, C] to [B, D/sd, H/sh, W/sw, C]."""
    if max(stride) == 1:
        return x
    batch, *shape, features = x.shape
    blocks = [size for n, s in zip(shape, stride, strict=True) for size in (n // s, s)]
    x = x.reshape(batch, *blocks, features)
    return x.mean(axis=(2, 4, 6), dtype=jnp.float32).astype(x.dtype)


def resize_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Trilinear resize of [B, d, h, w, C] to [B, *shape, C], nothing where the sizes agree."""
    if x.shape[1:4] == tuple(shape):
        return x
    depth, height, width = shape
    return resize_linear(x, (depth, height, width))


def anomaly_map(outputs: MaxQueryOutputs, score: str = 'query_logit') -> Array:
    """Anomaly score of every voxel of the input (MaxQuery Eq. 9 by default).

    Args:
        outputs: of `MaxQuery`.
        score: a name in `ops.anomaly.SCORES`.

    Returns:
        [B, D, H, W] float32 raw score, larger is more anomalous; trilinearly resized to the
        input's size where P is coarser.
    """
    source, function = anomaly.SCORES[score]
    if source == 'category':
        return function(outputs.seg_logits)
    scores = function(outputs.final.query_response)
    return resize_to(scores[..., None], outputs.seg_logits.shape[1:4])[..., 0]
