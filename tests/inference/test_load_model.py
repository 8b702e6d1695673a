"""A run directory to predictions: a small real model with random weights, end to end."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pytest
from threshold_model import phantom_hu, save_scan

from configs import maxquery
from maxquery_jax.errors import UserError
from maxquery_jax.inference.model import hash_params, load_model
from maxquery_jax.inference.predict import predict
from maxquery_jax.train.checkpoint import StageCheckpoints
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.state import TrainState, init_params
from tests import processes

PATCH = (16, 32, 32)
SPACING = (3.0, 2.0, 2.0)
INTENSITY = {
    'lower': [-90.0],
    'upper': [110.0],
    'shift': [20.0],
    'scale': [50.0],
    'method': 'ct_foreground',
}
LABELS = [
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'liver', 'role': 'organ'},
    {'id': 2, 'name': 'hcc', 'role': 'tumour'},
    {'id': 3, 'name': 'fnh', 'role': 'ood'},
]
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def _config():
    config = maxquery.get_config('demo')
    config.data.patch_size = PATCH
    config.model.conv_form = 'plain'
    config.model.backbone.base_features = 4
    config.model.backbone.max_features = 8
    config.model.backbone.max_stages = 2
    config.model.decoder.output_strides = (2,)
    config.model.decoder.query_dim = 32
    config.model.decoder.embed_dim = 8
    config.model.decoder.ffn_dim = 16
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run directory with both stages, and the models and parameters it holds."""
    path = tmp_path_factory.mktemp('run')
    config = _config()
    models = {}
    for seed, name in enumerate(config.stages):
        model = make_model(config, config[name].objective, 3, SPACING)
        params = init_params(model, (1, *PATCH, 1), jax.random.key(seed))
        checkpoints = StageCheckpoints(path / 'checkpoints' / name)
        tx = optax.sgd(0.1)
        checkpoints.save(TrainState(jnp.int32(5 + seed), params, tx.init(params)), 5 + seed)
        checkpoints.close()
        models[name] = (model, params)
    (path / 'config.json').write_text(config.to_json_best_effort())
    data = {
        'spacing_mm': SPACING,
        'channels': ['venous'],
        'intensity': INTENSITY,
        'labels': LABELS,
        'label_map': {'0': 0, '1': 1, '2': 2, '3': 3},
    }
    (path / 'manifest.json').write_text(json.dumps({'store': 'gone', 'data': data}))
    return path, models


@pytest.fixture(scope='module')
def stages(run):
    """Both stages loaded, so that every test shares their compiled programs."""
    return {stage: load_model(run[0], stage) for stage in (None, 'pretrain')}


def _direct(models, stage, hu):
    """The network applied to one whole patch: labels and the four scores by definition."""
    model, params = models[stage]
    image = (np.clip(hu.astype(np.float64), -90, 110) - 20) / 50
    image = np.float32(image.transpose(2, 1, 0)[None, ..., None])
    apply = jax.jit(functools.partial(model.apply, train=False))
    outputs = apply({'params': params}, image)
    z = np.asarray(outputs.seg_logits[0], np.float64)
    softmax = np.exp(z - z.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    scores = {'category_logit': -z.max(-1), 'category_softmax': 1 - softmax.max(-1)}
    if stage == 'finetune':
        r = np.asarray(outputs.final.query_response[0], np.float64)
        m = np.exp(r - r.max(0, keepdims=True))
        scores |= {'query_logit': -r.max(0), 'query_softmax': 1 - (m / m.sum(0)).max(0)}
    return z.argmax(-1).transpose(2, 1, 0), {k: v.transpose(2, 1, 0) for k, v in scores.items()}


@pytest.mark.parametrize('stage', [None, 'pretrain'])
def test_one_tile_equals_the_network_itself(run, stages, tmp_path, stage):
    _, models = run
    model = stages[stage]
    hu = phantom_hu(PATCH[::-1])
    save_scan(tmp_path / 'x.nii', hu, np.diag([2.0, 2.0, 3.0, 1.0]))
    names = [name for name in model.score_names if name != 'sml']  # needs the training data
    predict(model, tmp_path / 'x.nii', tmp_path / 'out', scores=names)
    label, scores = _direct(models, stage or 'finetune', hu)
    found = np.asanyarray(nib.load(tmp_path / 'out' / 'x_seg.nii.gz').dataobj)
    assert (found != label).mean() < 1e-3  # a tie may fall either way
    assert set(names) == set(scores)
    for name, expected in scores.items():
        ending = '' if name == model.score_names[0] else f'-{name}'
        values = np.asanyarray(nib.load(tmp_path / 'out' / f'x_ood{ending}.nii.gz').dataobj)
        np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3)


