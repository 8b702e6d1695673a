"""Columns of single classes, unseen ones above all, against numbers worked out by hand."""

from typing import Any

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.study.columns import expand, parse_column
from maxquery_jax.study.measures import Evaluation, measure
from maxquery_jax.study.render import to_markdown
from maxquery_jax.study.spec import parse_study
from maxquery_jax.study.tables import build_table
from tests.study.study_helper import study, table

# Which class an OOD case holds, its AUROC, and Dice of the known tumour t, the organ and x, y.
CASES = (
    ('x', 0.5, (None, 0.9, 0.2, None)),
    ('x', 0.7, (0.0, 0.9, 0.4, None)),
    ('y', 0.9, (None, 0.9, 0.0, 0.6)),
    ('', None, (0.8, 0.7, None, 0.0)),
    ('', None, (None, 0.5, None, None)),
)
NAMES = ('t', 'organ_a', 'x', 'y')


def evaluation(**fields: Any) -> Any:
    cases: list[dict[str, Any]] = []
    for number, (held, auroc, dice) in enumerate(CASES):
        voxels = {name: int(name == held) for name in ('x', 'y')} | {'organ_a': 5, 't': number == 3}
        cases.append(
            {
                'case': f'c{number}',
                'is_ood': bool(held),
                'ood_labels': {held: 10} if held else {},
                'truth_voxels': voxels,
                'dice': dict(zip(NAMES, dice, strict=True)),
                'nsd': dict(zip(NAMES, dice, strict=True)),
                'dice_any': {'tumour': 0.1 + number / 10},
                'lesions': {n: {'truth': voxels[n], 'found': 0} for n in ('t', 'x', 'y')},
                'ood': {'s': {'organ': {'auroc': auroc}, 'whole': {'auroc': auroc and 1 - auroc}}},
            }
        )
    fields = {'organs': ('organ_a',), 'zero_shot': ('x', 'y'), **fields}
    return Evaluation(cases, ('t',), **fields)


@pytest.mark.parametrize(
    ('column', 'expected'),
    [
        ('auroc', 0.7),
        ('auroc/x', 0.6),
        ('auroc/x/whole', 0.4),
        ('auroc/x+y', (0.6 + 0.9) / 2),
        ('auroc/ood', (0.6 + 0.9) / 2),
        ('dice/x', (0.2 + 0.4 + 0.0) / 3),  # all cases, one of them a false alarm
        ('dice_present/x', 0.3),
        ('dice/ood', (0.2 + 0.3) / 2),  # y: 0.6 and a false alarm in an inlier case
        ('dice_present/x+y', (0.3 + 0.6) / 2),
        ('nsd_present/y', 0.6),
        ('dice', 0.8),  # a known class: inlier cases only
        ('dice/t', 0.8),
        ('dice/organ', 0.6),
        ('lesion_sensitivity/x', 0.0),
        ('dice_any/x', (0.1 + 0.2) / 2),  # cases that hold it, whatever it was called
        ('dice_any/x+y', (0.15 + 0.3) / 2),
        ('dice_any/ood', (0.15 + 0.3) / 2),
    ],
)
def test_columns_by_hand(column, expected):
    found = measure(evaluation(), parse_column(column, 'test'), 's')
    assert found is not None and found.value == pytest.approx(expected)
    assert found.statistic is not None


@pytest.mark.parametrize(
    'column',
    ['dice_any/z', 'auroc/z', 'auroc/x+z', 'dice_present/x+t+z', 'dice/z', 'lesion_sensitivity/z'],
)
def test_a_class_that_is_not_there_has_no_number(column):
    found = measure(evaluation(), parse_column(column, 'test'), 's')
    assert found is None or found.value != found.value


def test_a_method_that_cannot_name_a_class_has_no_dice_of_it():
    mute = evaluation(zero_shot=())
    for case in mute.cases:
        del case['dice']['x'], case['dice']['y']
    assert measure(mute, parse_column('dice/x', 'test'), 's') is None
    assert measure(mute, parse_column('dice_present/ood', 'test'), 's') is None
    assert measure(mute, parse_column('auroc/x', 'test'), 's') is not None


def test_a_class_of_one_case_supports_no_interval():
    found = measure(evaluation(), parse_column('auroc/x+y', 'test'), 's')
    assert found is not None and found.support == 1
    found = measure(evaluation(), parse_column('auroc/x', 'test'), 's')
    assert found is not None and found.support == 2


def test_cases_of_several_classes_leave_only_the_number_of_the_summary():
    entry = {'auroc': {'value': 0.65, 'ci95': [0.6, 0.7]}}
    mixed = evaluation(ood_by_class={'x': {'cases': 3, 'scores': {'s': {'organ': entry}}}})
    mixed.cases[2]['ood_labels'] = {'x': 4, 'y': 10}
    found = measure(mixed, parse_column('auroc/x', 'test'), 's')
    assert found is not None and (found.value, found.interval) == (0.65, (0.6, 0.7))
    assert measure(mixed, parse_column('auroc/x+y', 'test'), 's') is None
    mixed.cases[0].pop('ood_labels')  # a summary of an older program
    assert measure(mixed, parse_column('auroc/x', 'test'), 's') is None
    assert measure(mixed, parse_column('dice_any/x', 'test'), 's') is None


GROUPS = {'c0': 'soft', 'c1': 'hard', 'c2': 'hard', 'c3': 'hard'}


