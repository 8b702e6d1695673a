"""The run directory: one writer, an unchanged experiment, rows that survive a kill."""

import copy
import functools
import json

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.train.run_dir import RunDir
from maxquery_jax.train.schedule import is_due


def test_second_training_in_the_same_directory_is_refused(tmp_path):
    first = RunDir(tmp_path / 'run')
    with pytest.raises(UserError, match='in use'):
        RunDir(tmp_path / 'run')
    first.close()
    RunDir(tmp_path / 'run').close()


def test_a_changed_experiment_is_refused_and_free_fields_may_change(tmp_path):
    run = RunDir(tmp_path)
    run.write_config({'seed': 0, 'data': {'patch_size': (1, 2), 'num_workers': 0}})
    run.write_config({'seed': 0, 'data': {'patch_size': (1, 2), 'num_workers': 4}})
    with pytest.raises(UserError, match=r'seed=0, now it is 1'):
        run.write_config({'seed': 1, 'data': {'patch_size': (1, 2), 'num_workers': 4}})
    run.close()


OLD = {
    'stages': ['tune'],
    'data': {'patch_size': [1, 2], 'store': 'here', 'phantom': {'num_train': 3}},
    'tune': {'objective': 'o', 'loss': {'ce_weight': 1.0}},
}
DEFAULTS = {
    'data': {'patch_size': [0, 0], 'fold': -1, 'roles': ['organ']},
    'tune': {'loss': {'ce_weight': 1.0, 'new_weight': 1.0}},
}


def newer(**changes):
    """What a later version of the program makes of the same experiment, then changed."""
    config = copy.deepcopy(OLD)
    config['data'] |= {'fold': -1, 'roles': ('organ',)}
    config['tune']['loss']['new_weight'] = 1.0
    for key, value in changes.items():
        *path, name = key.split('__')
        section = functools.reduce(lambda tree, part: tree[part], path, config)
        section.pop(name) if value is None else section.update({name: value})
    return config


@pytest.fixture
def started(tmp_path):
    run = RunDir(tmp_path)
    run.write_config(OLD)
    yield run
    run.close()


def test_fields_that_a_newer_version_added_are_no_difference(started, capsys):
    before = (started.path / 'config.json').read_bytes()
    started.write_config(newer(), DEFAULTS)
    assert (started.path / 'config.json').read_bytes() == before
    described = {'objective': 'o', 'epochs': 7}  # a stage that the experiment does not train
    started.write_config(newer(other=described), DEFAULTS)
    assert (started.path / 'config.json').read_bytes() == before
    assert capsys.readouterr() == ('', '')


def test_free_fields_are_recorded_without_the_added_ones(started):
    started.write_config(newer(data__store='there', log={'every_steps': 1}), DEFAULTS)
    expected = copy.deepcopy(OLD)
    expected['data']['store'] = 'there'
    assert json.loads((started.path / 'config.json').read_text()) == expected


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'data__patch_size': (1, 3)}, r'with data.patch_size=\[1, 2\], now it is \[1, 3\]; '),
        ({'tune__loss__ce_weight': 0.5}, 'with tune.loss.ce_weight=1.0, now it is 0.5; '),
        ({'data__fold': 2}, r'without data.fold \(-1\), now it is 2; choose another --workdir'),
        ({'tune__loss__new_weight': 0.0}, r'without tune.loss.new_weight \(1.0\), now it is 0.0'),
        ({'data__phantom__noise': 3}, 'without data.phantom.noise, now it is 3; '),  # no default
        ({'tune__loss__ce_weight': None}, 'with tune.loss.ce_weight=1.0, a field that is not ther'),
        ({'stages': ('tune', 'other'), 'other': {'objective': 'o'}}, 'without other.objective, no'),
    ],
)
def test_what_differs_is_named_with_both_values(started, changes, words):
    before = (started.path / 'config.json').read_bytes()
    with pytest.raises(UserError, match=f'was started {words}') as caught:
        started.write_config(newer(**changes), DEFAULTS)
    assert '\n' not in str(caught.value) and str(started.path) in str(caught.value)
    assert (started.path / 'config.json').read_bytes() == before


def test_without_defaults_an_added_field_is_a_difference(started):
    with pytest.raises(UserError, match='without data.fold, now it is -1'):
        started.write_config(newer())


def test_rows_after_the_restart_are_dropped_and_cut_lines_ignored(tmp_path):
    run = RunDir(tmp_path)
    for stage, step in [('a', 1), ('a', 2), ('b', 1), ('b', 2)]:
        run.append({'stage': stage, 'step': step})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"stage": "b", "st')
    run.drop_rows_after(('a', 'b'), 'b', 1)
    assert [(r['stage'], r['step']) for r in run.rows()] == [('a', 1), ('a', 2), ('b', 1)]
    run.drop_rows_after(('a', 'b'), 'a', 1)
    assert [(r['stage'], r['step']) for r in run.rows()] == [('a', 1)]
    run.close()


def test_only_one_process_of_a_run_writes(tmp_path):
    writer, other = RunDir(tmp_path / 'run'), RunDir(tmp_path / 'run', is_writer=False)
    writer.append({'step': 1, 'stage': 'a'})
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()}
    other.append({'step': 1, 'stage': 'a'})
    other.drop_rows_after(('a',), 'a', 0)
    other.write_config({'seed': 1})
    other.write_manifest({})
    assert other.rows() == [{'step': 1, 'stage': 'a'}]
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()} == before
    other.close()
    writer.close()
    RunDir(tmp_path / 'absent', is_writer=False)
    assert not (tmp_path / 'absent').exists()


def test_unwritable_workdir_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        RunDir(tmp_path / 'file' / 'run')


@pytest.mark.parametrize(
    ('step', 'every', 'due'),
    [(3, 3, True), (4, 3, False), (10, 3, True), (4, 0, False), (10, 0, True)],
)
def test_is_due(step, every, due):
    assert is_due(step, every, last=10) is due
