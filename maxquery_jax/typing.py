"""Type aliases and the small dataclasses that cross module boundaries."""

from typing import Any

import flax.struct
import jax

Array = jax.Array
PyTree = Any
Config = Any
"""An `ml_collections.ConfigDict`, whose fields a type checker cannot know."""
Batch = dict[str, Array]
"""`image` [B, D, H, W, P] and `label` [B, D, H, W]; see `data.pipeline`."""


@flax.struct.dataclass
class PixelFeatures:
    """What every backbone hands to a query decoder.

    Attributes:
        encoder: output stride (largest stride over the axes) to [B, d, h, w, C_s].
        decoder: the same for the pixel decoder; the coarsest entry is the encoder's.
        full: [B, D, H, W, C] the pixel decoder's output at the input's resolution.
    """

    encoder: dict[int, Array]
    decoder: dict[int, Array]
    full: Array


@flax.struct.dataclass
class SegmentationOutputs:
    """Outputs of a backbone with segmentation heads (nnU-Net).

    Attributes:
        seg_logits: [B, D, H, W, K] at the input's resolution.
        aux_outputs: coarser logits [B, d, h, w, K], fine to coarse; empty without deep supervision.
        features: [B, D, H, W, C] what the full-resolution head reads.
    """

    seg_logits: Array
    aux_outputs: tuple[Array, ...] = ()
    features: Array | None = None


@flax.struct.dataclass
class QueryPrediction:
    """One prediction of the query decoder (MaxQuery Eq. 3 and 4), final or of one block.

    Attributes:
        query_response: [B, N, d, h, w] R, before the softmax over N.
        class_logits: [B, N, K] C_K.
    """

    query_response: Array
    class_logits: Array


@flax.struct.dataclass
class MaxQueryOutputs:
    """Outputs of MaxQuery.

    Attributes:
        final: prediction of the updated queries at the pixel stride of P.
        aux_outputs: one prediction per decoder block, coarse to fine; empty outside training.
        seg_logits: [B, D, H, W, K] Z (Eq. 4) at the input's resolution.
    """

    final: QueryPrediction
    aux_outputs: tuple[QueryPrediction, ...]
    seg_logits: Array
