"""Voxel and case OOD metrics against scikit-learn and by hand."""

import itertools
import json
import os
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from maxquery_jax.metrics import ood
from maxquery_jax.metrics.state import merge_all


def _sklearn(score, is_positive):
    """AUROC, AUPR and FPR95 by scikit-learn on the given scores."""
    fpr, tpr, _ = sk.roc_curve(is_positive, score, drop_intermediate=False)
    return (
        sk.roc_auc_score(is_positive, score),
        sk.average_precision_score(is_positive, score),
        fpr[np.argmax(tpr >= 0.95)],
    )


def _measure(score, is_positive, region=None):
    return ood.ScoreHistogram.empty().update(score, is_positive, region).compute().stack()


def _half(values):
    return np.asarray(values, np.float16).astype(np.float32)


@pytest.mark.parametrize('prevalence', [0.001, 0.1, 0.7])
@pytest.mark.parametrize('scale', [1e-4, 1.0, 900.0])
def test_equals_sklearn_on_stored_scores(scale, prevalence):
    rng = np.random.default_rng(0)
    is_positive = rng.random(20_000) < prevalence
    score = _half(scale * (rng.normal(size=20_000) + is_positive - 3))
    np.testing.assert_allclose(
        _measure(score, is_positive), _sklearn(score, is_positive), atol=1e-12
    )


@pytest.mark.parametrize('kind', ['centred', 'offset', 'heavy_tail'])
def test_a_million_voxels(kind):
    """Exact on the stored map; rounding to float16 itself moves AUROC by less than 1e-4."""
    rng = np.random.default_rng(1)
    size = 1_000_000
    is_positive = rng.random(size) < 0.05
    score = {
        'centred': rng.normal(size=size) + 1.5 * is_positive,
        'offset': rng.normal(size=size) + 1.5 * is_positive - 8,  # float16 steps of 1/128 here
        'heavy_tail': rng.standard_t(2, size=size) * 10 + 30 * is_positive,
    }[kind].astype(np.float32)
    histogram = ood.ScoreHistogram.empty().update(score, is_positive)
    assert 0.9 * size < histogram.rounded <= size
    result = histogram.compute().stack()
    np.testing.assert_allclose(result, _sklearn(_half(score), is_positive), atol=1e-9)
    difference = np.abs(result - _sklearn(score, is_positive))
    assert difference[0] < 1e-4
    assert difference.max() < 2e-3