@pytest.mark.parametrize(
    ('column', 'expected', 'count'),
    [
        ('auroc@hard', 0.8, 3),
        ('auroc/x@hard', 0.7, 3),
        ('auroc/x@soft', 0.5, 1),
        ('auroc/x/whole@hard', 0.3, 3),
        ('dice_present/x@soft', 0.2, 1),
        ('dice_any/x@hard', 0.2, 3),
        ('dice/x@hard', (0.4 + 0.0) / 2, 3),
        ('dice@hard', 0.8, 3),
        ('lesion_sensitivity/t@hard', 0.0, 3),
    ],
)
def test_a_group_is_its_cases_alone(column, expected, count):
    found = measure(evaluation(group_of=GROUPS), parse_column(column, 'test'), 's')
    assert found is not None and found.value == pytest.approx(expected)
    assert found.num_cases == count and found.statistic is not None


def test_a_group_without_cases_or_without_a_file_has_no_number():
    column = parse_column('auroc/x@hard', 'test')
    assert measure(evaluation(), column, 's') is None
    assert measure(evaluation(group_of=GROUPS), parse_column('auroc/x@no', 'test'), 's') is None
    # What the summary says of all its cases is not said of a group.
    entry = {'auroc': {'value': 0.65, 'ci95': [0.6, 0.7]}}
    whole = {'x': {'cases': 3, 'scores': {'s': {'organ': entry}}}}
    mixed = evaluation(group_of=GROUPS, ood_by_class=whole)
    mixed.cases[1]['ood_labels'] = {'x': 4, 'y': 10}
    assert measure(mixed, parse_column('auroc/x', 'test'), 's') is not None
    assert measure(mixed, column, 's') is None


@pytest.mark.parametrize(
    'key', ['auroc@', 'parameters@hard', 'fallbacks@hard', 'auroc/organ/pooled@hard', '@hard']
)
def test_columns_that_have_no_groups_are_refused(key):
    with pytest.raises(UserError, match='column'):
        parse_column(key, 'test')


def test_types_of_a_group_become_a_column_each():
    (column,) = expand([parse_column('dice/types@hard', 'test')], ('t',))
    assert (column.key, column.title, column.group) == ('dice/t@hard', 't @ hard', 'hard')
    assert column.tumour == 't'


def test_a_table_compares_rows_within_a_group_and_counts_its_cases():
    rows = tuple({'title': n, 'variant': n.lower(), 'score': 's'} for n in 'AB')
    columns = ('auroc/x@hard', 'auroc/x', 'auroc/x@none')
    tables = (table(rows=rows, columns=columns, pairs=(('A', 'B'),)),)
    spec = parse_study(study(variants={'a': {}, 'b': {}}, seeds=(0,), tables=tables))
    one, two = evaluation(group_of=GROUPS), evaluation(group_of=GROUPS)
    two.cases[1]['ood']['s']['organ'] = {'auroc': 0.6}
    built = build_table(spec, spec.tables[0], {'a': {0: one}, 'b': {0: two}})
    differences = built['pairs'][0]['differences']
    assert differences['auroc/x@hard']['value'] == pytest.approx(0.1)
    assert differences['auroc/x']['value'] == pytest.approx(0.05)
    assert built['groups'] == {'hard': 3, 'none': 0}
    text = to_markdown(built, 'How.')
    assert '| AUROC: x @ hard ↑ | AUROC: x ↑ | AUROC: x @ none ↑ |' in text
    assert '| A | 70.0 | 60.0 [50.0, 70.0] | not measured |' in text  # one case: no interval
    assert 'subtypes.csv, and intervals over these: 3 of hard, 0 of none.' in text


@pytest.mark.parametrize(
    ('key', 'title'),
    [
        ('auroc/x', 'AUROC: x'),
        ('fpr95/x/whole', 'FPR95 (whole volume): x'),
        ('auroc/x+y', 'AUROC: mean of 2 classes'),
        ('auroc/ood', 'AUROC: mean of unseen tumours'),
        ('dice/x', 'x'),
        ('dice/organ', 'Dice, mean of organs'),
        ('dice_any/x', 'Dice as any tumour: x'),
        ('nsd_present/x', 'NSD where present: x'),
        ('fpr95/x/whole@y z', 'FPR95 (whole volume): x @ y z'),
    ],
)
def test_headings(key, title):
    assert parse_column(key, 'test').title == title


def test_rows_of_two_cohorts_are_compared_without_pairing():
    spec = parse_study(
        study(
            variants={'a': {}, 'b': {}, 'c': {}},
            seeds=(0,),
            tables=(
                table(
                    rows=tuple({'title': n, 'variant': n.lower(), 'score': 's'} for n in 'ABC'),
                    columns=('auroc/x', 'dice_present/x+y'),
                    pairs=(('A', 'B'), ('A', 'C')),
                ),
            ),
        )
    )
    same, other = evaluation(), evaluation(cohort='other')
    built = build_table(spec, spec.tables[0], {'a': {0: same}, 'b': {0: same}, 'c': {0: other}})
    paired, apart = (pair['differences']['auroc/x'] for pair in built['pairs'])
    assert paired['is_paired'] and (paired['low'], paired['high']) == (0.0, 0.0)
    assert not apart['is_paired'] and apart['p_wilcoxon'] is None and apart['value'] == 0.0
    assert apart['low'] == pytest.approx(-0.2) and apart['high'] == pytest.approx(0.2)
    text = to_markdown(built, 'How.')
    assert 'of 2 cohorts' in text and '+20.0]‡' in text and 'on the same cases' not in text
    assert 'its voxels against all that are not OOD' in text and '2 classes: x, y.' in text
