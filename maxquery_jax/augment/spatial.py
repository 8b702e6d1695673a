"""Rotation, scaling and elastic deformation of one sample in a single resampling.

Coordinates are voxel indices (z, y, x) of the crop; spacing is ignored, as in nnU-Net. A sample
here has no batch axis.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.typing import Array


def crop_start(crop_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """First voxel of the patch in the centre of a crop.

    Raises:
        ValueError: if the patch is larger than the crop along an axis.
    """
    if any(c < p for c, p in zip(crop_size, patch_size, strict=True)):
        raise ValueError(f'crop {tuple(crop_size)} does not contain patch {tuple(patch_size)}')
    return tuple((c - p) // 2 for c, p in zip(crop_size, patch_size, strict=True))


def center_crop(volume: Array, patch_size: Sequence[int]) -> Array:
    """[D, H, W, ...] crop to its central [*patch_size, ...]."""
    start = crop_start(volume.shape[:3], patch_size)
    box = tuple(slice(s, s + n) for s, n in zip(start, patch_size, strict=True))
    return volume[box]


def mirrored_crop(
    image: Array,
    label: Array,
    index: Array,
    patch_size: Sequence[int],
    mirrors: Array,
    mirror_axes: Sequence[int],
) -> tuple[Array, Array]:
    """Central patch of one sample of a batch, mirrored, in a single pass.

    Args:
        image: [B, D, H, W, P].
        label: [B, D, H, W].
        index: of the sample.
        patch_size: (d, h, w).
        mirrors: [3] bool, axes to mirror.
        mirror_axes: static; those that `mirrors` may name.

    Returns:
        [d, h, w, P] and [d, h, w].
    """
    start = crop_start(image.shape[1:4], patch_size)

    def cut(x: Array) -> Array:
        rest = x.ndim - 4
        size = (1, *patch_size, *x.shape[4:])
        return jax.lax.dynamic_slice(x, (index, *start, *(0,) * rest), size)[0]

    axes = sorted(mirror_axes)
    # One branch per combination: reversing is then part of the copy.
    branches = [
        lambda chosen=chosen: (jnp.flip(cut(image), chosen), jnp.flip(cut(label), chosen))
        for chosen in (
            tuple(axis for bit, axis in enumerate(axes) if code >> bit & 1)
            for code in range(2 ** len(axes))
        )
    ]
    code = sum((mirrors[axis].astype(jnp.int32) << bit for bit, axis in enumerate(axes)), start=0)
    return jax.lax.switch(code, branches)


def rotation_matrix(angles: Array) -> Array:
    """[3, 3] rotation of (z, y, x) vectors about z, then y, then x.

    Args:
        angles: [3] radians about the axes z, y, x; about z only is a rotation in the plane.
    """
    (cz, cy, cx), (sz, sy, sx) = jnp.cos(angles), jnp.sin(angles)
    about_z = jnp.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    about_y = jnp.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = jnp.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def elastic_displacement(
    key: Array,
    shape: Sequence[int],
    alpha: Array,
    sigma: Array,
    sigma_range: tuple[float, float],
) -> Array:
    """Smooth random displacement with the strength of nnU-Net v1's elastic deformation.

    There, uniform noise in [-1, 1] per voxel is filtered with a Gaussian of standard deviation
    sigma (sum 1) and multiplied by alpha. Here the same kind of field, Gaussian with covariance
    exp(-r^2 / (4 sigma^2)) and the standard deviation those two steps give, is made from noise on a
    grid of half the smallest sigma, which needs no filtering at full resolution.

    Deviation: v1 filters with zeros outside the patch, which damps displacements near its border;
    this field is stationary.

    Args:
        key: random key.
        shape: sizes of the patch along the deformed axes (two or three).
        alpha: scalar strength; displacements have a standard deviation of a few voxels at 900 in 3D
            and 200 in 2D.
        sigma: scalar smoothness in voxels, within `sigma_range`.
        sigma_range: static bounds of sigma.

    Returns:
        [len(shape), *shape] displacement in voxels.
    """
    spacing = sigma_range[0] / 2
    reach = 3 * sigma_range[1]
    matrices = []
    for size in shape:
        nodes = np.arange(-reach, size - 1 + reach + spacing, spacing)
        offset = jnp.asarray(np.arange(size)[:, None] - nodes[None, :], jnp.float32)
        weight = jnp.exp(-0.5 * jnp.square(offset / sigma))
        matrices.append(weight / jnp.linalg.norm(weight, axis=1, keepdims=True))
    field = jax.random.normal(key, (len(shape), *(m.shape[1] for m in matrices)))
    for matrix in reversed(matrices):  # the last axis first; each pass moves it to the front
        field = jnp.einsum('c...x,ax->ca...', field, matrix, precision='highest')
    # Standard deviation of uniform noise, times the 2-norm of a Gaussian filter per axis.
    spread = alpha / np.sqrt(3) * (2 * np.sqrt(np.pi) * sigma) ** (-len(shape) / 2)
    return spread * field


def patch_coordinates(
    crop_size: Sequence[int],
    patch_size: Sequence[int],
    matrix: Array,
    displacement: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Where in the crop each voxel of the patch is sampled: displaced first, then transformed.

    Args:
        crop_size: (D, H, W) of the crop.
        patch_size: (d, h, w) of the patch.
        matrix: [3, 3] rotation times scale; offsets from the centre of the patch are multiplied by
            it, so a scale above 1 makes objects smaller.
        displacement: [3, d, h, w] voxels, or [3, 1, h, w] if the same for every slice, or None.

    Returns:
        z, y and x coordinates, each [d, h, w].
    """
    offsets = []
    for axis, size in enumerate(patch_size):
        line = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2
        offset = jax.lax.broadcast_in_dim(line, tuple(patch_size), (axis,))
        if displacement is not None:
            offset = offset + jnp.broadcast_to(displacement[axis], tuple(patch_size))
        offsets.append(offset)
    start = crop_start(crop_size, patch_size)
    z, y, x = (
        matrix[axis, 0] * offsets[0]
        + matrix[axis, 1] * offsets[1]
        + matrix[axis, 2] * offsets[2]
        + (start[axis] + (patch_size[axis] - 1) / 2)
        for axis in range(3)
    )
    return z, y, x


