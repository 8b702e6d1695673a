"""The loop's side effects: signals, validation, the best checkpoint, and what ends a run early."""

import errno
import os
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train import checkpoint
from maxquery_jax.train.loop import StageRun
from maxquery_jax.train.run_dir import RunDir
from maxquery_jax.train.state import TrainState

STEPS = 5
CONFIG = {
    'stages': ('only',),
    'data': {'batch_size': 1, 'oversample_rate': 1.0, 'num_workers': 0, 'prefetch': 1},
    'checkpoint': {'keep': 1, 'every_steps': 100, 'best': ''},
    'log': {'every_steps': 100},
    'validation': {'every_steps': 0, 'batches': 0},
}
CONFIG_JSON = '{"stages": ["only"], "checkpoint": {"best": "dice_mean"}}'


class Batches:
    """Endless batches; before the one of `at`, `happen` is called."""

    def __init__(self, at=0, happen=None):
        self.given, self.at, self.happen, self.is_closed = 0, at, happen, False

    def __next__(self):
        self.given += 1
        if self.given == self.at:
            self.happen()
        return {'case': np.zeros(1, np.int32)}

    def case_name(self, index):
        return f'case{index}'

    def close(self):
        self.is_closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Runs of five steps that count; loss and Dice of each are entries of `losses` and `dice`."""
    opened = []

    def make(batches=None, losses=(1.0,) * STEPS, dice=(), **changes):
        def step(state, batch, key):
            index = int(state.step)
            params = {'steps': jnp.asarray(index + 1)}
            metrics = {'loss': losses[index], 'grad_norm': 1.0}
            return TrainState(state.step + 1, params, ()), metrics

        def count(params, batch):
            hit = jnp.asarray((0.0, *dice))[params['steps']]
            return jnp.stack([jnp.ones(3), jnp.stack([hit, 0.5, 0.5])])

        stage = types.SimpleNamespace(
            name='only', total_steps=STEPS, eval_step=count, dropout_key=None,
            augment_step=lambda batch, index: batch, schedule=lambda step: 0.1,
            layout=types.SimpleNamespace(to_saved=lambda state: state),
            crop_size=(4, 4, 4), patch_size=(4, 4, 4), deform_rate=1.0,
        )  # fmt: skip
        given = {'train': batches or Batches()}
        data = types.SimpleNamespace(
            batches=lambda config, split, **_: given.get(split) or Batches(),
            num_cases=lambda split: len(dice),
            manifest=types.SimpleNamespace(num_classes=2, class_names=('background', 'tumour')),
        )
        monkeypatch.setattr(StageRun, 'compile_step', lambda self, state: step)
        config = ConfigDict(CONFIG)
        config.update_from_flattened_dict(changes)
        for folder in opened:
            folder.close()
        opened.append(RunDir(tmp_path / 'run'))
        (tmp_path / 'run/config.json').write_text(CONFIG_JSON)
        return StageRun(config, stage, data, make_mesh(1, 1, 1), opened[-1], on_log=lambda: None)

    yield make
    for folder in opened:
        folder.close()


def state_at(step):
    return TrainState(jnp.asarray(step), {'steps': jnp.asarray(step)}, ())


def validated(run):
    return [row['step'] for row in run.run.rows() if row['split'] == 'val']


def fails(run, match, start=0):
    with pytest.raises(UserError, match=match) as caught:
        run._train(state_at(start), start)
    assert '\n' not in str(caught.value)
    return caught.value


def test_sigterm_saves_the_step_and_raises_stopped(make_run):
    before = signal.getsignal(signal.SIGTERM)
    batches = Batches(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = make_run(batches)
    error = fails(run, 'signal 15 after saving step 3; the same command continues')
    assert isinstance(error, StoppedError)
    assert run.finished_steps() == 3 and batches.given == 3
    assert batches.is_closed and signal.getsignal(signal.SIGTERM) == before
    assert [row['step'] for row in run.run.rows()] == [1, 3]


def test_a_notice_of_the_cloud_saves_the_step(make_run):
    run = make_run(Batches(3, lambda: setattr(run._notice, 'reason', 'the notice')))
    assert isinstance(fails(run, 'stopped by the notice after saving step 3'), StoppedError)
    assert run.finished_steps() == 3


def test_a_loss_that_is_not_finite_is_no_stop(make_run):
    run = make_run(losses=(1.0, float('nan'), 1.0, 1.0, 1.0))
    error = fails(run, 'only step 2: loss nan.* case0.*there is no checkpoint yet')
    assert not isinstance(error, StoppedError) and run.finished_steps() == 0


def test_without_a_signal_the_last_step_is_saved(make_run):
    run = make_run()
    run._train(state_at(0), 0)
    assert run.finished_steps() == STEPS


def test_validation_has_steps_of_its_own(make_run):
    run = make_run(dice=(0.1,) * STEPS, **{'validation.batches': 1, 'validation.every_steps': 2})
    run._train(state_at(0), 0)
    assert [(row['step'], row['split']) for row in run.run.rows()] == [
        (1, 'train'), (2, 'val'), (4, 'val'), (5, 'train'), (5, 'val'),
    ]  # fmt: skip


BEST = {
    'checkpoint.best': 'dice_mean', 'validation.batches': 1, 'validation.every_steps': 1,
}  # fmt: skip


@pytest.mark.parametrize('stop', [None, 1, 2, 3, 4, 5])
def test_the_best_checkpoint_is_the_same_after_any_stop(make_run, tmp_path, monkeypatch, stop):
    """Step 2 is the best, and 4 as good but later; a stop saves its step before validating it."""
    dice, start = (0.1, 0.3, 0.2, 0.3, 0.2), 0
    if stop:
        first = make_run(
            Batches(stop, lambda: os.kill(os.getpid(), signal.SIGTERM)), dice=dice, **BEST
        )
        fails(first, f'after saving step {stop}')
        assert stop not in validated(first)
        start = stop
    run = make_run(dice=dice, **BEST)
    assert not run.is_finished()
    monkeypatch.setattr(run, '_restore_or_create', lambda _: (state_at(start), start))
    run.execute(lambda: None)
    assert validated(run) == [1, 2, 3, 4, 5]
    again = make_run(dice=dice, **BEST)
    assert again.is_finished()
    again.close()
    assert run._checkpoints.steps() == [2, 5]
    params, _, step = checkpoint.load_params(tmp_path / 'run', best=True)
    assert (step, params['steps']) == (2, 2)
    assert checkpoint.load_params(tmp_path / 'run')[2] == 5


def test_a_name_that_validation_does_not_produce_is_refused_at_once(make_run):
    with pytest.raises(UserError, match='no value of validation; choose from dice_mean, dice/back'):
        make_run(dice=(0.1,) * STEPS, **{**BEST, 'checkpoint.best': 'dice'})
    with pytest.raises(UserError, match='needs validation cases'):
        make_run(**BEST)


def test_a_store_that_vanishes_costs_no_step(make_run):
    def vanish():
        raise UserError('store S: case 7 cannot be read; copy the store again')

    run = make_run(Batches(4, vanish), **{'checkpoint.every_steps': 2})
    fails(
        run,
        'store S: case 7 cannot be read.*only had come to step 3, the last good checkpoint is '
        'step 3 in .*: the same command continues',
    )
    assert run.finished_steps() == 3


def test_a_validation_that_fails_costs_no_step(make_run, monkeypatch):
    run = make_run(dice=(0.1,) * STEPS, **{**BEST, 'validation.every_steps': 3})

    def fail(params, step):
        raise UserError('store S: case 7 cannot be read')

    monkeypatch.setattr(run._validator, 'run', fail)
    fails(run, 'case 7 cannot be read; only had come to step 3, the last good .* is step 3')
    again = make_run(dice=(0.1,) * STEPS, **{**BEST, 'validation.every_steps': 3})
    assert again._lacks_validation(3) and not again._lacks_validation(2)


def test_a_save_that_fails_in_the_background_is_heard_at_once(make_run, monkeypatch):
    """Step 2 is saved on a full disk; nothing is to be saved before step 5."""

    class Full:
        def result(self):
            raise ValueError('INTERNAL: write of 12 bytes: No space left on device [OS error 28]')

    save = checkpoint.ocp.save_async

    def save_async(path, *args, **kwargs):
        return Full() if path.endswith('/2') else save(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint.ocp, 'save_async', save_async)
    batches = Batches(4, lambda: run._checkpoints._saving[1].exception())  # waits
    run = make_run(batches, **BEST, dice=(0.1, 0.2, 0.1, 0.1, 0.1))
    fails(
        run,
        r'run/checkpoints/only/2 cannot be written \(No space left on device\); free.*had come to '
        'step [34], the last good checkpoint is step 1',
    )


def test_a_full_disk_under_the_log_is_one_line(make_run, monkeypatch):
    run = make_run(**{'checkpoint.every_steps': 2})
    append = RunDir.append

    def full(self, row):
        if row['step'] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write fails: no name
        append(self, row)

    monkeypatch.setattr(RunDir, 'append', full)
    fails(
        run, 'run: No space left on device; free disk space .* the last good checkpoint is step 2'
    )


@pytest.mark.parametrize('again', [False, True])
def test_a_run_directory_that_vanishes_is_named_and_not_made_again(make_run, tmp_path, again):
    def vanish():
        run._checkpoints.wait()
        os.rename(run.run.path, tmp_path / 'elsewhere')
        if again:  # as a save makes it that is under way
            run._checkpoints.directory.mkdir(parents=True)

    run = make_run(Batches(4, vanish), **{'checkpoint.every_steps': 2})
    fails(run, 'run is gone; put it back.*had come to step 4, and the same command continues')
    assert run._checkpoints.steps() == []
    assert checkpoint.load_params(tmp_path / 'elsewhere')[2] == 2
