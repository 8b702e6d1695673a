"""Query-knowledge alignment: queries classified by the texts of their classes (ZePT Eq. 11)."""

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.typing import Array

_MASKED = -1e30  # finite, so that no gradient is inf * 0; its exponential is exactly zero
_EPSILON = 1e-12
SIMILARITIES = ('cosine', 'dot')


def alignment_logits(
    queries: Array, knowledge: Array, temperature: Array | float, *, similarity: str = 'cosine'
) -> Array:
    """Similarity of queries and texts over the temperature, the logits of ZePT Eq. 11.

    Args:
        queries: [B, N, T] projected into the text space.
        knowledge: [K, T] text embeddings, one per class.
        temperature: tau > 0, a number or a scalar array (learnable).
        similarity: 'cosine' as in the paper, or 'dot', the plain product of the released code.

    Returns:
        [B, N, K] float32.

    Raises:
        ValueError: if `similarity` is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f'similarity must be one of {SIMILARITIES}, got {similarity!r}')
    queries, knowledge = queries.astype(jnp.float32), knowledge.astype(jnp.float32)
    if similarity == 'cosine':
        queries, knowledge = _unit(queries), _unit(knowledge)
    product = jnp.einsum(
        'bnt,kt->bnk',
        queries,
        knowledge,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product / temperature


def alignment_loss(
    logits: Array, query_mask: Array | None = None, candidates: Array | None = None
) -> Array:
    """Cross-entropy of each query's text among all texts (ZePT Eq. 11), query i having text i.

    Deviation: the released code's targets are multi-hot by two names for one tensor; the paper's
    are one-hot.

    Args:
        logits: [B, N, N] of `alignment_logits`, row query, column text.
        query_mask: [B, N] bool, queries that count, those of the classes that a sample annotates;
            all by default. The others get a gradient of exactly zero.
        candidates: [N] bool, texts that compete in the softmax, the training classes in the paper;
            all by default, as in the released code, so that queries keep away from the texts of
            unseen tumours too. A query whose own text does not compete does not count.

    Returns:
        Float32 scalar: mean over a sample's queries that count, then over samples.

    Raises:
        ValueError: if there are not as many texts as queries.
    """
    num_queries, num_texts = logits.shape[1:]
    if num_queries != num_texts:
        raise ValueError(f'{num_queries} queries and {num_texts} texts: query i needs text i')
    logits = logits.astype(jnp.float32)
    counted = jnp.ones(logits.shape[:2], bool) if query_mask is None else query_mask.astype(bool)
    if candidates is not None:
        counted &= candidates[None].astype(bool)
        logits = jnp.where(candidates[None, None].astype(bool), logits, _MASKED)
    return masked_cross_entropy(logits, np.arange(num_texts), counted)


def masked_cross_entropy(logits: Array, targets: np.ndarray, counted: Array) -> Array:
    """Cross-entropy of queries whose class is fixed, mean over those that count, then samples.

    Args:
        logits: [B, N, K] float32.
        targets: [N] class of each query, 0 to K - 1; any value for a query that never counts.
        counted: [B, N] bool.

    Returns:
        Float32 scalar.
    """
    own = np.eye(logits.shape[-1], dtype=bool)[targets]  # [N, K]
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(own[None], logits, 0.0), axis=-1)
    total = jnp.sum(jnp.where(counted, loss, 0.0), axis=-1)
    return jnp.mean(total / jnp.maximum(jnp.sum(counted, axis=-1), 1))


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPSILON)
