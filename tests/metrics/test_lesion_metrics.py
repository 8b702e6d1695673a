"""Lesion counts against flood fill, by hand, merging, and intervals over cases."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest

from maxquery_jax.metrics import lesions
from maxquery_jax.metrics.bootstrap import bootstrap
from maxquery_jax.metrics.state import merge_all

KNOWN = (2, 3)
GROUPS = (
    lesions.LesionGroup('cyst', (2,), (2,)),
    lesions.LesionGroup('hcc', (3,), (3,)),
    lesions.LesionGroup('fnh', (4,), ()),
    lesions.LesionGroup('tumour', (2, 3, 4), KNOWN),
)


def _components(mask):
    """Sets of voxels that touch, also by a corner, by flood fill."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    found = []
    while left:
        todo, members = [left.pop()], set()
        while todo:
            voxel = todo.pop()
            members.add(voxel)
            for step in steps:
                beside = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if beside in left:
                    left.remove(beside)
                    todo.append(beside)
        found.append(members)
    return found


def _slow_counts(prediction, truth, group, min_voxels, overlap):
    def share(members, mask):
        return sum(mask[voxel] for voxel in members) / len(members)

    def hit(members, mask):
        return share(members, mask) > 0 and share(members, mask) >= overlap - 1e-12

    true, named = np.isin(truth, group.truth_ids), np.isin(prediction, group.class_ids)
    truths = [c for c in _components(true) if len(c) >= min_voxels]
    predictions = [c for c in _components(named) if len(c) >= min_voxels]
    return [
        len(truths),
        sum(hit(c, named) for c in truths),
        sum(hit(c, np.isin(prediction, KNOWN)) for c in truths),
        len(predictions),
        sum(hit(c, true) for c in predictions),
    ]


def _random_labels(seed, shape=(14, 11, 12), rate=0.06):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 5, shape).astype(np.uint8)
    labels[rng.random(shape) > rate] = 0
    return np.where(labels == 0, np.roll(labels, 1, axis=0), labels)  # some length in z


def _count(prediction, truth, **arguments):
    state = lesions.LesionCounts.empty(GROUPS)
    return state.update(prediction, truth, KNOWN, voxel_ml=0.01, **arguments)


