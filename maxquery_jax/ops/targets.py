"""Overlapping truth: a label map holds one class per voxel, an organ's truth its tumours as well.

ZePT (supplement 6.1) and the Universal Model train one binary mask per class, so that a voxel of a
liver tumour is liver as well. A store keeps the most specific class; `class_targets` gives the
masks back.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from maxquery_jax.typing import Array

Parents = Sequence[int | Sequence[int]]


_NO_CLASS = -1


def class_targets(label: Array, parents: Parents) -> Array:
    """One binary mask per class; the mask of an organ holds its tumours.

    A tumour of a paired organ lies in the side whose labelled voxels in the sample have the nearer
    centre (in voxels); in neither where the sample shows neither. Unspecified in the papers: the
    Universal Model splits the kidneys, tumours included, before it crops.

    Args:
        label: [B, D, H, W] integer class, 0 to K - 1; other ids are in no mask.
        parents: for every class the organ class it lies in, -1 for none, or a tuple of the classes
            it may lie in (empty for none): `Manifest.parents`.

    Returns:
        [B, D, H, W, K] bool. Parents of parents are not looked at.

    Raises:
        ValueError: if a parent is not one of the K classes or a class is its own parent.
    """
    return jnp.moveaxis(target_masks(label, parents, range(len(parents))), 1, -1)


def target_masks(label: Array, parents: Parents, classes: Sequence[int]) -> Array:
    """The masks of some classes, see `class_targets`, beside each other.

    Args:
        label: [B, D, H, W] integer class.
        parents: of the K classes.
        classes: N of them, in any order; a negative one has an empty mask.

    Returns:
        [B, N, D, H, W] bool.

    Raises:
        ValueError: as `class_targets`.
    """
    sides = [_as_tuple(parent) for parent in parents]
    for child, organs in enumerate(sides):
        if not all(0 <= organ < len(sides) and organ != child for organ in organs):
            raise ValueError(f'class {child} has parents {organs} of {len(sides)} classes')
    members = [
        [k, *(child for child, organs in enumerate(sides) if organs == (k,))] if k >= 0 else []
        for k in classes
    ]
    width = max((len(ids) for ids in members), default=0)
    ids = np.full((len(members), width), _NO_CLASS)
    for row, own in enumerate(members):
        ids[row, : len(own)] = own
    # One comparison with a table: a mask for each class by itself takes XLA minutes to compile.
    own = jnp.where(label >= 0, label, len(sides))[:, None, None]
    masks = jnp.any(own == ids[None, :, :, None, None, None], axis=2)
    if all(len(organs) < 2 for organs in sides):
        return masks
    wanted = np.asarray([k if k >= 0 else len(sides) for k in classes])
    return masks | (_side(label, sides)[:, None] == wanted[None, :, None, None, None])


def _as_tuple(parent: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(parent, Sequence):
        return tuple(parent)
    return () if parent < 0 else (int(parent),)


def _side(label: Array, sides: Sequence[tuple[int, ...]]) -> Array:
    """[B, D, H, W] the organ of every voxel of a class that may lie in several; else none."""
    side = jnp.full(label.shape, _NO_CLASS)
    found: dict[tuple[int, ...], Array] = {}
    for child, organs in enumerate(sides):
        if len(organs) < 2:
            continue
        if organs not in found:
            distances = jnp.stack([_distance_to_centre(label == organ) for organ in organs])
            nearest = jnp.asarray(organs)[jnp.argmin(distances, axis=0)]
            found[organs] = jnp.where(jnp.isfinite(distances).any(axis=0), nearest, _NO_CLASS)
        side = jnp.where(label == child, found[organs], side)
    return side


def _distance_to_centre(mask: Array) -> Array:
    """[B, D, H, W] squared distance of every voxel to the mask's centre; infinite if empty."""
    count = jnp.sum(mask, axis=(1, 2, 3), dtype=jnp.float32)
    total = jnp.zeros(mask.shape, jnp.float32)
    for axis in (1, 2, 3):
        others = tuple(a for a in (1, 2, 3) if a != axis)
        along = jnp.sum(mask, axis=others, dtype=jnp.float32)  # [B, size]
        index = jnp.arange(mask.shape[axis], dtype=jnp.float32)
        centre = jnp.sum(along * index[None], axis=1) / jnp.maximum(count, 1)
        square = (index[None] - centre[:, None]) ** 2
        shape = [mask.shape[0], 1, 1, 1]
        shape[axis] = mask.shape[axis]
        total = total + square.reshape(shape)
    return jnp.where(count.reshape(-1, 1, 1, 1) > 0, total, jnp.inf)
