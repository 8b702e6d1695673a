"""k-fold cross-validation: the parts, and that training and manifest follow them."""

import dataclasses
import types

import pytest
from test_data import make_config, write_store

from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.train.data import fold_splits, open_data


def manifest(train, val=(), test=()):
    splits = {'train': tuple(train), 'val': tuple(val), 'test': tuple(test)}
    return types.SimpleNamespace(splits=splits, dataset='made up')


def test_every_case_validates_once_and_tests_stay():
    cases = [f'case{i}' for i in range(13)]
    parts = [fold_splits(manifest(cases[:9], cases[9:], ('t',)), fold, 5) for fold in range(5)]
    assert sorted(case for part in parts for case in part['val']) == sorted(cases)
    assert sorted(len(part['val']) for part in parts) == [2, 2, 3, 3, 3]
    for part in parts:
        assert not set(part['train']) & set(part['val']) and part['test'] == ('t',)
        assert sorted((*part['train'], *part['val'])) == sorted(cases)


def test_folds_depend_on_the_ids_alone():
    cases = [f'case{i}' for i in range(10)]
    one = fold_splits(manifest(cases[:8], cases[8:]), 1, 3)
    two = fold_splits(manifest(cases[:1:-1], cases[1::-1]), 1, 3)
    assert one == two


def test_too_few_cases_are_a_user_error():
    with pytest.raises(UserError, match='use fewer folds'):
        fold_splits(manifest('ab', 'c'), 0, 4)


def test_training_data_are_those_of_the_fold(tmp_path):
    store = write_store(tmp_path / 'store', num_cases=6, num_val=2)
    seen = []
    for fold in range(3):
        config = make_config([store])
        config.data.fold, config.data.num_folds = fold, 3
        data = open_data(config, tmp_path)
        assert (data.num_cases('train'), data.num_cases('val')) == (4, 2)
        assert data.manifest.splits == fold_splits(PatchStore(store).manifest, fold, 3)
        seen += data.stores[0].case_ids('val')
        with data.batches(config, 'val', crop_size=(8, 8, 8)) as batches:
            drawn = {batches.case_name(i) for _ in range(3) for i in next(batches)['case']}
        assert drawn == set(data.stores[0].case_ids('val'))
    assert sorted(seen) == sorted(PatchStore(store).manifest.cases)
    assert PatchStore(store).case_ids('val') == ('c0', 'c1')  # the store itself did not change
    assert dataclasses.is_dataclass(data.manifest)
