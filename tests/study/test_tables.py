"""Columns and tables from made-up summaries, against numbers worked out by hand."""

import json
import math
from fractions import Fraction

import pytest

from maxquery_jax.study.columns import expand, parse_column
from maxquery_jax.study.measures import Evaluation, measure
from maxquery_jax.study.render import to_markdown
from maxquery_jax.study.spec import parse_study
from maxquery_jax.study.tables import build_table
from tests.study.study_helper import case, study, table

AUROC = (0.8, 0.9, 1.0)


def evaluation(shift=0.0, **fields):
    """Three OOD cases and three inlier cases of types a and b."""
    dice = ((0.9, 0.9),) * 3 + ((0.5, None), (0.7, 0.2), (None, 0.4))
    scores = (3, 2, 5, 1, 0, 4)
    cases = [
        case(
            f'c{i}',
            is_ood=i < 3,
            value=AUROC[i] - shift if i < 3 else None,
            score=scores[i],
            dice=dice[i],
        )
        for i in range(6)
    ]
    cases[4]['case_score_fallback'] = 'organ'
    cases[3] |= {'lesions': {'a': {'truth': 2, 'found': 1}, 'b': {'truth': 0, 'found': 0}}}
    cases[4] |= {'lesions': {'a': {'truth': 1, 'found': 1}, 'b': {'truth': 1, 'found': 0}}}
    for other in (*cases[:3], cases[5]):
        other['lesions'] = {name: {'truth': 0, 'found': 0} for name in 'ab'}
    metrics = {'ood/s/organ/pooled/auroc': {'value': 0.75, 'ci95': [0.7, None]}}
    return Evaluation(cases, ('a', 'b'), metrics, **fields)


@pytest.mark.parametrize(
    ('column', 'expected'),
    [
        ('auroc', 0.9),
        ('fpr95/organ', 0.9),
        ('auroc/organ/pooled', 0.75),
        ('case_auc', Fraction(7, 9)),  # OOD 3, 2, 5 against 1, 0, 4: 7 of 9 pairs in order
        ('fallbacks', 1),
        ('dice', (0.6 + 0.3) / 2),  # a (0.5 + 0.7) / 2, b (0.2 + 0.4) / 2
        ('dice/a', 0.6),
        ('lesion_sensitivity', 2 / 4),
        ('lesion_sensitivity/b', 0 / 1),
        ('parameters', 2.5),
        ('gflop', 4.25),
        ('train_time', 3.0),
    ],
)
def test_columns_by_hand(column, expected):
    known = evaluation(parameters=2_500_000, gflop=4.25, train_s=180.0)
    found = measure(known, parse_column(column, 'test'), 's')
    assert found is not None and found.value == pytest.approx(float(expected))


def test_dice_of_all_cases_and_of_those_that_hold_the_type():
    missed = evaluation()
    missed.cases[5]['dice']['a'] = 0.0  # predicted where the truth has none
    missed.cases[5]['truth_voxels']['a'] = 0
    every = measure(missed, parse_column('dice/a', 'test'), '')
    holding = measure(missed, parse_column('dice_present/a', 'test'), '')
    assert every is not None and every.value == pytest.approx((0.5 + 0.7 + 0) / 3)
    assert holding is not None and holding.value == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize('column', ['nsd', 'hd95/a', 'parameters', 'gflop', 'auroc/whole/pooled'])
def test_what_summaries_lack_is_not_measured(column):
    assert measure(evaluation(), parse_column(column, 'test'), 's') is None


def test_types_become_a_column_each():
    columns = expand([parse_column(name, 'test') for name in ('dice/types', 'dice')], ('a', 'b'))
    assert [column.key for column in columns] == ['dice/a', 'dice/b', 'dice']
    assert [column.title for column in columns[:2]] == ['a', 'b']


@pytest.fixture
def built():
    rows = tuple({'title': t, 'variant': t.lower(), 'score': 's'} for t in ('A', 'B', 'C', 'D'))
    numbers = {'A': {'auroc': 80.0, 'dice/PDAC': 33.0}, 'B': {'auroc': 90.0}, 'C': {'auroc': 95.0}}
    spec = parse_study(
        study(
            variants={name: {} for name in 'abcd'},
            tables=(
                table(
                    rows=rows,
                    columns=('auroc', 'dice', 'nsd'),
                    pairs=(('A', 'B'), ('A', 'D')),
                    reference={'paper, liver': {**numbers, 'E': {'auroc': 50.0}}},
                    note='A note.',
                ),
            ),
        )
    )
    evaluations = {
        'a': {0: evaluation(), 1: evaluation(0.2)},
        'b': {0: evaluation(0.3), 1: evaluation(0.3)},
        'c': {1: evaluation(0.5)},
    }
    return build_table(spec, spec.tables[0], evaluations)


def test_table_holds_cells_differences_and_order(built):
    ours = built['rows'][0]['cells']['auroc']
    assert ours['value'] == pytest.approx(0.8)
    assert ours['seeds'] == pytest.approx({'0': 0.9, '1': 0.7})
    assert ours['seed_sd'] == pytest.approx(0.2 / math.sqrt(2))
    assert built['counts'] == {'cases': 6, 'inlier_cases': 3, 'ood_cases': 3}
    first, missing = built['pairs']
    difference = first['differences']['auroc']
    assert difference['value'] == pytest.approx(0.2)
    assert difference['seeds'] == pytest.approx({'0': 0.3, '1': 0.1})
    assert (difference['low'], difference['high']) == pytest.approx((0.2, 0.2))
    assert missing['differences'] == {}
    # ours A > B > C, the paper's A < B < C
    assert built['order'] == {'paper, liver': {'auroc': {'tau': -1.0, 'rows': 3}}}
    json.dumps(built, allow_nan=False)


def test_markdown_says_what_is_ours_what_is_theirs_and_what_is_missing(built):
    text = to_markdown(built, 'How.')
    lines = {line.split(' | ')[0]: line for line in text.splitlines()}
    assert lines['| method'] == (
        '| method | AUROC ↑ | inlier tumour Dice ↑ | NSD ↑ | *paper, liver:* AUROC | '
        '*paper, liver:* PDAC |'
    )
    assert '80.0 [' in lines['| A'] and '± 14.1' in lines['| A']
    assert 'not measured | *80.00* | *33.00* |' in lines['| A']
    assert lines['| D'] == '| D | not run | not run | not run |  |  |'
    assert lines['| *E*'].endswith('| *50.00* |  |')
    assert '| C (1 of 2 seeds) |' in text and '| A − D | not run |' in text
    assert '| A − B | AUROC ↑ | +20.0 [+20.0, +20.0] | +30.0, +10.0 | < 0.001 |' in text
    assert 'different data, not comparable in value' in ' '.join(text.split())
    assert 'A note.' in text and '| paper, liver | AUROC | -1.00 | 3 |' in text
