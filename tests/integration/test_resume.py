"""Kill -9 at random moments, saves included: the restarted run ends bit-identical."""

import os
import pathlib
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from maxquery_jax.train.checkpoint import load_params

ROOT = pathlib.Path(__file__).parent.parent.parent
KILLS = 5
TINY = [
    '--config=configs/maxquery.py:demo',
    '--config.data.phantom.num_train=3',
    '--config.data.phantom.num_val=1',
    '--config.data.phantom.num_test_inlier=0',
    '--config.data.phantom.num_test_ood=0',
    '--config.data.phantom.shape_zyx=(16,32,32)',
    '--config.data.phantom.spacing_mm=(10.0,8.0,8.0)',
    '--config.data.patch_size=(16,32,32)',
    '--config.augment.enabled=True',
    '--config.model.backbone.base_features=4',
    '--config.model.conv_form=plain',
    '--config.model.decoder.output_strides=(4,2)',
    '--config.model.decoder.query_dim=16',
    '--config.model.decoder.embed_dim=8',
    '--config.model.decoder.ffn_dim=16',
    '--config.pretrain.epochs=1',
    '--config.pretrain.steps_per_epoch=12',
    '--config.finetune.optim.frozen_epochs=1',
    '--config.finetune.epochs=3',
    '--config.finetune.steps_per_epoch=6',
    '--config.checkpoint.every_steps=2',
    '--config.log.every_steps=1',
]


def start(python, workdir, store=''):
    extra = [f'--config.data.store={store}'] if store else []
    return subprocess.Popen(
        [python, '-m', 'launch.train', *TINY, *extra, f'--workdir={workdir}'],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': ''},  # training takes longer than its compilation
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process, deadline_s=120):
    """Returns once a training step was logged, or at the end of the process."""
    limit = time.monotonic() + deadline_s
    for line in process.stdout:
        assert time.monotonic() < limit, 'no step in time'
        if ' loss ' in line:
            return True
    return False


@pytest.mark.integration
def test_kill_at_any_moment_ends_bit_identical(python, tmp_path):
    whole = start(python, tmp_path / 'whole')
    log, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, log
    store = tmp_path / 'whole' / 'phantom' / 'store'

    rng = random.Random(0)
    kills = 0
    while True:
        process = start(python, tmp_path / 'killed', store)
        if kills == KILLS:
            log, _ = process.communicate(timeout=300)
            assert process.returncode == 0, log
            break
        alive = wait_for_step(process)
        time.sleep(rng.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kills += 1
        if not alive:
            break
    for stage in ('pretrain', 'finetune'):
        expected, _, last = load_params(tmp_path / 'whole', stage)
        actual, _, step = load_params(tmp_path / 'killed', stage)
        assert step == last
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.integration
def test_sigterm_saves_and_says_so(python, tmp_path):
    process = start(python, tmp_path / 'run')
    assert wait_for_step(process)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and 'the same command continues' in log, log
    assert load_params(tmp_path / 'run')[2] >= 1
