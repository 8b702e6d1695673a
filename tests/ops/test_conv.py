"""Convolutions against loops written from the definition, and the forms against each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from maxquery_jax.ops import conv

FAST_COMPILE = {'xla_backend_optimization_level': 0}

# Kernel, stride, [B, D, H, W]: even and odd sides, sides of one, one and two samples.
COMBINATIONS = [
    ((3, 3, 3), (1, 1, 1), (2, 3, 4, 5)),
    ((3, 3, 3), (1, 1, 1), (2, 1, 2, 1)),
    ((3, 3, 3), (2, 2, 2), (2, 4, 6, 2)),
    ((3, 3, 3), (2, 2, 2), (2, 5, 3, 7)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 4, 5)),
    ((3, 3, 3), (1, 2, 2), (2, 3, 4, 5)),
    ((3, 3, 3), (2, 1, 1), (2, 4, 3, 2)),
    ((3, 3, 3), (2, 1, 2), (1, 3, 4, 4)),
    ((1, 3, 3), (1, 1, 1), (2, 3, 4, 5)),
    ((1, 3, 3), (1, 2, 2), (2, 2, 4, 5)),
    ((1, 3, 3), (2, 2, 2), (1, 5, 4, 3)),
    ((3, 1, 1), (1, 1, 1), (2, 3, 2, 2)),
    ((3, 1, 3), (2, 2, 1), (1, 4, 3, 2)),
    ((1, 1, 1), (1, 1, 1), (2, 2, 3, 2)),
    ((1, 1, 1), (2, 1, 2), (1, 3, 3, 4)),
]


def _draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _convolve(x, kernel, stride):
    """Sum over taps at every output voxel: a convolution layer's definition, zero padded."""
    half = [k // 2 for k in kernel.shape[:3]]
    padded = np.pad(x, ((0, 0), *((h, h) for h in half), (0, 0)))
    size = [(n - 1) // s + 1 for n, s in zip(x.shape[1:4], stride, strict=True)]
    y = np.zeros((x.shape[0], *size, kernel.shape[-1]))
    for voxel in itertools.product(*map(range, size)):
        for tap in itertools.product(*map(range, kernel.shape[:3])):
            z, i, j = (v * s + t for v, s, t in zip(voxel, stride, tap, strict=True))
            y[(slice(None), *voxel)] += padded[:, z, i, j] @ kernel[tap]
    return y


def _value_and_gradients(form, stride, x, kernel, g):
    y, pullback = jax.vjp(lambda x, k: conv.conv3d(x, k, stride=stride, form=form), x, kernel)
    return (y, *pullback(g))


@pytest.mark.parametrize(('kernel_size', 'stride', 'size'), COMBINATIONS)
def test_scan_equals_plain_in_value_and_gradients(kernel_size, stride, size):
    with jax.enable_x64(True):
        x, kernel = _draw(*size, 3), _draw(*kernel_size, 3, 2, seed=1)
        expected = _convolve(x, kernel, stride)
        g = _draw(*expected.shape, seed=2)

        def both(*arrays):
            return [_value_and_gradients(form, stride, *arrays) for form in ('plain', 'scan')]

        plain, scan = jax.jit(both, compiler_options=FAST_COMPILE)(x, kernel, g)
        np.testing.assert_allclose(plain[0], expected, atol=1e-12)
        for name, ours, theirs in zip(('value', 'dx', 'dkernel'), scan, plain, strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, atol=1e-12, err_msg=name)


def test_scan_falls_back_to_plain_for_other_kernels_and_strides():
    x = _draw(1, 7, 7, 7, 2).astype(np.float32)
    for kernel_size, stride in (((5, 5, 5), (1, 1, 1)), ((3, 3, 3), (3, 1, 1))):
        kernel = _draw(*kernel_size, 2, 2).astype(np.float32)
        y = conv.conv3d(x, kernel, stride=stride, form='scan')
        np.testing.assert_allclose(y, _convolve(x, kernel, stride), rtol=1e-3, atol=1e-4)


def test_scan_accumulates_bfloat16_in_float32():
    x = jnp.asarray(_draw(1, 4, 6, 6, 32), jnp.bfloat16)
    kernel = jnp.asarray(_draw(3, 3, 3, 32, 4, seed=1), jnp.bfloat16)
    y = jax.jit(lambda x, k: conv.conv3d(x, k, form='scan'))(x, kernel)
    assert y.dtype == jnp.bfloat16
    exact = _convolve(np.asarray(x, np.float64), np.asarray(kernel, np.float64), (1, 1, 1))
    error = np.abs(np.asarray(y, np.float64) - exact)
    assert (error <= 2**-8 * np.abs(exact) + 1e-4).all()  # one rounding of the result


def test_scan_needs_little_memory():
    x = jax.ShapeDtypeStruct((1, 32, 32, 32, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 16, 16), jnp.float32)

    def bytes_of(function, *args):
        compiled = jax.jit(function, compiler_options=FAST_COMPILE).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activation = 32**3 * 16 * 4
    forward = bytes_of(lambda x, k: conv.conv3d(x, k, form='scan'), x, kernel)
    assert forward < activation  # patches of all slices would be 27 activations
    both = bytes_of(lambda *a: _value_and_gradients('scan', (1, 1, 1), *a)[1:], x, kernel, x)
    assert both < activation


@pytest.mark.parametrize('form', ['plain', 'scan'])
def test_even_kernels_are_refused(form):
    with pytest.raises(ValueError, match=r'odd, got \(2, 2, 2\)'):
        conv.conv3d(jnp.zeros((1, 4, 4, 4, 1)), jnp.zeros((2, 2, 2, 1, 1)), form=form)


LARGE = ((1, 32, 32, 32, 32), (3, 3, 3, 32, 32))
SMALL = ((1, 4, 4, 4, 8), (3, 3, 3, 8, 8))


def _mesh(devices):
    return jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))