@pytest.mark.parametrize(
    'size',
    [
        1_000_000,
        pytest.param(
            10_000_000,
            marks=pytest.mark.skipif(
                not os.environ.get('MAXQUERY_TEST_LARGE'),
                reason='set MAXQUERY_TEST_LARGE=1 to rank 10^7 voxels by sklearn (half a minute)',
            ),
        ),
    ],
)
def test_streamed_chunks_equal_sklearn_in_constant_memory(size):
    """Ten chunks of a stored map, float16 and float32 in turn, are ranked as the whole is."""
    rng = np.random.default_rng(11)
    is_positive = rng.random(size) < 0.03
    score = rng.standard_normal(size, dtype=np.float32) * 2 + 3 * is_positive - 9
    score = score.astype(np.float16)
    state = ood.ScoreHistogram.empty()
    tracemalloc.start()
    for i in range(10):
        part = slice(i * size // 10, (i + 1) * size // 10)
        chunk = score[part].astype(np.float32) if i % 2 else score[part]
        state = state.update(chunk, is_positive[part])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert state.rounded == 0
    assert state.bins.nbytes + state.positive.nbytes + state.negative.nbytes < 63_487 * 20
    assert peak < 60e6  # a chunk and a block, whatever the size
    expected = _sklearn(score.astype(np.float32), is_positive)
    np.testing.assert_allclose(state.compute().stack(), expected, rtol=0, atol=1e-9)


def test_few_distinct_scores_tie_as_in_sklearn():
    rng = np.random.default_rng(2)
    is_positive = rng.random(3000) < 0.2
    score = (rng.integers(0, 4, 3000) + is_positive).astype(np.float32)
    np.testing.assert_allclose(
        _measure(score, is_positive), _sklearn(score, is_positive), atol=1e-12
    )


def test_all_scores_equal():
    is_positive = np.array([True, False, False, False])
    np.testing.assert_allclose(_measure(np.full(4, -7.0), is_positive), [0.5, 0.25, 1.0])


# 12 voxels, scores falling from left to right; + OOD, - not; / separates ties.
@pytest.mark.parametrize(
    ('order', 'auroc', 'aupr', 'fpr95'),
    [
        ('++++--------', 1.0, 1.0, 0.0),
        ('--------++++', 0.0, (1 / 9 + 2 / 10 + 3 / 11 + 4 / 12) / 4, 1.0),
        ('+-+-+-+-----', (8 + 7 + 6 + 5) / 32, (1 + 2 / 3 + 3 / 5 + 4 / 7) / 4, 3 / 8),
        ('-+++-------+', (7 + 7 + 7 + 0) / 32, (1 / 2 + 2 / 3 + 3 / 4 + 4 / 12) / 4, 1.0),
    ],
)
@pytest.mark.parametrize('offset', [-40.0, 0.0, 5.0])
def test_twelve_voxels_by_hand(order, auroc, aupr, fpr95, offset):
    score = offset - np.arange(12, dtype=np.float32) / 4
    is_positive = np.array([sign == '+' for sign in order])
    np.testing.assert_allclose(_measure(score, is_positive), [auroc, aupr, fpr95], rtol=1e-12)


def test_twelve_voxels_with_ties_by_hand():
    #       ++- tie, then ---- tie, then +--, then +-
    score = np.array([3, 3, 3, 2, 2, 2, 2, 1, 1, 1, -1, -1], np.float32)
    is_positive = np.array([1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0], bool)
    auroc = (2 * (0.5 + 7) + (2 * 0.5 + 1) + 0.5) / (4 * 8)
    aupr = 2 / 4 * 2 / 3 + 1 / 4 * 3 / 10 + 1 / 4 * 4 / 12
    np.testing.assert_allclose(_measure(score, is_positive), [auroc, aupr, 1.0], rtol=1e-12)


def test_fpr95_takes_the_first_threshold_that_reaches_exactly_95_percent():
    is_positive = np.array([True] * 19 + [False] * 3 + [True] + [False] * 7)
    score = -np.arange(30.0, dtype=np.float32)
    assert _measure(score, is_positive)[2] == 0.0  # 19 of 20 is enough
    score[18], score[19] = score[19], score[18]  # one negative above the 19th positive
    assert _measure(score, is_positive)[2] == pytest.approx(0.1)


def test_zeros_of_either_sign_tie():
    score = np.array([-0.0, 0.0, 0.0, -0.0], np.float32)
    is_positive = np.array([True, False, True, False])
    assert _measure(score, is_positive)[0] == 0.5


def test_order_of_all_float16_values_is_kept():
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = np.unique(values[np.isfinite(values)])
    histogram = ood.ScoreHistogram.empty().update(
        np.random.default_rng(0).permutation(values), np.zeros(len(values), bool)
    )
    assert len(histogram.bins) == len(values) == 63_487
    for low, high in itertools.pairwise(values[:: len(values) // 50]):
        assert _measure(np.array([low, high]), np.array([False, True]))[0] == 1.0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 70_000.0])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    score = np.array([0.0, bad, 1.0], np.float32)
    is_positive = np.array([True, False, False])
    with pytest.raises(ValueError, match='1 anomaly scores are NaN, infinite'):
        ood.ScoreHistogram.empty().update(score, is_positive)
    inside = np.array([True, False, True])
    assert _measure(score, is_positive, inside)[0] == 0.0  # outside the region nothing is read


def test_region_restricts_positives_and_negatives():
    rng = np.random.default_rng(3)
    score = _half(rng.normal(size=(6, 7, 8)))
    is_positive, region = rng.random((2, 6, 7, 8)) < 0.5
    np.testing.assert_allclose(
        _measure(score, is_positive, region), _sklearn(score[region], is_positive[region])
    )


@pytest.mark.parametrize('value', [True, False])
def test_one_class_only_is_undefined(value):
    assert np.isnan(_measure(np.arange(4.0), np.full(4, value))).all()
    assert np.isnan(ood.ScoreHistogram.empty().compute().stack()).all()


def _volume(seed, shape=(7, 8, 9)):
    rng = np.random.default_rng(seed)
    is_positive = rng.random(shape) < 0.2
    return _half(rng.normal(size=shape) * 3 + is_positive), is_positive


def test_any_partition_in_any_order_merges_to_the_whole():
    score, is_positive = _volume(4)
    whole = ood.ScoreHistogram.empty().update(score, is_positive)
    parts = [
        ood.ScoreHistogram.empty().update(score[i:j], is_positive[i:j])
        for i, j in ((0, 1), (1, 5), (5, 7))
    ]
    for order in itertools.permutations(range(3)):
        assert merge_all([parts[i] for i in order]).to_json() == whole.to_json()
    fortran = ood.ScoreHistogram.empty().update(np.asfortranarray(score), is_positive)
    assert fortran.to_json() == whole.to_json()


def test_json_round_trip():
    state = ood.ScoreHistogram.empty().update(*_volume(5))
    again = ood.ScoreHistogram.from_json(json.loads(json.dumps(state.to_json())))
    assert again.to_json() == state.to_json()
    np.testing.assert_array_equal(again.merge(state).compute().stack(), state.compute().stack())


def test_memory_does_not_grow_with_the_volume():
    peaks = []
    for depth in (64, 256):
        score = np.zeros((depth, 256, 256), np.float32)
        score[..., 128:] = 1.0
        is_positive = score > 0
        region = np.ones(score.shape, bool)
        tracemalloc.start()
        state = ood.ScoreHistogram.empty().update(score, is_positive, region)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert state.compute().auroc == 1.0
    assert peaks[1] < peaks[0] * 1.05
    assert peaks[1] < 60e6  # the larger volume alone is 84 MB


def test_pooled_statistic_weighs_cases():
    cases = [ood.ScoreHistogram.empty().update(*_volume(seed)) for seed in range(4)]
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 0, 4]])
    result = ood.pooled_statistic(cases)(weights)
    for row, multiplicity in zip(result, weights, strict=True):
        drawn = [c for c, times in zip(cases, multiplicity, strict=True) for _ in range(times)]
        np.testing.assert_allclose(row, merge_all(drawn).compute().stack(), rtol=1e-12)
    many = np.tile(weights, (2000, 1))  # more than one block
    np.testing.assert_array_equal(ood.pooled_statistic(cases)(many)[-3:], result)


