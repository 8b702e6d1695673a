"""SML in 3D against slow loops written from the recipe."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.baselines import sml

STEPS = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
TAPS = list(itertools.product(range(7), repeat=3))


def logits(shape=(2, 5, 7, 6), classes=4, seed=0, offset=0.0):
    """Smooth random logits, so that predicted classes form regions; the last one never wins."""
    rng = np.random.default_rng(seed)
    z = np.repeat(np.repeat(rng.normal(size=(*shape, classes)), 2, 2), 2, 3)[:, :, : shape[2]]
    z = z[:, :, :, : shape[3]] * 3 + offset
    z[..., -1] = -50.0
    return z.astype(np.float32)


def voxels(shape):
    return itertools.product(*(range(n) for n in shape))


def inside(p, shape):
    return all(0 <= a < n for a, n in zip(p, shape, strict=True))


def clamp(p, shape):
    return tuple(min(max(a, 0), n - 1) for a, n in zip(p, shape, strict=True))


def slow_boundaries(label):
    found = np.zeros(label.shape, bool)
    for p in voxels(label.shape):
        around = [tuple(np.add(p, s)) for s in STEPS]
        values = {label[p]} | {label[q] for q in around if inside(q, label.shape)}
        found[p] = max(values) != min(values)  # dilation differs from erosion
    return found


def slow_widen(mask, times):
    for _ in range(times):
        grown = mask.copy()
        for p in voxels(mask.shape):
            around = [tuple(np.add(p, s)) for s in STEPS]
            grown[p] |= any(mask[q] for q in around if inside(q, mask.shape))
        mask = grown
    return mask


def slow_suppress(score, label, widths=(3, 2, 1, 0)):
    boundary = slow_boundaries(label)
    for width in widths:
        wide, result = slow_widen(boundary, width), score.copy()
        for p in voxels(score.shape):
            steps = itertools.product((-1, 0, 1), repeat=3)
            cube = [clamp(map(sum, zip(p, s, strict=True)), score.shape) for s in steps]
            kept = [score[q] for q in cube if not wide[q]]
            if wide[p] and kept:
                result[p] = np.mean(kept)
        score = result
    return score


def slow_smooth(score, dilation):
    weights = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    weights /= weights.sum()
    shifts = [tuple((k - 3) * d for k, d in zip(taps, dilation, strict=True)) for taps in TAPS]
    factors = [weights[a] * weights[b] * weights[c] for a, b, c in TAPS]
    result = np.zeros(score.shape)
    for z, y, x in voxels(score.shape):
        for (a, b, c), factor in zip(shifts, factors, strict=True):
            result[z, y, x] += factor * score[clamp((z + a, y + b, x + c), score.shape)]
    return result


def test_moments_merge_to_those_of_all_voxels():
    batches = [logits(seed=s, offset=1000.0) for s in range(3)]  # a large mean loses no digits
    moments = sml.empty_moments(4)
    for batch in batches:
        moments = sml.merge_moments(moments, jax.jit(sml.logit_moments)(batch))
    everything = np.concatenate([b.reshape(-1, 4) for b in batches]).astype(np.float64)
    largest, winner = everything.max(-1), everything.argmax(-1)
    found = sml.finish_moments(moments)
    for c in range(3):
        np.testing.assert_allclose(moments.count[c], (winner == c).sum())
        np.testing.assert_allclose(found.mean[c], largest[winner == c].mean(), rtol=1e-6)
        np.testing.assert_allclose(found.std[c], largest[winner == c].std(), rtol=1e-3)
    assert moments.count[3] == 0  # never predicted: the statistics of all voxels
    np.testing.assert_allclose(found.mean[3], largest.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.std[3], largest.std(), rtol=1e-3)


def test_no_voxel_at_all_is_an_error():
    with pytest.raises(ValueError, match='no voxel'):
        sml.finish_moments(sml.empty_moments(3))


def test_each_part_equals_the_loops():
    z = logits()
    statistics = sml.SmlStatistics(
        mean=np.float32([1.0, 2.0, -1.0, 0.0]), std=np.float32([0.5, 2.0, 3.0, 1.0])
    )
    score, label = sml.standardise(jnp.asarray(z), statistics)
    winner = z.argmax(-1)
    expected = (z.max(-1) - statistics.mean[winner]) / statistics.std[winner]
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    np.testing.assert_array_equal(label, winner)
    assert np.unique(winner).size == 3
    boundaries = np.stack([slow_boundaries(x) for x in winner])
    np.testing.assert_array_equal(sml.find_boundaries(label), boundaries)
    wide = np.stack([slow_widen(x, 1) for x in boundaries])
    np.testing.assert_array_equal(sml.widen(jnp.asarray(boundaries)), wide)


@pytest.mark.parametrize('shape', [(1, 4, 8, 7), (2, 3, 4, 5)])
def test_boundary_suppression_and_smoothing(shape):
    rng = np.random.default_rng(1)
    score = rng.normal(size=shape).astype(np.float32)
    label = np.zeros(shape, int)
    label[:, 1:3, 1:4, 2:4] = 2  # a tumour in an organ in the background
    label[:, :, :, -1] = 1
    found = jax.jit(sml.suppress_boundaries)(score, label)
    expected = np.stack([slow_suppress(s, x) for s, x in zip(score, label, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - score).max() > 0.1
    # Dilated by 6 the filter reaches far beyond the patch.
    found = jax.jit(lambda s: [sml.smooth(s, (1, 1, 1)), sml.smooth(s, (1, 6, 6))])(score)
    for values, dilation in zip(found, ((1, 1, 1), (1, 6, 6)), strict=True):
        np.testing.assert_allclose(values[-1], slow_smooth(score[-1], dilation), atol=1e-5)


def test_the_whole_score_and_its_sign():
    z = logits(shape=(1, 3, 5, 5))
    statistics = sml.SmlStatistics(mean=np.float32([1, 2, -1, 0]), std=np.float32([1, 2, 3, 1]))
    found = jax.jit(lambda x: sml.sml_score(x, statistics, width=1, dilation=(1, 2, 2)))(z)
    winner = z.argmax(-1)
    score = (z.max(-1) - statistics.mean[winner]) / statistics.std[winner]
    expected = -slow_smooth(slow_suppress(score[0], winner[0], widths=(1, 0)), (1, 2, 2))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_lengths_keep_their_reach_in_millimetres():
    widths = [sml.default_width((3.0, mm, mm)) for mm in (0.419, 0.76, 1.0, 4.0)]
    assert widths == [3, 3, 2, 1]
    assert sml.default_dilation((3.0, 0.76, 0.76)) == (1, 6, 6)  # MaxQuery's liver CT
    assert sml.default_dilation((3.0, 0.419, 0.419)) == (1, 6, 6)
    assert sml.default_dilation((5.0, 4.0, 1.5)) == (1, 1, 3)