def test_auto_is_scan_for_large_convolutions_on_one_cpu_device():
    with jax.set_mesh(_mesh(1)):
        assert conv.resolve_form('auto') == 'scan'
        assert conv.resolve_form('auto', *LARGE) == 'scan'
        assert conv.resolve_form('auto', *SMALL) == 'plain'
        assert conv.resolve_form('auto', (1, 24, 24, 24, 4), (3, 3, 3, 4, 4)) == 'plain'
        # Of the same size, but strided: the plain input gradient is far slower there.
        assert conv.resolve_form('auto', (1, 24, 24, 24, 4), (3, 3, 3, 4, 8), (2, 2, 1)) == 'scan'


def test_auto_is_plain_for_sharded_computations():
    with jax.set_mesh(_mesh(2)):
        assert conv.resolve_form('auto', *LARGE) == 'plain'
    assert jax.device_count() > 1  # no mesh: the arrays may be sharded by their own shardings
    assert conv.resolve_form('auto', *LARGE) == 'plain'


def test_auto_is_plain_on_accelerators(monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    assert conv.resolve_form('auto', *LARGE) == 'scan'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert conv.resolve_form('auto', *LARGE) == 'plain'


def test_asked_forms_are_kept_and_unknown_ones_refused():
    assert conv.resolve_form('plain', *LARGE) == 'plain'
    assert conv.resolve_form('scan', *SMALL) == 'scan'
    with pytest.raises(ValueError, match="'fast'"):
        conv.resolve_form('fast')


@pytest.mark.parametrize('stride', [(1, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_transposed_convolution_places_each_voxels_block(stride):
    x, kernel = _draw(2, 2, 3, 2, 3), _draw(*stride, 3, 4, seed=1)
    y = np.asarray(conv.conv_transpose3d(jnp.asarray(x), jnp.asarray(kernel), stride))
    sd, sh, sw = stride
    assert y.shape == (2, 2 * sd, 3 * sh, 2 * sw, 4)
    for d, h, w in itertools.product(range(2), range(3), range(2)):
        block = y[:, d * sd : (d + 1) * sd, h * sh : (h + 1) * sh, w * sw : (w + 1) * sw]
        expected = np.einsum('bc,xyzco->bxyzo', x[:, d, h, w], kernel)
        np.testing.assert_allclose(block, expected, rtol=1e-5, atol=1e-5)


def test_transposed_convolution_is_not_flipped():
    x = jnp.array([1.0, 10.0]).reshape(1, 1, 1, 2, 1)
    kernel = jnp.array([2.0, 3.0]).reshape(1, 1, 2, 1, 1)
    y = conv.conv_transpose3d(x, kernel, (1, 1, 2))
    assert y.ravel().tolist() == [2.0, 3.0, 20.0, 30.0]  # as PyTorch's ConvTranspose


def test_transposed_convolution_refuses_a_kernel_that_overlaps():
    with pytest.raises(ValueError, match='must be equal'):
        conv.conv_transpose3d(jnp.zeros((1, 2, 2, 2, 1)), jnp.zeros((3, 3, 3, 1, 1)), (2, 2, 2))