def test_case_auc_equals_sklearn_with_ties():
    rng = np.random.default_rng(6)
    is_ood = rng.random(40) < 0.4
    scores = np.round(rng.normal(size=40) + is_ood, 1)
    state = ood.CaseScores.empty()
    for i in range(40):
        state = state.update(f'case{i}', scores[i], is_ood[i])
    assert state.compute() == pytest.approx(sk.roc_auc_score(is_ood, scores), abs=1e-12)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=3)
    expected = [[sk.roc_auc_score(is_ood, scores, sample_weight=row)] for row in weights]
    np.testing.assert_allclose(state.statistic()(weights), expected)
    assert ood.CaseScores.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_case_auc_by_hand_and_its_refusals():
    state = ood.CaseScores.empty()
    assert np.isnan(state.compute())
    state = state.update('a', -5.0, False).update('b', -4.0, False).update('c', -4.0, True)
    assert state.compute() == 0.75
    assert np.isnan(ood.CaseScores.empty().update('a', 1.0, True).compute())
    with pytest.raises(ValueError, match='case b was measured twice'):
        state.merge(ood.CaseScores.empty().update('b', 0.0, True))
    with pytest.raises(ValueError, match='finite'):
        state.update('d', float('nan'), True)


def test_dilation_is_a_ball_in_mm():
    region = np.zeros((9, 21, 21), bool)
    region[4, 10, 9:11] = True
    spacing_mm = (3.0, 0.8, 0.7)
    dilated = ood.dilate_region(region, spacing_mm, 3.1)
    places = np.argwhere(region) * spacing_mm
    expected = np.zeros_like(region)
    for index in np.ndindex(region.shape):
        offsets = places - np.array(index) * spacing_mm
        expected[index] = (offsets**2).sum(axis=1).min() <= 3.1**2
    np.testing.assert_array_equal(dilated, expected)
    assert expected.any(axis=(1, 2)).sum() == 3
    np.testing.assert_array_equal(ood.dilate_region(region, spacing_mm, 0.0), region)
    assert not ood.dilate_region(np.zeros_like(region), spacing_mm, 5.0).any()


def test_the_interior_has_all_its_neighbours_inside():
    region = np.random.default_rng(0).random((5, 6, 7)) < 0.9
    padded = np.pad(region, 1, constant_values=True)
    expected = region.copy()
    for z, y, x in np.ndindex(region.shape):
        for offset in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)):
            expected[z, y, x] &= padded[z + offset[0], y + offset[1], x + offset[2]]
    np.testing.assert_array_equal(ood.interior(region), expected)
    assert 0 < expected.sum() < region.sum()
