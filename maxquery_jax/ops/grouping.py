"""Object-aware feature grouping: voxels choose queries, queries gather voxels (ZePT Eq. 3 to 6).

The Gumbel-softmax runs over the QUERIES: every voxel belongs to one query, so that queries cover
regions that do not overlap. (The soft cross-attention before it, Eq. 1 and 2, runs over voxels.)
"""

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array

# On TPUs the default einsum rounds float32 operands to bfloat16.
_FLOAT32 = {'precision': jax.lax.Precision.HIGHEST, 'preferred_element_type': jnp.float32}


def soft_assignment(
    similarity: Array, temperature: Array | float = 1.0, noise: Array | None = None
) -> Array:
    """Gumbel-softmax of the similarities over the queries (ZePT Eq. 3).

    S_ij = exp((q_i . f_j + g_ij) / tau) / sum_k exp((q_k . f_j + g_kj) / tau).

    Args:
        similarity: [B, N, L] of projected queries and voxels.
        temperature: tau > 0, a number or a scalar array (learnable).
        noise: [B, N, L] samples of Gumbel(0, 1), see `gumbel_noise`; none outside training.

    Returns:
        [B, N, L] float32 S; sums to one over axis 1 at every voxel.
    """
    logits = similarity.astype(jnp.float32)
    if noise is not None:
        logits = logits + noise
    return jax.nn.softmax(logits / temperature, axis=1)


def gumbel_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Independent samples of Gumbel(0, 1) for `soft_assignment`, float32."""
    return jax.random.gumbel(key, shape, jnp.float32)


def straight_through(soft: Array) -> Array:
    """One-hot of the largest entry over the queries, with the gradient of S (ZePT Eq. 4 and 5).

    The equation is onehot(argmax S) - sg(S) + S. Here S - sg(S), which is exactly zero, is formed
    first: the result then is exactly one-hot.

    Args:
        soft: [B, N, L] S.

    Returns:
        [B, N, L] float32 one-hot over axis 1; ties go to the lower query.
    """
    winner = jnp.argmax(jax.lax.stop_gradient(soft), axis=1)
    hard = jax.nn.one_hot(winner, soft.shape[1], axis=1, dtype=jnp.float32)
    return hard + (soft - jax.lax.stop_gradient(soft))


def group_features(assignment: Array, values: Array) -> Array:
    """Mean-like sum of the voxels of each query (the update of ZePT Eq. 6).

    Unspecified in the paper: the sum is divided by the query's number of voxels plus one, as in
    the released code and in GroupViT; a query without voxels then gathers zero.

    Args:
        assignment: [B, N, L] hard or soft.
        values: [B, L, C] projected voxel features.

    Returns:
        [B, N, C] float32.
    """
    total = jnp.einsum('bnl,blc->bnc', assignment, values.astype(jnp.float32), **_FLOAT32)
    return total / (jnp.sum(assignment, axis=2, keepdims=True) + 1.0)


def assign(
    similarity: Array,
    *,
    temperature: Array | float = 1.0,
    key: Array | None = None,
    hard: bool = True,
) -> Array:
    """Assignment of voxels to queries, in training (with a key) or evaluation (without).

    Args:
        similarity: [B, N, L].
        temperature: see `soft_assignment`.
        key: of the Gumbel noise; none for evaluation, where the hard choice is the argmax of the
            similarities whatever the temperature.
        hard: one-hot with a straight-through gradient, else S itself.

    Returns:
        [B, N, L] float32.
    """
    noise = None if key is None else gumbel_noise(key, similarity.shape)
    soft = soft_assignment(similarity, temperature, noise)
    return straight_through(soft) if hard else soft
