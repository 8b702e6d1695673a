"""Twelve rankings of twelve voxels, with AUROC, AUPR and FPR95 worked out by hand.

Scores fall from left to right: `+` is an OOD voxel, `-` another, brackets hold voxels of one score.
AUROC counts, for every positive, the negatives below it and half of those of the same score.
AUPR sums precision times step in recall at each score that holds a positive.
FPR95 is the share of negatives at or above the first score by which 95% of positives are reached.
"""

import numpy as np
import pytest
from sklearn import metrics as sk

from maxquery_jax.metrics import ood

CASES = {
    'perfect': (
        '+ + + + - - - - - - - -',
        1.0,  # each of 4 has all 8 below
        1.0,  # 1/1, 2/2, 3/3, 4/4
        0.0,
    ),
    'inverted': (
        '- - - - - - - - + + + +',
        0.0,
        (1 / 9 + 2 / 10 + 3 / 11 + 4 / 12) / 4,
        1.0,
    ),
    'all_equal': (
        '( + + + - - - - - - - - - )',
        0.5,  # every pair is a tie
        3 / 12,  # one threshold, precision is the prevalence
        1.0,  # that calls everything
    ),
    'one_positive_first': ('+ - - - - - - - - - - -', 1.0, 1.0, 0.0),
    'one_positive_fourth': (
        '- - - + - - - - - - - -',
        8 / 11,  # 8 of 11 negatives below
        1 / 4,
        3 / 11,
    ),
    'one_negative': (
        '+ + + + + + + + - + + +',
        8 / 11,  # 8 of 11 positives above it
        # 1 for the first 8, then 9/10, 10/11, 11/12, each a step of 1/11
        (8 + 9 / 10 + 10 / 11 + 11 / 12) / 11,
        1.0,  # all 11 are needed: 10/11 = 0.909 < 0.95
    ),
    'alternating': (
        '+ - + - + - + - + - + -',
        (6 + 5 + 4 + 3 + 2 + 1) / 36,
        (1 + 2 / 3 + 3 / 5 + 4 / 7 + 5 / 9 + 6 / 11) / 6,
        5 / 6,
    ),
    'late_straggler': (
        '+ + + - - - - - - - - +',
        (8 + 8 + 8 + 0) / 32,
        (1 + 1 + 1 + 4 / 12) / 4,
        1.0,  # 3/4 is not enough
    ),
    'tie_across_the_border': (
        '+ + ( + + - - ) - - - - - -',
        (8 + 8 + 2 * (6 + 2 / 2)) / 32,
        2 / 4 * 1 + 2 / 4 * 4 / 6,
        2 / 8,
    ),
    'tie_of_negatives_only': (
        '+ ( - - - ) + + + - - - - -',
        (8 + 5 + 5 + 5) / 32,
        (1 + 2 / 5 + 3 / 6 + 4 / 7) / 4,
        3 / 8,
    ),
    'two_ties': (
        '( + - ) ( + + + - - - ) - - - -',
        ((7 + 1 / 2) + 3 * (4 + 3 / 2)) / 32,
        1 / 4 * 1 / 2 + 3 / 4 * 4 / 8,
        4 / 8,
    ),
    'tie_at_the_end': (
        '+ - - ( + + - - - - - - - )',
        (9 + 2 * (7 / 2)) / 27,
        1 / 3 * 1 + 2 / 3 * 3 / 12,
        1.0,
    ),
}


def _parse(ranking):
    """Scores and positives of a ranking."""
    scores, is_positive, rank, tied = [], [], 0, False
    for sign in ranking.split():
        if sign in '()':
            tied, rank = sign == '(', rank - 1
        else:
            scores.append(rank)
            is_positive.append(sign == '+')
        rank -= not tied
    return np.array(scores, np.float32), np.array(is_positive)


def _measure(score, is_positive):
    return ood.ScoreHistogram.empty().update(score, is_positive).compute().stack()


@pytest.mark.parametrize('name', CASES)
def test_by_hand(name):
    ranking, *expected = CASES[name]
    score, is_positive = _parse(ranking)
    assert len(score) == 12
    np.testing.assert_allclose(_measure(score, is_positive), expected, rtol=1e-12)


@pytest.mark.parametrize('name', CASES)
def test_the_hand_agrees_with_sklearn(name):
    ranking, *expected = CASES[name]
    score, is_positive = _parse(ranking)
    fpr, tpr, _ = sk.roc_curve(is_positive, score, drop_intermediate=False)
    assert sk.roc_auc_score(is_positive, score) == pytest.approx(expected[0])
    assert sk.average_precision_score(is_positive, score) == pytest.approx(expected[1])
    assert fpr[np.argmax(tpr >= 0.95)] == pytest.approx(expected[2])


@pytest.mark.parametrize('sign', '+-')
def test_one_kind_only_is_undefined(sign):
    score, is_positive = _parse(' '.join(sign * 12))
    assert np.isnan(_measure(score, is_positive)).all()


def test_order_and_steps_of_the_scores_do_not_matter():
    rng = np.random.default_rng(0)
    for ranking, *expected in CASES.values():
        score, is_positive = _parse(ranking)
        order = rng.permutation(12)
        moved = (np.exp(score / 4) * 1000)[order].astype(np.float16)
        np.testing.assert_allclose(_measure(moved, is_positive[order]), expected, rtol=1e-12)
