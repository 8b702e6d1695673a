"""Overlapping truth: a label map holds one class per voxel, an organ's truth its tumours as well.

ZePT (supplement 6.1) and the Universal Model train one binary mask per class, so that a voxel of a
liver tumour is liver as well. A store keeps the most specific class; `class_targets` gives the
masks back.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from maxquery_jax.typing import Array

Parents = Sequence[int | Sequence[int]]


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
    sides = [_as_tuple(parent) for parent in parents]
    for child, organs in enumerate(sides):
        if not all(0 <= organ < len(sides) and organ != child for organ in organs):
            raise ValueError(f'class {child} has parents {organs} of {len(sides)} classes')
    masks = [label == k for k in range(len(sides))]
    whole = list(masks)
    for child, organs in enumerate(sides):
        for organ, inside in zip(organs, _share(masks, child, organs), strict=True):
            whole[organ] = whole[organ] | inside
    return jnp.stack(whole, axis=-1)


def _as_tuple(parent: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(parent, Sequence):
        return tuple(parent)
    return () if parent < 0 else (int(parent),)


def _share(masks: Sequence[Array], child: int, organs: Sequence[int]) -> list[Array]:
    """The part of a class's mask that lies in each of its possible organs."""
    if len(organs) < 2:
        return [masks[child]] * len(organs)
    distances = jnp.stack([_distance_to_centre(masks[organ]) for organ in organs])
    nearest = jnp.argmin(distances, axis=0)
    is_shown = jnp.isfinite(distances).any(axis=0)
    return [masks[child] & is_shown & (nearest == side) for side in range(len(organs))]


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
