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


@pytest.mark.parametrize(
    'options',
    [{'mode': 'half'}, {'val_fraction': -0.1}, {'val_fraction': 0.5, 'test_fraction': 0.5}],
)
def test_nonsense_is_refused(options):
    with pytest.raises(UserError, match='--'):
        SplitOptions(**options)
