"""Anomaly scores of voxels: larger means less like anything known (MaxQuery Sec. 3.3, Tab. 4).

Scores are raw. Their scale differs between models, and only ranks are compared; min-max
normalisation would make a voxel's score depend on the rest of its scan.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array


def query_logit_score(query_response: Array) -> Array:
    """MaxQuery: the negative of the largest query response (MaxQuery Eq. 9).

    Args:
        query_response: [B, N, D, H, W] R.

    Returns:
        [B, D, H, W] float32 A = -max_N R.
    """
    return -jnp.max(query_response.astype(jnp.float32), axis=1)


def query_softmax_score(query_response: Array) -> Array:
    """One minus the largest query assignment, A' = 1 - max_N M (MaxQuery Sec. 3.3).

    Deviation: the paper writes -max_N M. The added one changes no rank, and keeps the small
    differences between confident voxels that a float16 file would round away near -1.

    Args:
        query_response: [B, N, D, H, W] R.

    Returns:
        [B, D, H, W] float32 in [0, 1 - 1/N].
    """
    return _one_minus_max_softmax(query_response, axis=1)


def category_logit_score(seg_logits: Array) -> Array:
    """MaxLogit: the negative of the largest class logit (MaxQuery Tab. 4, pre-softmax).

    Args:
        seg_logits: [B, D, H, W, K] Z.

    Returns:
        [B, D, H, W] float32 -max_K Z.
    """
    return -jnp.max(seg_logits.astype(jnp.float32), axis=-1)


def category_softmax_score(seg_logits: Array) -> Array:
    """MSP: one minus the largest class probability (MaxQuery Tab. 4, post-softmax).

    Deviation: as in `query_softmax_score`.

    Args:
        seg_logits: [B, D, H, W, K] Z.

    Returns:
        [B, D, H, W] float32 in [0, 1 - 1/K].
    """
    return _one_minus_max_softmax(seg_logits, axis=-1)


def _one_minus_max_softmax(logits: Array, axis: int) -> Array:
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=axis) - jax.nn.logsumexp(logits, axis=axis)
    return -jnp.expm1(largest)


SCORES: dict[str, tuple[str, Callable[[Array], Array]]] = {
    'query_logit': ('query', query_logit_score),
    'query_softmax': ('query', query_softmax_score),
    'category_logit': ('category', category_logit_score),
    'category_softmax': ('category', category_softmax_score),
}
"""Score name to what it reads, 'query' (R) or 'category' (Z), and its function."""
