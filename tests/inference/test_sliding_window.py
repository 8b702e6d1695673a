"""Sliding window against whole-volume accumulation written from nnU-Net's description."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from maxquery_jax.inference import sliding_window as sw
from maxquery_jax.inference.tile_program import TileProgram, gaussian_importance

LOWER = [-50.0, -40.0]


def _importance(patch):
    delta = np.zeros(patch)
    delta[tuple(s // 2 for s in patch)] = 1
    out = gaussian_filter(delta, [s / 8 for s in patch], order=0, mode='constant', cval=0)
    out /= out.max()
    out[out == 0] = out[out != 0].min()
    return out


def _starts(size, patch, step):
    number = int(np.ceil((size - patch) / (patch * step))) + 1
    if number == 1:
        return [0]
    return [int(np.round(i * (size - patch) / (number - 1))) for i in range(number)]


def _oracle(volume, network, patch, step):
    """Pads, accumulates everything in float64 and reduces at the end."""
    shape = volume.shape[:3]
    pads = [
        (max(p - s, 0) // 2, max(p - s, 0) - max(p - s, 0) // 2)
        for s, p in zip(shape, patch, strict=True)
    ]
    padded = np.stack(
        [np.pad(volume[..., c], pads, constant_values=LOWER[c]) for c in range(volume.shape[3])], -1
    )
    weight = _importance(patch)
    total = total_weight = 0
    axes = [_starts(s, p, step) for s, p in zip(padded.shape[:3], patch, strict=True)]
    for corner in itertools.product(*axes):
        box = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        z, a = network(padded[box].astype(np.float64))
        if isinstance(total, int):
            total = np.zeros((*padded.shape[:3], z.shape[-1] + 1))
            total_weight = np.zeros(padded.shape[:3])
        total[box] += np.concatenate([z, a[..., None]], -1) * weight[..., None]
        total_weight[box] += weight
    mean = total / total_weight[..., None]
    inner = tuple(slice(b, b + s) for (b, _), s in zip(pads, shape, strict=True))
    return mean[inner][..., :-1].argmax(-1), mean[inner][..., -1]


def _pointwise(tile, xp=np):
    x, y = tile[..., 0] / 50, tile[..., 1] / 50
    return xp.stack([0 * x, x - y + 0.0057, y * y - x - 0.3], -1), x * y - y


def _position_dependent(tile, xp=np):
    """Answers depend on the place in the tile, so the blending weights matter."""
    logits, score = _pointwise(tile, xp)
    depth, height, width = tile.shape[-4:-1]
    ramp = (
        xp.arange(depth).reshape(-1, 1, 1) / depth
        - xp.arange(height).reshape(1, -1, 1) / height
        + xp.arange(width).reshape(1, 1, -1) ** 2 / width**2
    )
    logits = xp.stack([logits[..., 0] + ramp, logits[..., 1], logits[..., 2] - ramp], -1)
    return logits, score + ramp


def _forward(network, spy=None):
    def forward(params, tiles):
        if spy is not None:
            spy.append(tiles.shape)
        tiles = jnp.maximum(tiles.astype(jnp.float32), jnp.asarray(LOWER).reshape(1, 1, 1, 1, 2))
        parts = [network(tile, jnp) for tile in tiles]
        return jnp.stack([z for z, _ in parts]), {'a': jnp.stack([a for _, a in parts])}

    return forward


def _run(volume, network, patch, step, *, mirror=False, spy=None, **options):
    run = TileProgram(_forward(network, spy), ['a'], patch, mirror=mirror)
    plan = sw.plan_tiles(volume.shape[:3], patch, step)
    label, scores = sw.predict_volume(
        volume,
        lambda tiles: run(None, tiles),
        plan,
        num_classes=3,
        score_names=['a'],
        lower=LOWER,
        **options,
    )
    return label, scores['a']


def _volume(shape, seed=0):
    rng = np.random.default_rng(seed)
    volume = rng.normal(0, 40, (*shape, 2))
    return np.maximum(np.round(volume), LOWER).astype(np.int16)


@pytest.mark.parametrize('size', [8, 9, 15, 40, 101])
@pytest.mark.parametrize('step', [0.3, 0.5, 0.75, 1.0])
def test_starts_cover_the_axis(size, step):
    starts = sw.axis_starts(size, 8, step)
    assert list(starts) == _starts(size, 8, step)
    assert starts[0] == 0 and starts[-1] == size - 8
    assert all(0 < b - a <= np.ceil(8 * step) for a, b in itertools.pairwise(starts))


def test_importance_has_peak_one_and_no_zero():
    weight = gaussian_importance((4, 10, 16))
    np.testing.assert_allclose(weight, _importance((4, 10, 16)), rtol=1e-6)
    assert weight.max() == weight[2, 5, 8] == 1 and weight.min() > 0


@pytest.mark.parametrize('network', [_pointwise, _position_dependent])
@pytest.mark.parametrize(
    ('shape', 'patch', 'step'),
    [((13, 17, 12), (6, 8, 8), 0.5), ((5, 20, 7), (6, 8, 8), 0.7), ((9, 9, 9), (9, 9, 9), 0.5)],
)
def test_equals_whole_volume_accumulation(network, shape, patch, step):
    volume = _volume(shape)
    expected_label, expected_score = _oracle(volume, network, patch, step)
    label, score = _run(volume, network, patch, step, batch_size=3)
    assert label.dtype == np.uint8 and score.dtype == np.float16
    assert label.shape == shape
    np.testing.assert_array_equal(label, expected_label)
    np.testing.assert_allclose(score, expected_score, rtol=2e-3, atol=2e-3)


def test_air_tiles_are_reused_exactly():
    volume = _volume((12, 16, 24))
    volume[:, :, 9:] = -1000  # at and beyond the window's lower bound
    calls = []

    def counted(tiles):
        calls.append(len(tiles))
        return run(None, tiles)

    run = TileProgram(_forward(_position_dependent), ['a'], (6, 8, 8))
    plan = sw.plan_tiles(volume.shape[:3], (6, 8, 8))
    options = {'num_classes': 3, 'score_names': ['a'], 'lower': LOWER}
    full = sw.predict_volume(volume, counted, plan, reuse_air=False, **options)
    every = len(calls)
    quick = sw.predict_volume(volume, counted, plan, reuse_air=True, **options)
    assert every == plan.num_tiles and len(calls) - every < 0.7 * every
    np.testing.assert_array_equal(full[0], quick[0])
    np.testing.assert_array_equal(full[1]['a'], quick[1]['a'])


def test_constant_network_gives_a_constant():
    def constant(tile, xp=np):
        zero = 0 * tile[..., 0]
        return xp.stack([zero, zero + 1, zero - 1], -1), zero + 0.375

    label, score = _run(_volume((11, 13, 19)), constant, (4, 6, 8), 0.4)
    assert (label == 1).all() and (score == 0.375).all()


def test_mirroring_averages_the_eight_flips():
    patch = (4, 6, 8)
    volume = _volume(patch)
    logits = score = 0
    for flips in itertools.product((1, -1), repeat=3):
        flip = tuple(slice(None, None, f) for f in flips)
        z, a = _position_dependent(volume[flip].astype(np.float64))
        logits, score = logits + z[flip] / 8, score + a[flip] / 8
    label, got = _run(volume, _position_dependent, patch, 0.5, mirror=True)
    np.testing.assert_array_equal(label, logits.argmax(-1))
    np.testing.assert_allclose(got, score, rtol=2e-3, atol=2e-3)


def test_one_trace_for_all_volumes_and_short_batches():
    traces = []
    run = TileProgram(_forward(_pointwise, traces), ['a'], (4, 6, 8), devices=jax.devices()[:1])
    for shape in [(9, 7, 8), (4, 13, 20), (3, 3, 3)]:
        plan = sw.plan_tiles(shape, (4, 6, 8))
        options = {'num_classes': 3, 'score_names': ['a'], 'lower': LOWER, 'batch_size': 4}
        sw.predict_volume(_volume(shape), lambda tiles: run(None, tiles), plan, **options)
    assert traces == [(4, 4, 6, 8, 2)]


def test_progress_counts_every_tile():
    done = []
    volume = _volume((9, 14, 17))
    volume[..., :8, :] = -100
    _run(volume, _pointwise, (4, 6, 8), 0.5, batch_size=3, on_tiles=done.append)
    assert sum(done) == sw.plan_tiles((9, 14, 17), (4, 6, 8), 0.5).num_tiles


def test_slabs_leave_in_order_and_cover_the_volume():
    volume = _volume((23, 8, 8))
    run = TileProgram(_forward(_pointwise), ['a'], (4, 8, 8))
    slabs = sw.predict_slabs(
        volume,
        lambda tiles: run(None, tiles),
        sw.plan_tiles((23, 8, 8), (4, 8, 8)),
        num_classes=3,
        score_names=['a'],
        lower=LOWER,
    )
    position = 0
    for slab in slabs:
        assert slab.start == position and slab.label.shape[0] <= 4
        position += slab.label.shape[0]
    assert position == 23


def test_nan_is_an_error_that_names_the_slice():
    def broken(tile, xp=np):
        logits, score = _pointwise(tile, xp)
        return logits, xp.where(tile[..., 0] == 999, xp.nan, score)

    volume = _volume((12, 8, 8))
    volume[9, 2, 3, 0] = 999
    with pytest.raises(FloatingPointError, match='slice 9'):
        _run(volume, broken, (4, 8, 8), 0.5)


@pytest.mark.parametrize('step', [0.0, 1.5])
def test_step_size_out_of_range(step):
    with pytest.raises(ValueError, match='step_size'):
        sw.plan_tiles((8, 8, 8), (4, 4, 4), step)


def test_memory_is_one_slab_however_deep_the_volume():
    patch, classes = (4, 16, 16), 24

    def tile_fn(tiles):
        return np.ones((len(tiles), *patch, classes + 1), np.float32)

    def peak(depth):
        volume = np.zeros((depth, 64, 64, 1), np.int16)
        plan = sw.plan_tiles(volume.shape[:3], patch)
        tracemalloc.start()
        slabs = sw.predict_slabs(
            volume, tile_fn, plan, num_classes=classes, score_names=['a'], lower=[-1.0]
        )
        assert sum(slab.label.shape[0] for slab in slabs) == depth
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    shallow, deep = peak(8), peak(64)
    slab = 4 * 4 * 64 * 64 * (classes + 2)
    assert deep < 1.05 * shallow
    assert deep < 1.5 * slab < 64 * 64 * 64 * classes * 4 / 8
