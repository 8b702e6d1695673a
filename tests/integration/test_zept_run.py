"""ZePT from its command: both stages, the merge between them, prediction and scores."""

import json

import jax
import numpy as np
import pytest

from configs import zept
from maxquery_jax.errors import UserError
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.predict import predict
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.experiment import train
from maxquery_jax.train.state import path_name

pytestmark = pytest.mark.integration


def tiny(words='demo'):
    config = zept.get_config(words)
    config.data.phantom.update(
        {
            'num_train': 3,
            'num_val': 1,
            'num_test_inlier': 1,
            'num_test_ood': 2,
            'shape_zyx': (24, 32, 40),
            'spacing_mm': (12.0, 10.0, 10.0),
        }
    )
    config.data.patch_size = (16, 32, 32)
    config.model.backbone.base_features = 4
    config.model.backbone.max_stages = 2
    config.model.conv_form = 'plain'
    config.model.zept.update(
        {'query_dim': 16, 'refine_dim': 16, 'num_heads': 2, 'output_strides': (2,)}
    )
    for name in config.stages:
        config[name].epochs, config[name].steps_per_epoch = 2, 2
        config[name].optim.name = 'adamw'  # compiles faster than radam
    config.mesh.data = 1
    config.log.every_steps = 2
    config.validation.every_steps = 4
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('zept') / 'run'
    train(tiny(), folder)
    return folder


def leaves(run, stage):
    params, _, step = load_params(run, stage)
    assert step == 4
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_stages_share_all_of_stage_one(run):
    first, second = leaves(run, 'stage1'), leaves(run, 'stage2')
    assert set(first) < set(second)
    new = {name.split('/')[0] for name in set(second) - set(first)}
    assert new == {
        'refinement_decoder',
        'fundamental_out',
        'advanced_mask_head',
        'knowledge_projection',
        'log_temperature',
    }
    # the joint update of the fundamental queries starts at zero and learns
    assert np.any(second['fundamental_out/kernel'])
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    losses = {row['stage']: set(row) for row in rows if row['split'] == 'train'}
    assert losses['stage2'] - losses['stage1'] == {'alignment'}
    val = [row for row in rows if row['split'] == 'val']
    assert 'dice/liver' in val[0] and 'dice/liver_tumor' not in val[0]


def test_stage_two_refuses_other_initial_weights(run, tmp_path):
    config = tiny()
    config.data.phantom = {}
    config.data.store = str(run / 'phantom/store')
    config.stages = ('stage2',)
    config.stage2.init_from = f'{run}:stage2'
    config.model.zept.qka = False
    with pytest.raises(UserError, match=r'3 parameters are only in the checkpoint: knowledge_proj'):
        train(config, tmp_path / 'again')


def test_predict_and_evaluate(run):
    predict(load_model(run), output=run / 'predictions/test', split='test', scores=('all',))
    summary = evaluate(model=run, resamples=20)
    assert set(summary['scores']) == {'query_logit', 'tumour_logit', 'unseen_logit'}
    names = {key.split('/')[1] for key in summary['metrics'] if key.startswith('dice/')}
    assert {'liver', 'liver_tumor', 'colon_tumor'} <= names  # organ, seen and unseen tumour
    assert summary['counts']['ood_cases'] == 2 and len(summary['ood_by_class']) >= 1


def test_universal_model_trains_and_predicts(run, tmp_path):
    config = tiny('demo,universal')
    config.data.phantom = {}
    config.data.store = str(run / 'phantom/store')
    train(config, tmp_path / 'universal')
    model = load_model(tmp_path / 'universal')
    assert model.is_nested and model.score_names == ('tumour_logit', 'unseen_logit', 'query_logit')
    predict(model, output=tmp_path / 'out', split='test', scores=('all',))
    assert len(list((tmp_path / 'out').glob('*_ood-unseen_logit.nii.gz'))) == 3