def test_what_a_run_says_about_itself(run, stages):
    _, models = run
    model = stages[None]
    assert model.patch_size == PATCH and model.spacing_mm == SPACING
    assert model.num_classes == 3 and model.class_groups == (0, 1, 2) and model.tumour_ids == (2,)
    assert model.score_names[0] == 'query_logit' and len(model.score_names) == 4
    assert model.description.endswith('(finetune, step 6)') and model.store == 'gone'
    assert model.params_sha256 == hash_params(models['finetune'][1])
    assert model.params_sha256 != hash_params(models['pretrain'][1])
    first = stages['pretrain']
    assert first.score_names == ('category_softmax', 'category_logit', 'sml')
    with pytest.raises(UserError, match='no patch store there.*sml needs sml_statistics.json'):
        first.program(('sml',))
    with pytest.raises(UserError, match='no score .query_logit.'):
        first.choose_scores(['query_logit'])


def test_larger_scan_of_another_spacing_end_to_end(stages, tmp_path):
    """Several tiles, resampling both ways, LPS, thick slices: complete and finite."""
    model = stages[None]
    hu = phantom_hu((61, 47, 23), seed=4)
    affine = np.diag([-1.5, -1.5, 4.0, 1.0])
    scan = save_scan(tmp_path / 'big one.nii.gz', hu, affine)
    (record,) = predict(model, scan, tmp_path / 'out', step_size=0.5, scores=model.score_names)
    content = json.loads(record.read_text())
    label = nib.load(tmp_path / 'out' / 'big one_seg.nii.gz')
    score = nib.load(tmp_path / 'out' / 'big one_ood.nii.gz')
    assert label.shape == score.shape == hu.shape
    np.testing.assert_allclose(label.affine, affine)
    values = np.asanyarray(score.dataobj)
    assert np.isfinite(values).all() and values.std() > 0
    counts = np.bincount(np.asanyarray(label.dataobj).ravel(), minlength=3)
    assert content['volumes_ml'] == pytest.approx(
        {'liver': counts[1] * 0.009, 'hcc': counts[2] * 0.009}
    )
    assert content['tiles'] == 3 * 2 * 2  # 31 x 35 x 46 voxels at the model's spacing
    assert content['primary_score'] == 'query_logit'


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda run: (run / 'config.json').unlink(), 'is not a run directory: it has no config'),
        (lambda run: (run / 'manifest.json').write_text('{"data": {}}'), 'lacks data.spacing_mm'),
        (lambda run: (run / 'manifest.json').write_text('{'), 'cannot be read'),
        (lambda run: (run / 'manifest.json').write_text('[]'), 'not a JSON object'),
        (lambda run: None, 'no finished checkpoint'),
    ],
)
def test_damaged_runs_are_user_errors(run, tmp_path, damage, message):
    path, _ = run
    for name in ('config.json', 'manifest.json'):
        (tmp_path / name).write_text((path / name).read_text())
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


def test_unknown_stage_is_a_user_error(run):
    with pytest.raises(UserError, match='no stage .third.'):
        load_model(run[0], 'third')


@pytest.mark.integration
def test_the_command_names_a_damaged_scan(run, tmp_path, python):
    good = save_scan(tmp_path / 'good.nii.gz', phantom_hu(PATCH[::-1]), AFFINE)
    (tmp_path / 'bad.nii.gz').write_bytes(good.read_bytes()[:-100])
    done = processes.run(
        [python, '-m', 'launch.predict', f'--model={run[0]}', f'--input={tmp_path}']
        + [f'--output={tmp_path / "out"}'],
        cwd=pathlib.Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    assert len(errors) == 1 and 'Traceback' not in done.stderr
    assert 'bad.nii.gz: truncated: the gzip stream' in errors[0]
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'good.json', 'good_ood.nii.gz', 'good_seg.nii.gz']  # fmt: skip