@pytest.mark.parametrize('overlap', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('block_voxels', [1 << 22, 1, 300])  # whole, slice by slice, two slices
def test_equals_flood_fill(monkeypatch, block_voxels, overlap):
    monkeypatch.setattr(lesions, '_BLOCK_VOXELS', block_voxels)
    for seed, min_voxels in ((0, 1), (1, 3)):
        truth, prediction = _random_labels(seed), _random_labels(seed + 10)
        truth[2:6, 2:6, 2:6], prediction[3:8, 3:8, 3:8] = 2, 2
        prediction[prediction == 4] = 0
        state = _count(prediction, truth, min_volume_ml=0.01 * min_voxels, overlap=overlap)
        expected = [_slow_counts(prediction, truth, g, min_voxels, overlap) for g in GROUPS]
        np.testing.assert_array_equal(state.counts, expected)
        assert (state.counts[:2] > 0).any(axis=1).all()


def test_components_that_meet_only_later_are_one(monkeypatch):
    """A U: two arms in the first slabs, joined by its bottom in the last."""
    monkeypatch.setattr(lesions, '_BLOCK_VOXELS', 1)
    labels = np.zeros((5, 1, 5), np.uint8)
    labels[:, 0, 0] = labels[:, 0, 4] = labels[4, 0, :] = 1
    other = np.zeros_like(labels)
    other[0, 0, 4] = 7
    voxels = lesions.component_voxels(labels, (1,), other, [(7,), (1, 7), ()])
    np.testing.assert_array_equal(voxels, [[13, 1, 1, 0]])
    nothing = lesions.component_voxels(labels, (9,), other, [(7,)])
    assert nothing.shape == (0, 2)


def _line(text):
    """[1, 1, n] labels of digits."""
    return np.array([[[int(sign) for sign in text]]], np.uint8)


def test_counts_and_rates_by_hand():
    truth_line = _line('2222222222 0 3330 40044 0222'.replace(' ', ''))
    prediction = _line('2000000003 0 3332 22000 0300'.replace(' ', ''))
    state = _count(prediction, truth_line)
    # cyst: lesions of 10 and 3; 1 voxel of 10 finds the first, the second only 1 of 3 as hcc.
    # Predicted cysts: the single 2, and 222 beside the hcc of which none is cyst.
    assert state.counts[0].tolist() == [2, 1, 2, 2, 1]
    # hcc: one lesion of 3, found. Predicted: 3 in the cyst, 333, 3 in the last cyst.
    assert state.counts[1].tolist() == [1, 1, 1, 3, 1]
    # fnh: lesions of 1 and 2, the first called cyst, the second missed.
    assert state.counts[2].tolist() == [2, 0, 1, 0, 0]
    # tumour: truth 10, 3, 1, 2, 3 voxels, all but the 44 found. Predicted: 2, 3, 333222, 3.
    assert state.counts[3].tolist() == [5, 4, 4, 4, 4]
    cyst, hcc, fnh, tumour = state.compute()
    np.testing.assert_allclose(cyst, [1 / 2, 1, 1 / 2, 1 / 2, 1])
    np.testing.assert_allclose(hcc, [1, 1, 1 / 3, 2 * 1 / 3 / (4 / 3), 2])
    np.testing.assert_allclose(fnh, [0, 1 / 2, np.nan, 0, 0])
    np.testing.assert_allclose(tumour, [4 / 5, 4 / 5, 1, 2 * 0.8 / 1.8, 0])
    strict = _count(prediction, truth_line, overlap=0.11)
    assert strict.counts[0].tolist() == [2, 0, 2, 2, 1]  # 2 of 10 voxels are any tumour
    larger = _count(prediction, truth_line, min_volume_ml=0.02)
    assert larger.counts[2].tolist() == [1, 0, 0, 0, 0]
    # Predicted now: only 333222, which lies half in the hcc and, by one voxel, in the small fnh.
    assert larger.counts[3].tolist() == [4, 3, 3, 1, 1]
    assert larger.counts[0].tolist() == [2, 1, 2, 1, 0]


def test_nothing_is_undefined_not_perfect():
    empty = np.zeros((3, 3, 3), np.uint8)
    rates = _count(empty, empty).compute()
    assert np.isnan(rates[:, :4]).all() and (rates[:, 4] == 0).all()
    only_truth = empty.copy()
    only_truth[1, 1, 1] = 2
    np.testing.assert_array_equal(_count(empty, only_truth).compute()[0], [0, 0, np.nan, 0, 0])
    np.testing.assert_array_equal(_count(only_truth, empty).compute()[0], [np.nan, np.nan, 0, 0, 1])
    assert np.isnan(lesions.LesionCounts.empty(GROUPS).compute()).all()


def test_merging_json_and_refusals():
    states = [_count(_random_labels(i), _random_labels(i + 5)) for i in range(3)]
    whole = merge_all(states)
    assert whole.cases == 3
    np.testing.assert_array_equal(whole.counts, sum(state.counts for state in states))
    assert merge_all(states[::-1]).to_json() == whole.to_json()
    again = lesions.LesionCounts.from_json(json.loads(json.dumps(whole.to_json())))
    assert again.to_json() == whole.to_json() and again.groups == whole.groups
    with pytest.raises(ValueError, match='cannot merge'):
        whole.merge(lesions.LesionCounts.empty(GROUPS[:1]))
    with pytest.raises(ValueError, match='shapes differ'):
        _count(_random_labels(0), _random_labels(0)[1:])


def test_statistic_weighs_cases_and_gives_intervals():
    states = [_count(_random_labels(i), _random_labels(i + 5)) for i in range(4)]
    weights = np.array([[1, 1, 1, 1], [0, 2, 1, 1]])
    result = lesions.lesion_statistic(states)(weights)
    repeated = [states[1], states[1], states[2], states[3]]
    for row, drawn in zip(result, (states, repeated), strict=True):
        np.testing.assert_allclose(row, merge_all(drawn).compute().ravel())
    counted = lesions.deciding_cases(states).ravel()
    estimates = bootstrap(lesions.lesion_statistic(states), 4, counted=counted)
    sensitivity = estimates[0]
    assert sensitivity.low <= sensitivity.value <= sensitivity.high
    assert sensitivity.n == 4


def test_memory_is_a_slab():
    truth, prediction = np.zeros((2, 400, 128, 128), np.uint8)
    truth[1:-1, 5:60, 5:60] = truth[0, -1, -1] = 2
    prediction[:, 30:80, 30:80] = 2
    tracemalloc.start()
    state = lesions.LesionCounts.empty(GROUPS[:1]).update(prediction, truth, KNOWN, 0.001)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert state.counts[0].tolist() == [1, 1, 1, 1, 1]  # the single voxel is below 0.01 ml
    assert peak < 80e6
