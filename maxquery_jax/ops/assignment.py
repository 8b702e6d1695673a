"""Voxels as members of query clusters: MaxQuery Eq. 2 to 6, one equation a function."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array

NUM_GROUPS = 3  # background, organ, tumour: the order of query groups and of class groups

# On TPUs the default einsum rounds float32 operands to bfloat16.
_FLOAT32 = {'precision': jax.lax.Precision.HIGHEST, 'preferred_element_type': jnp.float32}


def kmeans_update(query_logits: Array, values: Array, *, reduction: str = 'sum') -> Array:
    """Collects the values of the voxels that each query wins (the second term of MaxQuery Eq. 2).

    Every voxel is given, hard, to the query of its largest logit; ties go to the lower index. The
    choice is not differentiable: gradients reach `values` only, and the logits learn through the
    deep supervision of the prediction that they are.

    Args:
        query_logits: [B, N, L] similarity of queries and voxels, Q^c x (K^p)^T.
        values: [B, L, C] pixel values V^p.
        reduction: 'sum' over a query's voxels as in the equation, or their 'mean'.

    Returns:
        [B, N, C] float32; zero for a query that wins no voxel.

    Raises:
        ValueError: if `reduction` is neither 'sum' nor 'mean'.
    """
    if reduction not in ('sum', 'mean'):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    winner = jnp.argmax(jax.lax.stop_gradient(query_logits), axis=1)  # [B, L]
    member = jax.nn.one_hot(winner, query_logits.shape[1], axis=1)  # [B, N, L]
    update = jnp.einsum('bnl,blc->bnc', member, values.astype(jnp.float32), **_FLOAT32)
    if reduction == 'mean':
        update /= jnp.maximum(member.sum(axis=2, keepdims=True), 1.0)
    return update


def assignment(query_response: Array) -> Array:
    """Softmax over the queries (MaxQuery Eq. 3).

    Args:
        query_response: [B, N, D, H, W] R.

    Returns:
        [B, N, D, H, W] float32 M; sums to one over axis 1 at every voxel.
    """
    return jax.nn.softmax(query_response.astype(jnp.float32), axis=1)


def aggregate(class_logits: Array, assignment: Array, *, class_axis: int = -1) -> Array:
    """Weighs each query's class logits by its share of the voxel (MaxQuery Eq. 4).

    Args:
        class_logits: [B, N, K] C_K.
        assignment: [B, N, D, H, W] M.
        class_axis: -1, or 1 for [B, K, D, H, W], which is narrow along no axis of the memory.

    Returns:
        [B, D, H, W, K] float32 Z.
    """
    result = 'bkdhw' if class_axis == 1 else 'bdhwk'
    return jnp.einsum(f'bnk,bndhw->{result}', class_logits, assignment, **_FLOAT32)


def merge_assignments(assignment: Array, query_groups: Sequence[int]) -> Array:
    """Sums query assignments into background, organ and tumour (MaxQuery Eq. 5).

    Args:
        assignment: [B, N, D, H, W] probabilities, softmax over N.
        query_groups: (N1, N2, N3), number of queries per group, N1 + N2 + N3 == N.

    Returns:
        [B, 3, D, H, W]; sums to one over axis 1 at every voxel.

    Raises:
        ValueError: if the groups do not add up to N.
    """
    parts = _split_groups(assignment, query_groups)
    return jnp.stack([part.sum(axis=1) for part in parts], axis=1)


def merge_responses(query_response: Array, query_groups: Sequence[int]) -> Array:
    """Log-sum-exp of the responses of each group.

    The log of Eq. 5 up to a constant per voxel: `log_softmax(merge_responses(R), axis=1)` is
    `log(merge_assignments(assignment(R)))` without its underflow.

    Args:
        query_response: [B, N, D, H, W] R.
        query_groups: (N1, N2, N3), number of queries per group, N1 + N2 + N3 == N.

    Returns:
        [B, 3, D, H, W] float32.

    Raises:
        ValueError: if the groups do not add up to N.
    """
    parts = _split_groups(query_response.astype(jnp.float32), query_groups)
    return jnp.stack([jax.nn.logsumexp(part, axis=1) for part in parts], axis=1)


def _split_groups(x: Array, query_groups: Sequence[int]) -> list[Array]:
    if len(query_groups) != NUM_GROUPS or sum(query_groups) != x.shape[1]:
        raise ValueError(
            f'query_groups {tuple(query_groups)} must be {NUM_GROUPS} counts that add up to the '
            f'{x.shape[1]} queries'
        )
    first, second, _ = query_groups
    return [x[:, :first], x[:, first : first + second], x[:, first + second :]]


def merge_labels(label: Array, class_groups: Sequence[int]) -> Array:
    """One-hot labels of background, organ and tumour (MaxQuery Eq. 6).

    The paper has one organ, class 2 of K; `class_groups` says the group of each class, so that
    several organ classes share the organ queries.

    Args:
        label: [B, D, H, W] integer class of each voxel, 0 to K - 1.
        class_groups: group of each class, 0 background, 1 organ, 2 tumour; K entries.

    Returns:
        [B, 3, D, H, W] float32 G~; one-hot over axis 1.
    """
    group = jnp.asarray(class_groups, jnp.int32)[label]
    return jax.nn.one_hot(group, NUM_GROUPS, axis=1)
