"""The forms for TPUs, planes and folds, against the plain convolution: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import conv, fold
from maxquery_jax.ops.conv_planes import conv3d_planes
from maxquery_jax.ops.norm import instance_norm


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def assert_same(one, other, *args):
    """Equal values and equal gradients of all arguments, to rounding of float32."""

    def both(function):
        def total(*args):
            y = function(*args)
            weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return jnp.sum(y * weights), y

        which = tuple(range(len(args)))
        return jax.jit(jax.value_and_grad(total, which, has_aux=True))(*args)

    for a, b in zip(jax.tree.leaves(both(one)), jax.tree.leaves(both(other)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ('kernel', 'stride'),
    [
        ((3, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2)),
        ((1, 3, 3), (1, 2, 2)),
        ((3, 1, 3), (2, 1, 1)),
    ],
)
def test_planes(kernel, stride):
    assert_same(
        lambda x, k: conv.conv3d(x, k, stride=stride),
        lambda x, k: conv3d_planes(x, k, stride),
        draw(2, 5, 6, 8, 3),
        draw(*kernel, 3, 4),
    )


@pytest.mark.parametrize(
    ('factor', 'stride', 'width'),
    [
        (2, (1, 1, 1), 1),
        (4, (1, 1, 1), 3),
        (4, (1, 2, 1), 5),
        (2, (2, 2, 2), 3),
        (4, (2, 2, 2), 3),
        (2, (2, 2, 2), 1),
    ],
)
def test_folded(factor, stride, width):
    def folded(x, k):
        y = fold.refold(x, 1, stride[2] * factor)
        return fold.refold(fold.conv3d_folded(y, k, stride, factor), factor, 1)

    x = draw(2, 4, 6, 8 * stride[2], 3)
    plain = lambda x, k: conv.conv3d(x, k, stride=stride)  # noqa: E731
    assert_same(plain, folded, x, draw(3, 3, width, 3, 4))


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('stride', [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_folded_transposed(factor, stride):
    def folded(x, k):
        y = fold.conv_transpose3d_folded(fold.refold(x, 1, factor), k, stride, factor)
        return fold.refold(y, factor * stride[2], 1)

    plain = lambda x, k: conv.conv_transpose3d(x, k, stride)  # noqa: E731
    assert_same(plain, folded, draw(2, 3, 4, 4, 3), draw(*stride, 3, 5))


def test_folded_instance_norm():
    def folded(x, scale, bias):
        return fold.refold(instance_norm(fold.refold(x, 1, 4), scale, bias, 0.01, 4), 4, 1)

    plain = lambda x, scale, bias: instance_norm(x, scale, bias, 0.01)  # noqa: E731
    assert_same(plain, folded, 3 + draw(2, 3, 4, 8, 5), 1 + draw(5), draw(5))


def test_fold_factor_fills_the_lanes_and_divides():
    assert [fold.fold_factor(c, 320) for c in (5, 32, 64, 96, 128, 320)] == [16, 4, 2, 1, 1, 1]
    assert fold.fold_factor(32, 30) == 2 and fold.fold_factor(8, 7) == 1
