"""Kill -9 at random moments, saves included: the restarted run ends bit-identical."""

import json
import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from maxquery_jax.train.checkpoint import load_params
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
KILLS = 2  # tests/integration/trials.py does many more
TINY = [
    '--config=configs/maxquery.py:demo',
    '--config.data.phantom.num_train=3',
    '--config.data.phantom.num_val=1',
    '--config.data.phantom.num_test_inlier=0',
    '--config.data.phantom.num_test_ood=0',
    '--config.data.phantom.shape_zyx=(16,32,32)',
    '--config.data.phantom.spacing_mm=(10.0,8.0,8.0)',
    '--config.data.patch_size=(8,16,16)',
    '--config.augment.enabled=True',
    '--config.model.backbone.base_features=4',
    '--config.model.conv_form=plain',
    '--config.model.backbone.max_stages=2',
    '--config.model.decoder.output_strides=(2,)',
    '--config.model.decoder.query_dim=16',
    '--config.model.decoder.embed_dim=8',
    '--config.model.decoder.ffn_dim=16',
    '--config.pretrain.epochs=1',
    '--config.pretrain.steps_per_epoch=8',
    '--config.finetune.optim.frozen_epochs=1',
    '--config.finetune.epochs=3',
    '--config.finetune.steps_per_epoch=6',
    '--config.checkpoint.every_steps=2',
    '--config.log.every_steps=1',
]


def start(python, workdir, log, store='', flags=()):
    extra = [f'--config.data.store={store}'] if store else []
    extra += flags
    return processes.started(
        [python, '-m', 'launch.train', *TINY, *extra, f'--workdir={workdir}'],
        log,
        cwd=ROOT,
    )


def wait_for_step(process, log):
    """Whether a training step was logged before the process ended."""
    return processes.wait_until(lambda: ' loss ' in log.read_text(), process)


@pytest.fixture(scope='module')
def whole(python, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    log = folder.with_name('log.txt')
    with start(python, folder, log) as process:
        assert process.wait(processes.LIMIT_S) == 0, log.read_text()
    return folder


def new_run(folder, whole):
    """A run directory that holds compiled programs, which are not what is tested here."""
    shutil.copytree(whole / 'cache', folder / 'cache')
    return folder


@pytest.mark.integration
def test_kill_at_any_moment_ends_bit_identical(python, whole, tmp_path):
    log, run = tmp_path / 'log.txt', new_run(tmp_path / 'killed', whole)
    rng = random.Random(0)
    kills = 0
    while True:
        with start(python, run, log, whole / 'phantom' / 'store') as process:
            if kills == KILLS:
                assert process.wait(processes.LIMIT_S) == 0, log.read_text()
                break
            alive = wait_for_step(process, log)
            time.sleep(rng.uniform(0.0, 0.6))
            processes.kill(process)
        kills += 1
        if not alive:
            break
    for stage in ('pretrain', 'finetune'):
        expected, _, last = load_params(whole, stage)
        actual, _, step = load_params(run, stage)
        assert step == last
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.integration
def test_sigterm_saves_and_says_so(python, whole, tmp_path):
    log = tmp_path / 'log.txt'
    with start(python, new_run(tmp_path / 'run', whole), log) as process:
        assert wait_for_step(process, log)
        process.send_signal(signal.SIGTERM)
        code = process.wait(processes.LIMIT_S)
    assert code == 2 and 'the same command continues' in log.read_text(), log.read_text()
    assert load_params(tmp_path / 'run')[2] >= 1
    goodput = json.loads((tmp_path / 'run/goodput.json').read_text())
    [first] = goodput['starts']
    assert first['ended'] == 'stopped' and 0 < first['first_step_s'] < goodput['total_s']
    assert sum(goodput['seconds'].values()) == pytest.approx(goodput['total_s'], abs=0.1)
    assert goodput['seconds']['lost'] == 0 and 'goodput: ' in log.read_text()
