"""Resizing against loops over output voxels written from the coordinate rule."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import spatial


def _linear_loop(x, shape):
    """Half-pixel trilinear interpolation, one output voxel at a time, positions clamped."""
    y = np.zeros((x.shape[0], *shape, x.shape[-1]))
    for voxel in itertools.product(*map(range, shape)):
        corners = []
        for index, new, old in zip(voxel, shape, x.shape[1:4], strict=True):
            position = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = math.floor(position)
            weight = position - low
            corners.append(((low, 1 - weight), (min(low + 1, old - 1), weight)))
        for (z, a), (i, b), (j, c) in itertools.product(*corners):
            y[(slice(None), *voxel)] += a * b * c * x[:, z, i, j]
    return y


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((2, 3, 4), (4, 6, 8)),
        ((2, 3, 4), (2, 12, 4)),
        ((1, 2, 3), (3, 6, 3)),
        ((3, 4, 5), (5, 7, 6)),
        ((6, 8, 9), (3, 4, 3)),
        ((4, 4, 7), (8, 3, 5)),
    ],
)
def test_linear_resize_follows_the_half_pixel_rule(old, new):
    x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype(np.float32)
    y = spatial.resize_linear(jnp.asarray(x), new)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, _linear_loop(x, new), atol=1e-6)


def test_linear_resize_gradient_is_the_transpose():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, g = rng.standard_normal((1, 2, 3, 2, 1)), rng.standard_normal((1, 4, 9, 3, 1))
        y, pullback = jax.vjp(lambda x: spatial.resize_linear(x, (4, 9, 3)), x)
        assert np.vdot(y, g) == pytest.approx(np.vdot(x, pullback(g)[0]), rel=1e-12)
        assert np.abs(pullback(np.ones_like(g))[0].sum() - g.size) < 1e-9  # weights sum to one


def test_whole_factors_need_no_gather():
    x = jax.ShapeDtypeStruct((1, 4, 4, 4, 2), jnp.float32)
    text = jax.jit(lambda x: spatial.resize_linear(x, (8, 16, 4))).lower(x).as_text()
    assert 'gather' not in text and 'dot_general' not in text


def test_linear_resize_keeps_bfloat16():
    x = jnp.ones((1, 2, 2, 2, 1), jnp.bfloat16)
    assert spatial.resize_linear(x, (4, 3, 2)).dtype == jnp.bfloat16


def _nearest_loop(label, shape):
    y = np.zeros((label.shape[0], *shape), label.dtype)
    for voxel in itertools.product(*map(range, shape)):
        source = tuple(
            math.floor((index + 0.5) * old / new)
            for index, new, old in zip(voxel, shape, label.shape[1:], strict=True)
        )
        y[(slice(None), *voxel)] = label[(slice(None), *source)]
    return y


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((4, 8, 6), (2, 2, 6)),
        ((2, 3, 1), (4, 3, 3)),
        ((5, 4, 7), (3, 6, 2)),
        ((9, 9, 9), (3, 1, 2)),
    ],
)
def test_nearest_resize_takes_the_voxel_of_the_centre(old, new):
    label = np.random.default_rng(0).integers(0, 250, (2, *old)).astype(np.uint8)
    y = spatial.resize_nearest(jnp.asarray(label), new)
    assert y.dtype == jnp.uint8
    np.testing.assert_array_equal(y, _nearest_loop(label, new))


def test_targets_of_deep_supervision_are_nnunets():
    # nnU-Net resizes with PyTorch's 'nearest-exact': stride 2 keeps odd voxels, stride 4 2, 6, ...
    label = jnp.arange(8, dtype=jnp.int32).reshape(1, 1, 1, 8)
    assert spatial.downsample_label(label, (1, 1, 2)).ravel().tolist() == [1, 3, 5, 7]
    assert spatial.downsample_label(label, (1, 1, 4)).ravel().tolist() == [2, 6]
    assert spatial.downsample_label(label, (1, 1, 1)).ravel().tolist() == list(range(8))


def test_downsampled_label_matches_the_decoder_stage():
    label = jnp.zeros((2, 28, 32, 64), jnp.uint8)
    assert spatial.downsample_label(label, (4, 32, 32)).shape == (2, 7, 1, 2)
