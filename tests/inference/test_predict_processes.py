"""`launch.predict` started on two processes: each takes its part, neither waits for the other."""

import json
import pathlib

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pytest
import query_run

from maxquery_jax.errors import UserError
from maxquery_jax.inference.ensemble import load_ensemble
from maxquery_jax.inference.predict import predict
from maxquery_jax.train.checkpoint import StageCheckpoints, load_params
from maxquery_jax.train.state import TrainState
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run whose best checkpoint, step 5, is not its newest."""
    folder = tmp_path_factory.mktemp('processes')
    store = query_run.write_store(folder / 'store', folder / 'raw')
    path, _, params = query_run.write_run(folder / 'run', store)
    checkpoints = StageCheckpoints(path / 'checkpoints/finetune')
    worse, tx = jax.tree.map(lambda x: x + np.float32(0.1), params), optax.sgd(0.1)
    checkpoints.save(TrainState(jnp.int32(9), worse, tx.init(worse)), 9)
    checkpoints.close()
    config = json.loads((path / 'config.json').read_text())
    config['checkpoint']['best'] = 'dice_mean'
    (path / 'config.json').write_text(json.dumps(config))
    with (path / 'metrics.jsonl').open('a') as rows:
        for step, value in ((5, 0.8), (9, 0.3)):
            row = {'step': step, 'stage': 'finetune', 'split': 'val', 'dice_mean': value}
            rows.write(json.dumps(row) + '\n')
    return path


def test_the_checkpoint_can_be_chosen(run, tmp_path):
    newest, best = (load_ensemble([run], checkpoint=name) for name in ('newest', 'best'))
    assert (newest.step, best.step) == (9, 5)
    assert best.params_sha256 != newest.params_sha256
    scan = run.parent / 'raw/known.nii.gz'
    (record,) = predict(run, scan, tmp_path / 'out', checkpoint='best')
    assert json.loads(record.read_text())['model']['params_sha256'] == best.params_sha256
    with pytest.raises(UserError, match='comes from another model'):
        predict(run, scan, tmp_path / 'out')


@pytest.mark.integration
def test_two_processes_share_a_folder(run, tmp_path, python):
    """The second meets a bad scan, says so and ends; the first is done all the same."""
    scans, out = tmp_path / 'scans', tmp_path / 'out'
    scans.mkdir()
    for name in ('a', 'b', 'c', 'd'):
        (scans / f'{name}.nii.gz').symlink_to(run.parent / 'raw/known.nii.gz')
    (scans / 'b.nii.gz').unlink()
    (scans / 'b.nii.gz').write_bytes(b'no scan')
    base = [
        python, '-m', 'launch.predict', f'--model={run}', f'--input={scans}', f'--output={out}',
        '--checkpoint=best', '--coordinator=localhost:9', '--num_processes=2',
    ]  # fmt: skip
    log = tmp_path / 'second.txt'
    with processes.started([*base, '--process_id=1'], log, cwd=ROOT) as second:
        first = processes.run([*base, '--process_id=0'], cwd=ROOT)
        assert second.wait(processes.LIMIT_S) == 2
    assert first.returncode == 0, first.stderr
    assert 'part 1/2: 2 of 4 scans' in first.stdout
    said = log.read_text()
    assert 'part 2/2: 2 of 4 scans' in said and '1 of 2 scans could not be predicted' in said
    assert sorted(path.stem for path in out.glob('*.json')) == ['a', 'c', 'd']
    record = json.loads((out / 'd.json').read_text())
    assert record['model']['name'] == 'run (finetune, step 5)'
    assert load_params(run)[2] == 9  # what it would have been
    a, d = (np.asanyarray(nib.load(out / f'{name}_seg.nii.gz').dataobj) for name in 'ad')
    np.testing.assert_array_equal(a, d)
