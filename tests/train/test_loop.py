"""A signal between two steps: the step is saved, and the end is told apart from a fault."""

import os
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train.loop import StageRun
from maxquery_jax.train.run_dir import RunDir
from maxquery_jax.train.state import TrainState

CONFIG = {
    'data': {'batch_size': 1, 'oversample_rate': 1.0, 'num_workers': 0, 'prefetch': 1},
    'checkpoint': {'keep': 1, 'every_steps': 100},
    'log': {'every_steps': 100},
    'validation': {'every_steps': 100, 'batches': 0},
}


class Batches:
    """Five batches; before the one of `at`, `happen` is called."""

    def __init__(self, at, happen):
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


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """A run of five steps that count; the loss of each is its entry of `losses`."""
    folder = RunDir(tmp_path)

    def make(batches, losses=(1.0,) * 5):
        def step(state, batch, key):
            metrics = {'loss': losses[int(state.step)], 'grad_norm': 1.0}
            return state.replace(step=state.step + 1), metrics

        stage = types.SimpleNamespace(
            name='only', total_steps=5, eval_step=lambda params, batch: None,
            augment_step=lambda batch, index: batch, dropout_key=None, schedule=lambda step: 0.1,
            crop_size=(4, 4, 4), patch_size=(4, 4, 4), deform_rate=1.0,
        )  # fmt: skip
        data = types.SimpleNamespace(batches=lambda *_, **__: batches, num_cases=lambda _: 0)
        monkeypatch.setattr(StageRun, 'compile_step', lambda self, state: step)
        mesh = make_mesh(1, 1, 1)
        return StageRun(ConfigDict(CONFIG), stage, data, mesh, folder, on_log=lambda: None)

    yield make
    folder.close()


def first_state():
    return TrainState(jnp.asarray(0), {'weight': jnp.ones(2)}, ())


def test_sigterm_saves_the_step_and_raises_stopped(make_run):
    before = signal.getsignal(signal.SIGTERM)
    batches = Batches(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = make_run(batches)
    message = 'signal 15 after saving step 3; the same command continues'
    with pytest.raises(StoppedError, match=message):
        run._train(first_state(), 0)
    assert run.finished_steps() == 3 and batches.given == 3
    assert batches.is_closed and signal.getsignal(signal.SIGTERM) == before
    assert [row['step'] for row in run.run.rows()] == [1, 3]


def test_a_loss_that_is_not_finite_is_no_stop(make_run):
    run = make_run(Batches(0, None), losses=(1.0, float('nan'), 1.0, 1.0, 1.0))
    with pytest.raises(UserError, match='only step 2: loss nan.* case0') as caught:
        run._train(first_state(), 0)
    run.close()
    assert not isinstance(caught.value, StoppedError) and run.finished_steps() == 0


def test_without_a_signal_the_last_step_is_saved(make_run):
    run = make_run(Batches(0, None))
    run._train(first_state(), 0)
    run.close()
    assert run.finished_steps() == 5
