"""Dice counts against a voxel loop, merging, and the policy for empty masks."""

import json

import numpy as np
import pytest

from maxquery_jax.metrics import dice
from maxquery_jax.metrics.state import merge_all


def _random_labels(rng, shape=(5, 6, 7), classes=4):
    return rng.integers(0, classes, shape).astype(np.uint8)


def _dice_by_loop(prediction, truth, class_id):
    both = predicted = true = 0
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        both += p == class_id and t == class_id
        predicted += p == class_id
        true += t == class_id
    return 2 * both / (predicted + true) if predicted + true else float('nan')


def test_equals_a_voxel_loop():
    rng = np.random.default_rng(0)
    prediction, truth = _random_labels(rng), _random_labels(rng)
    state = dice.DiceCounts.empty((1, 2, 3)).update(prediction, truth)
    expected = [_dice_by_loop(prediction, truth, i) for i in (1, 2, 3)]
    np.testing.assert_allclose(state.compute(), expected, rtol=1e-12)


def test_twelve_voxels_by_hand():
    prediction = np.array([0, 1, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0])
    truth = np.array([0, 1, 1, 2, 2, 0, 0, 0, 0, 3, 3, 0])
    state = dice.DiceCounts.empty((1, 2, 3, 4)).update(prediction, truth)
    # class 1: 2*2/(3+2), class 2: 2*1/(2+2), class 3 missed, class 4 nowhere.
    np.testing.assert_allclose(state.compute(), [4 / 5, 1 / 2, 0.0, np.nan])


def test_any_partition_in_any_order_merges_to_the_whole():
    rng = np.random.default_rng(1)
    prediction, truth = _random_labels(rng, (9, 4, 4)), _random_labels(rng, (9, 4, 4))
    whole = dice.DiceCounts.empty((1, 2, 3)).update(prediction, truth)
    parts = [
        dice.DiceCounts.empty((1, 2, 3)).update(prediction[i:j], truth[i:j])
        for i, j in ((0, 2), (2, 3), (3, 9))
    ]
    for order in ((0, 1, 2), (2, 0, 1)):
        assert merge_all([parts[i] for i in order]).to_json() == whole.to_json()


def test_fortran_order_and_signed_types_count_the_same():
    rng = np.random.default_rng(2)
    prediction, truth = _random_labels(rng), _random_labels(rng)
    plain = dice.DiceCounts.empty((1, 2)).update(prediction, truth)
    mixed = dice.DiceCounts.empty((1, 2)).update(
        np.asfortranarray(prediction.astype(np.int16)), truth.astype(np.int64)
    )
    assert mixed.to_json() == plain.to_json()


def test_json_round_trip():
    rng = np.random.default_rng(3)
    state = dice.DiceCounts.empty((1, 3)).update(_random_labels(rng), _random_labels(rng))
    again = dice.DiceCounts.from_json(json.loads(json.dumps(state.to_json())))
    assert again.to_json() == state.to_json()
    np.testing.assert_array_equal(again.merge(state).compute(), state.compute())


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (np.array([0.0, 1.0]), 'integers'),
        (np.array([0, 300]), '0..255'),
        (np.array([-1, 1]), '0..255'),
        (np.array([[0, 1]]), 'shapes differ'),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        dice.DiceCounts.empty((1,)).update(labels, np.array([0, 1], np.uint8))


def test_states_of_other_classes_do_not_merge():
    with pytest.raises(ValueError, match='cannot merge'):
        dice.DiceCounts.empty((1,)).merge(dice.DiceCounts.empty((2,)))


def _case(prediction, truth, ids=(1, 2)):
    return dice.DiceCounts.empty(ids).update(np.array(prediction), np.array(truth))


def test_three_summaries_by_hand():
    cases = [
        _case([1, 1, 0, 0], [1, 0, 0, 0]),  # Dice 2/3
        _case([1, 0, 0, 0], [0, 0, 0, 0]),  # truth empty, one false voxel: 0
        _case([0, 0, 0, 0], [0, 0, 0, 0]),  # both empty: undefined
    ]
    ones = np.ones((1, 3))
    expected = {'case_mean': (2 / 3 + 0) / 2, 'present_mean': 2 / 3, 'pooled': 2 * 1 / (3 + 1)}
    for summary, value in expected.items():
        result = dice.dice_statistic(cases, summary)(ones)[0]
        np.testing.assert_allclose(result, [value, np.nan], err_msg=summary)


def test_weights_mean_repeated_cases():
    rng = np.random.default_rng(4)
    cases = [_case(rng.integers(0, 3, 30), rng.integers(0, 3, 30)) for _ in range(3)]
    repeated = [cases[0], cases[0], cases[2]]
    for summary in dice.SUMMARIES:
        np.testing.assert_allclose(
            dice.dice_statistic(cases, summary)(np.array([[2, 0, 1]])),
            dice.dice_statistic(repeated, summary)(np.ones((1, 3))),
        )
    with pytest.raises(ValueError, match='summary'):
        dice.dice_statistic(cases, 'median')


def test_class_mean_is_unweighted_and_skips_only_classes_nobody_defines():
    ids = (1, 2, 3)
    cases = [_case([1, 1, 2, 0], [1, 0, 2, 0], ids), _case([1, 0, 0, 0], [1, 0, 0, 0], ids)]
    statistic = dice.class_mean(dice.dice_statistic(cases, 'case_mean'), (0, 1, 2), 2)
    class_one, class_two = (2 / 3 + 1) / 2, 1.0
    np.testing.assert_allclose(statistic(np.ones((1, 2))), [[(class_one + class_two) / 2]])
    # A resample without the only case of class 2 does not estimate the same mean.
    assert np.isnan(statistic(np.array([[0, 2]]))[0, 0])
    nobody = dice.class_mean(dice.dice_statistic(cases, 'case_mean'), (2,), 2)
    assert np.isnan(nobody(np.ones((1, 2)))[0, 0])
