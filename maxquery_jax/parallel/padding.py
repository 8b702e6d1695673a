"""Leaves that the fsdp axis divides along no dimension are stored flat, padded until it does.

The bias of a head of 9 classes lies on 4 shards as [12] = 3 + 3 + 3 + 3 numbers; the optimiser
works on that form (the padding has no gradient and stays 0), the model and checkpoints see [9].
Only a leaf of a single number cannot be divided: one shard holds it, the others hold padding.
"""

import math

import jax
import jax.numpy as jnp

from maxquery_jax.models.partition import gather
from maxquery_jax.typing import PyTree


def stored_shape(shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
    """How a leaf of the model is stored over `shards` shards: as it is, or flat and padded."""
    if shards == 1 or any(side % shards == 0 for side in shape):
        return shape
    return (-(-math.prod(shape) // shards) * shards,)


def pad(tree: PyTree, shapes: PyTree) -> PyTree:
    """Leaves of a model as they are stored.

    Args:
        tree: arrays.
        shapes: the same tree of whatever has the stored shapes.
    """

    def convert(leaf, stored):
        if leaf.shape == stored.shape:
            return leaf
        return jnp.pad(jnp.ravel(leaf), (0, stored.shape[0] - math.prod(leaf.shape)))

    return jax.tree.map(convert, tree, shapes)


def unpad(tree: PyTree, shapes: PyTree) -> PyTree:
    """Stored leaves as a model takes them, the padded ones gathered for it.

    Args:
        tree: arrays as `pad` gives them.
        shapes: the same tree of whatever has the model's shapes.
    """

    def convert(leaf, wanted):
        if leaf.shape == wanted.shape:
            return leaf
        return gather(leaf)[: math.prod(wanted.shape)].reshape(wanted.shape)

    return jax.tree.map(convert, tree, shapes)
