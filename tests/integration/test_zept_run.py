"""ZePT from its command: both stages, the merge between them, prediction and scores."""

import dataclasses
import json
import pathlib

import jax
import nibabel as nib
import numpy as np
import pytest

from configs import zept
from maxquery_jax.errors import UserError
from maxquery_jax.inference.boxes import hash_boxes
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.predict import predict
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.report.evaluate import evaluate, evaluate_part
from maxquery_jax.text.embeddings import hash_text, load_embeddings, save_embeddings
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.experiment import train
from maxquery_jax.train.state import path_name
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.integration
SCORES = (
    'query_logit',
    'tumour_logit',
    'tumour_anomaly_logit',
    'seen_logit',
    'seen_anomaly_logit',
    'unseen_logit',
)


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


def test_queries_of_unseen_tumours_stay_equal(run):
    """Eq. 11 and the masks train those of seen tumours; equal queries have equal masks."""
    model = load_model(run)
    unseen = np.array(model.zept.table.classes[model.zept.table.num_fundamental :]) == UNSEEN
    queries = leaves(run, 'stage2')['refinement_decoder/queries']
    one = queries[unseen][:1]
    assert unseen.sum() == 18 and (queries[unseen] == one).all()
    assert (queries[~unseen] != one).any(axis=1).all()
    tiles = np.random.default_rng(0).integers(-200, 300, (1, *model.patch_size, 1)).astype(np.int16)
    logits, _ = jax.jit(model.forward)(model.params, tiles)
    ids = [label['id'] for label in model.labels if label['role'] == 'ood']
    spread = np.ptp(np.asarray(logits)[..., ids], axis=-1)
    assert len(ids) == 4 and spread.max() < 1e-5 * np.abs(logits[..., ids]).max()


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
    assert set(summary['scores']) == set(SCORES) and summary['scores'][0] == SCORES[0]
    names = {key.split('/')[1] for key in summary['metrics'] if key.startswith('dice/')}
    assert {'liver', 'liver_tumor', 'colon_tumor'} <= names  # organ, seen and unseen tumour
    assert summary['counts']['ood_cases'] == 2 and len(summary['ood_by_class']) >= 1
    for part in ('1/2', '2/2'):
        evaluate_part(part, model=run)
    assert evaluate(model=run, resamples=20, merge=2) == summary


def test_the_command_takes_classes_texts_and_postprocess(run, tmp_path, python):
    """A class of the shipped texts and one that only --knowledge has, cleaned by ZePT's rules."""
    texts, own = load_embeddings('minilm_descriptions'), tmp_path / 'own.safetensors'
    added = dataclasses.replace(
        texts,
        vectors=texts.vectors[:1] + 0.1,
        class_names=('hilar_mass',),
        text_hashes={'hilar_mass': hash_text('a mass at the hilum')},
    )
    save_embeddings(own, added)
    flags = {
        'model': run,
        'split': 'val',
        'output': tmp_path / 'out',
        'classes': 'colon_tumour,hilar_mass',
        'knowledge': own,
        'postprocess': 'zept',
    }
    command = [python, '-m', 'launch.predict', *(f'--{k}={v}' for k, v in flags.items())]
    done = processes.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / 'out').glob('*.json')
    content = json.loads(record.read_text())
    assert content['settings']['postprocess'] == 'zept'
    assert content['settings']['texts'] == {
        'colon_tumour': texts.text_hashes['colon_tumour'],
        'hilar_mass': hash_text('a mass at the hilum'),
    }
    found = [x['name'] for x in content['labels'] if x.get('predicted', x['role'] != 'ood')]
    assert {'colon_tumor', 'hilar_mass', 'liver'} <= set(found) and 'liver_tumor' not in found
    mask = np.asanyarray(nib.load(record.with_name(content['files']['seg'])).dataobj)
    predicted = {x['id'] for x in content['labels'] if x['name'] in found}
    assert set(np.unique(mask).tolist()) <= predicted and 'postprocess_s' in content['timings']
    done = processes.run([*command, '--classes=coln_tumour', '--overwrite'], cwd=ROOT)
    assert done.returncode == 2 and 'did you mean' in done.stderr, done.stderr


def test_the_command_takes_boxes_of_the_labels(run, tmp_path, python):
    """Of a run that was trained on its own prompts."""
    flags = [f'--model={run}', '--boxes=truth', '--split=val', f'--output={tmp_path}/out']
    done = processes.run([python, '-m', 'launch.predict', *flags], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / 'out').glob('*.json')
    boxes = json.loads(record.read_text())['settings']['boxes']
    assert boxes not in ('', hash_boxes([])) and 'no boxes' not in done.stderr


def test_universal_model_trains_and_predicts(run, tmp_path):
    config = tiny('demo,universal')
    config.data.phantom = {}
    config.data.store = str(run / 'phantom/store')
    train(config, tmp_path / 'universal')
    model = load_model(tmp_path / 'universal')
    assert model.is_nested and model.score_names == SCORES
    predict(model, output=tmp_path / 'out', split='test', scores=('all',))
    assert len(list((tmp_path / 'out').glob('*_ood-unseen_logit.nii.gz'))) == 3


def test_synthcp_trains_and_predicts_on_the_same_cases(run, tmp_path):
    """Its segmenter knows the seen classes alone; unseen tumours have its score."""
    config = tiny('demo,synthcp')
    config.data.phantom = {}
    config.data.store = str(run / 'phantom/store')
    config.model.synthcp.update(base_features=4, max_features=8, label_features=4)
    config.model.synthcp.update(discriminator_features=4, discriminator_layers=1)
    config.model.synthcp.discriminator_scales = 1
    config.validation.batches = 0
    train(config, tmp_path / 'run')
    model = load_model(tmp_path / 'run')
    assert (model.stage, model.step) == ('synth', 4) and not model.is_nested
    assert model.score_names[0] == 'synthcp' and model.num_classes < len(model.labels)
    predict(model, output=tmp_path / 'run/predictions/test', split='test')
    summary = evaluate(model=tmp_path / 'run', resamples=20)
    assert summary['scores'] == ['synthcp'] and summary['counts']['ood_cases'] == 2
    for entry in summary['ood_by_class'].values():
        assert entry['scores']['synthcp']['organ']['auroc']['value'] is not None