def sample_linear(image: Array, coordinates: Sequence[Array], lower: Array, upper: Array) -> Array:
    """Trilinear samples of an image that is clipped first and continues with `lower` outside.

    Clipping and the conversion to float32 happen on the eight corners, so that the crop, which is
    several times larger than the patch, is never converted as a whole.

    Args:
        image: [D, H, W, P], any real dtype.
        coordinates: z, y, x indices, each [d, h, w].
        lower: [P] value below which voxels are clipped, and outside.
        upper: [P] value above which voxels are clipped.

    Returns:
        [d, h, w, P] float32.
    """
    channels = image.shape[3]
    flat = image.reshape(-1) if channels == 1 else image.reshape(-1, channels)
    bounds = [b[0] if channels == 1 else b.reshape(1, 1, 1, channels) for b in (lower, upper)]
    total = _blend(flat, image.shape[:3], coordinates, bounds, channels > 1)
    return total[..., None] if channels == 1 else total


def sample_planes(image: Array, coordinates: Sequence[Array], lower: Array, upper: Array) -> Array:
    """Bilinear samples within slices, at the same places of every slice; see `sample_linear`.

    All slices and channels of a place are one row in memory, so that four rows are fetched per
    place instead of four numbers per voxel.

    Args:
        image: [D, H, W, P], any real dtype.
        coordinates: y, x indices, each [h, w].
        lower: [P] value below which voxels are clipped, and outside.
        upper: [P] value above which voxels are clipped.

    Returns:
        [D, h, w, P] float32.
    """
    depth, height, width, channels = image.shape
    rows = jnp.moveaxis(image, 0, 2).reshape(height * width, depth * channels)
    bounds = [jnp.tile(b, depth).reshape(1, 1, -1) for b in (lower, upper)]
    total = _blend(rows, (height, width), coordinates, bounds, True)
    return jnp.moveaxis(total.reshape(*total.shape[:2], depth, channels), 2, 0)


def sample_nearest(label: Array, coordinates: Sequence[Array]) -> Array:
    """[d, h, w] labels at the voxels nearest to the coordinates, 0 outside."""
    indices = [jnp.floor(c + 0.5).astype(jnp.int32) for c in coordinates]
    position, inside, _ = _corner(label.shape, indices, None, (0, 0, 0))
    return jnp.where(inside, label.reshape(-1)[position], jnp.zeros((), label.dtype))


def nearest_planes(label: Array, coordinates: Sequence[Array]) -> Array:
    """[D, h, w] labels [D, H, W] at the nearest places within slices, 0 outside."""
    indices = [jnp.floor(c + 0.5).astype(jnp.int32) for c in coordinates]
    position, inside, _ = _corner(label.shape[1:], indices, None, (0, 0))
    rows = jnp.moveaxis(label, 0, 2).reshape(-1, label.shape[0])[position]
    return jnp.moveaxis(jnp.where(inside[..., None], rows, jnp.zeros((), label.dtype)), 2, 0)


def _blend(flat: Array, shape, coordinates, bounds, has_columns: bool) -> Array:
    """Weighted sum of the corners around each place of a grid of `shape`, flattened to rows."""
    floors = [jnp.floor(c) for c in coordinates]
    fractions = [c - f for c, f in zip(coordinates, floors, strict=True)]
    indices = [f.astype(jnp.int32) for f in floors]
    total = jnp.zeros((), jnp.float32)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        position, inside, weight = _corner(shape, indices, fractions, corner)
        value = flat[position].astype(jnp.float32)
        if has_columns:
            inside, weight = inside[..., None], weight[..., None]
        value = jnp.where(inside, jnp.clip(value, bounds[0], bounds[1]), bounds[0])
        total = total + weight * value
    return total


def _corner(shape, indices, fractions, corner):
    """Flat index, whether it is inside, and trilinear weight of one of the eight neighbours."""
    position: Any = 0
    inside: Any = True
    weight: Any = 1.0
    for axis, step in enumerate(corner):
        index = indices[axis] + step
        inside = inside & (index >= 0) & (index < shape[axis])
        position = position * shape[axis] + jnp.clip(index, 0, shape[axis] - 1)
        if fractions is not None:
            weight = weight * (fractions[axis] if step else 1 - fractions[axis])
    return position, inside, weight
