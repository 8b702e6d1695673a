"""Counting operations: loops turn by turn, a network against its convolutions by hand."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import maxquery, zept
from maxquery_jax.models.layers import Conv3D, ConvTranspose3D
from maxquery_jax.ops import windows
from maxquery_jax.train.flops import program_flops
from maxquery_jax.train.stage import count_forward_flops

ROWS, WIDTH, TURNS = 64, 256, 5
ONE = 2 * ROWS * WIDTH**2
DATA = {'num_classes': 4, 'num_channels': 2, 'spacing_mm': (4.0, 4.0, 4.0)}


def product(x, w):
    return x @ w


def looped(x, w):
    return jax.lax.map(lambda row: row @ w, x)


def looped_twice(x, w):
    def turn(total, row):
        return total + looped(jnp.stack([row] * 3), w).sum(0), None

    return jax.lax.scan(turn, jnp.zeros(x.shape[1:]), x)[0]


@pytest.mark.parametrize(
    ('function', 'products'),
    [
        (product, TURNS),
        (looped, TURNS),
        (jax.jit(looped), TURNS),
        (looped_twice, 3 * TURNS),
        (jax.checkpoint(looped), TURNS),
        (jax.grad(lambda x, w: jnp.square(looped(x, w)).sum(), argnums=(0, 1)), 3 * TURNS),
    ],
)
def test_every_turn_of_a_loop_counts(function, products):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((TURNS, ROWS, WIDTH), (WIDTH, WIDTH))]
    assert program_flops(function, *shapes) == pytest.approx(products * ONE, rel=0.02)


def experiment():
    config = maxquery.get_config('demo,nnunet')
    config.data.patch_size = (8, 16, 16)
    config.model.backbone.update(base_features=16, max_stages=2)
    return config


def valid_taps(size, kernel, stride):
    """Pairs of a kernel's tap and an output along one axis that meet a voxel, not padding."""
    starts = range(-((kernel - 1) // 2), size + (kernel - 1) // 2 - kernel + 1, stride)
    return sum(0 <= start + tap < size for start, tap in itertools.product(starts, range(kernel)))


def count_convolutions(call):
    """Multiply-adds of the convolutions of everything that is applied in a call, times two."""
    total = 0

    def record(following, args, kwargs, context):
        nonlocal total
        module = context.module
        if isinstance(module, (Conv3D, ConvTranspose3D)) and context.method_name == '__call__':
            size, width = args[0].shape[1:4], sum(part.shape[-1] for part in args)
            if isinstance(module, Conv3D):
                taps = map(valid_taps, size, module.kernel_size, module.stride)
            else:
                taps = (n * s for n, s in zip(size, module.stride, strict=True))
            total += 2 * math.prod(taps) * width * module.features
        return following(*args, **kwargs)

    # `init` for the shapes of the parameters applies the network once, the count itself once more
    with nn.intercept_methods(record):
        result = call()
    return result, total / 2


def test_a_network_has_the_operations_of_its_convolutions_and_little_more():
    count = lambda: count_forward_flops(experiment(), 'segmentation', **DATA)  # noqa: E731
    flops, convolutions = count_convolutions(count)
    assert convolutions > 1e7
    assert convolutions < flops < 1.1 * convolutions


def test_the_form_of_the_convolutions_does_not_matter():
    """As it runs, a loop of slices is more work than the network it computes."""
    config, expected = experiment(), count_forward_flops(experiment(), 'segmentation', **DATA)
    config.model.conv_form = 'scan'
    assert count_forward_flops(config, 'segmentation', **DATA) == expected


def test_attention_in_groups_of_windows_counts_whole(monkeypatch):
    config = zept.get_config('demo,nnunet')
    config.data.patch_size = (64, 32, 32)
    config.model.backbone.update(name='swin_unetr', deep_supervision=False)
    config.model.backbone.update(feature_size=12, window_size=4, depths=(1, 1, 1, 1))
    whole = count_forward_flops(config, 'segmentation', **DATA)
    monkeypatch.setattr(windows, '_MAX_SIMILARITIES', 10_000)
    assert count_forward_flops(config, 'segmentation', **DATA) == pytest.approx(whole, rel=1e-4)
