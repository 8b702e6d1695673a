"""`launch.predict --model=A,B`: the mean of two runs, voxel by voxel."""

import json
import pathlib

import jax
import nibabel as nib
import numpy as np
import pytest
import query_run

from maxquery_jax.inference.model import load_model
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.integration
def test_the_command_predicts_the_mean_of_its_runs(tmp_path, python):
    store = query_run.write_store(tmp_path / 'store', tmp_path / 'raw')
    runs = [
        query_run.write_run(tmp_path / name, store, seed=seed)[0] for seed, name in enumerate('ab')
    ]
    scan, out = tmp_path / 'raw/known.nii.gz', tmp_path / 'out'  # of one patch: one tile
    models = ','.join(str(run) for run in runs)
    flags = f'--model={models}', f'--input={scan}', f'--output={out}'
    done = processes.run([python, '-m', 'launch.predict', *flags], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / 'known.json').read_text())
    assert record['model']['name'].startswith('mean of 2: a (finetune, step 5)')

    members = [load_model(run) for run in runs]
    image = query_run.make_scan('known')[0][None, ..., None]
    forward = jax.jit(members[0].forward)  # both are of one shape and one window
    found = [forward(model.params, image) for model in members]
    logits = np.mean([logits for logits, _ in found], axis=0)[0]
    score = np.mean([scores['query_logit'] for _, scores in found], axis=0)[0]
    assert not np.allclose(found[0][1]['query_logit'], found[1][1]['query_logit'], atol=0.05)
    maps = {
        name: np.asanyarray(nib.load(out / f'known_{name}.nii.gz').dataobj).transpose(2, 1, 0)
        for name in ('seg', 'ood')
    }
    np.testing.assert_allclose(maps['ood'], score, rtol=1e-3, atol=1e-3)  # float16
    clear = np.diff(np.sort(logits, axis=-1)[..., -2:], axis=-1)[..., 0] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(maps['seg'][clear], logits.argmax(-1)[clear])
