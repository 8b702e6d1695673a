"""The run directory: one writer, an unchanged experiment, rows that survive a kill."""

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
