"""Division into train, val and test."""

import pytest

from maxquery_jax.data.splits import SplitOptions, make_splits
from maxquery_jax.errors import UserError

IDS = [f'case_{i:03d}' for i in range(100)]


def sizes(count, **options):
    splits, _ = make_splits(IDS[:count], (), SplitOptions(**options))
    return len(splits['train']), len(splits['val']), len(splits['test'])


def test_the_papers_proportions():
    assert sizes(100) == (64, 16, 20)


@pytest.mark.parametrize(
    ('count', 'expected'), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)),
                            (4, (2, 1, 1)), (10, (6, 2, 2))],
)  # fmt: skip
def test_few_cases(count, expected):
    assert sizes(count) == expected
    _, notes = make_splits(IDS[:count], (), SplitOptions())
    assert bool(notes) == (count < 3)


def test_fractions_and_all_train():
    assert sizes(10, val_fraction=0, test_fraction=0.5) == (5, 0, 5)
    assert sizes(10, mode='all_train') == (10, 0, 0)


def test_test_only_cases_never_train():
    for mode in ('random', 'all_train'):
        splits, _ = make_splits(IDS, IDS[:7], SplitOptions(mode=mode))
        assert set(IDS[:7]) <= set(splits['test'])
    assert sorted(sum(splits.values(), ())) == IDS


def test_a_function_of_ids_and_seed():
    first, _ = make_splits(IDS, (), SplitOptions(seed=1))
    again, _ = make_splits(IDS[::-1], (), SplitOptions(seed=1))
    other, _ = make_splits(IDS, (), SplitOptions(seed=2))
    assert first == again != other


def folds_of(ids, count, **options):
    return [
        make_splits(ids, (), SplitOptions(folds=count, fold=i, **options))[0] for i in range(count)
    ]


@pytest.mark.parametrize('number', [5, 23, 100])
def test_every_case_validates_once(number):
    folds = folds_of(IDS[:number], 5, test_fraction=0)
    assert sorted(sum((fold['val'] for fold in folds), ())) == IDS[:number]
    assert max(len(f['val']) for f in folds) - min(len(f['val']) for f in folds) <= 1
    for fold in folds:
        assert sorted(fold['train'] + fold['val']) == IDS[:number] and fold['test'] == ()


def test_five_folds_of_the_papers_proportions():
    folds = folds_of(IDS, 5)
    assert {tuple(map(len, fold.values())) for fold in folds} == {(64, 16, 20)}
    assert len({fold['test'] for fold in folds}) == 1 and len({fold['val'] for fold in folds}) == 5
    assert folds[0]['test'] == make_splits(IDS, (), SplitOptions())[0]['test']
    assert folds == folds_of(IDS[::-1], 5)
    assert folds != folds_of(IDS, 5, seed=1)


def test_the_data_sets_own_test_cases():
    splits, _ = make_splits(IDS, IDS[:2], SplitOptions(), test=IDS[90:])
    assert splits['test'] == (*IDS[:2], *IDS[90:])
    assert len(splits['val']) == round(0.2 * 88)
    splits, _ = make_splits(IDS, (), SplitOptions(folds=4, fold=3), test=IDS[80:])
    assert splits['test'] == tuple(IDS[80:]) and len(splits['val']) == 20


def test_too_many_folds():
    with pytest.raises(UserError, match='only 3 cases'):
        make_splits(IDS[:3], (), SplitOptions(folds=5, fold=0, test_fraction=0))


@pytest.mark.parametrize(
    'options',
    [{'folds': 5}, {'fold': 1}, {'folds': 1, 'fold': 0}, {'folds': 5, 'fold': 5},
     {'folds': 5, 'fold': 0, 'mode': 'all_train'}, {'folds': 2, 'fold': 0, 'given': {}},
     {'mode': 'half'}, {'val_fraction': -0.1}, {'val_fraction': 0.5, 'test_fraction': 0.5}],
)  # fmt: skip
def test_nonsense_is_refused(options):
    with pytest.raises(UserError, match='--'):
        SplitOptions(**options)
