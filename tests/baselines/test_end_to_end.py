"""Train, then predict with each baseline's score: a tiny store, two steps a stage."""

import functools
import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from configs import base, maxquery
from maxquery_jax.baselines import mc_dropout, sml
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError
from maxquery_jax.inference import sml_fit
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.predict import predict
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.experiment import train
from tests.data.store_helper import make_case, make_manifest

PATCH = (8, 16, 16)


def experiment(store, *, stages, dropout_rate=0.0):
    """The smallest network of the nnU-Net variant."""
    config = maxquery.get_config('demo,nnunet')
    config.data.phantom = {}
    config.data.store = str(store)
    config.data.patch_size = PATCH
    config.data.num_threads = 1
    config.mesh.data = 1
    config.model.conv_form = 'plain'
    config.model.backbone.update(base_features=4, max_features=8, max_stages=2)
    config.model.backbone.update(dropout_rate=dropout_rate, dropout_passes=3)
    config.model.synthcp.update(base_features=4, max_features=8, label_features=4)
    config.model.synthcp.update(discriminator_features=4, discriminator_layers=1)
    config.synth = base.stage('synthcp')
    config.synth.optim.update(name='adam', learning_rate=2e-3, betas=(0.5, 0.999))
    config.synth.optim.update(weight_decay=0.0, clip_norm=0.0)
    config.stages = stages
    for name in stages:
        config[name].epochs, config[name].steps_per_epoch = 1, 2
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A store of two training cases and one of each other split, and a scan."""
    path = tmp_path_factory.mktemp('baselines')
    writer = StoreWriter(path / 'store')
    cases = {name: make_case(index, (10, 20, 20)) for index, name in enumerate('abcd')}
    records = {name: writer.write_case(name, *arrays) for name, arrays in cases.items()}
    splits = {'train': ['a', 'b'], 'val': ['c'], 'test': ['d']}
    writer.finish(make_manifest(records, splits))
    hu = cases['d'][0][: PATCH[0], : PATCH[1], : PATCH[2], 0]
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0])), path / 'x.nii')
    return path


@pytest.fixture(scope='module')
def synthcp_run(folder):
    train(experiment(folder / 'store', stages=('pretrain', 'synth')), folder / 'synthcp')
    return folder / 'synthcp'


def predicted(model, folder, name, score):
    """Map of a score of the one-tile scan as [D, H, W]."""
    predict(model, folder / 'x.nii', folder / name, scores=[score])
    return np.asanyarray(nib.load(folder / name / 'x_ood.nii.gz').dataobj).transpose(2, 1, 0)


def tile(folder, model):
    hu = np.asanyarray(nib.load(folder / 'x.nii').dataobj).transpose(2, 1, 0)
    return jnp.asarray((np.clip(hu, -200, 300) - 50) / 100, jnp.float32)[None, ..., None]


def test_synthcp_and_sml_of_one_run(folder, synthcp_run, monkeypatch):
    model = load_model(synthcp_run)
    assert model.score_names == ('synthcp', 'category_softmax', 'category_logit', 'sml')
    values = predicted(model, folder, 'out_synthcp', 'synthcp')
    outputs = jax.jit(functools.partial(model.network.apply, train=False))(
        {'params': model.params}, tile(folder, model)
    )
    softmax = np.asarray(jax.nn.softmax(outputs.seg_logits), np.float64).max(-1)
    expected = np.where(softmax > 0.999, 1 - softmax, 1 - outputs.similarity)[0]
    np.testing.assert_allclose(values, expected, atol=2e-3)
    assert values.std() > 0

    monkeypatch.setattr(sml_fit, 'NUM_PATCHES', 4)
    values = predicted(model, folder, 'out_sml', 'sml')
    record = json.loads((synthcp_run / 'sml_statistics.json').read_text())
    assert record['cases'] == ['a', 'b'] and record['stage'] == 'synth'
    score = functools.partial(sml.sml_score, width=2, dilation=(1, 5, 5))  # 1 mm in-plane
    expected = jax.jit(score)(outputs.seg_logits, sml_fit.load_statistics(model))[0]
    np.testing.assert_allclose(values, expected, rtol=5e-3, atol=5e-3)


def test_training_synthesis_leaves_the_segmenter_alone(synthcp_run):
    before, _, _ = load_params(synthcp_run, 'pretrain')
    after, _, step = load_params(synthcp_run, 'synth')
    assert step == 2 and set(after) - set(before) == {'generator', 'discriminator'}
    for name, params in before.items():
        jax.tree.map(np.testing.assert_array_equal, params, after[name])
    rows = [json.loads(line) for line in (synthcp_run / 'metrics.jsonl').read_text().splitlines()]
    rows = [row for row in rows if row['stage'] == 'synth' and row['split'] == 'train']
    assert {'loss', 'd_real', 'd_fake', 'g_hinge', 'g_features', 'g_l1'} <= set(rows[-1])


def test_mc_dropout(folder):
    run = folder / 'mc_dropout'
    train(experiment(folder / 'store', stages=('pretrain',), dropout_rate=0.5), run)
    model = load_model(run)
    assert model.score_names == ('mc_entropy', 'category_softmax', 'category_logit')
    values = predicted(model, folder, 'out_mc', 'mc_entropy')
    one = jax.jit(functools.partial(model.network.apply, train=True))
    keys = [jax.random.fold_in(jax.random.key(0), t) for t in range(3)]
    image = tile(folder, model)
    passes = [one({'params': model.params}, image, rngs={'dropout': k}).seg_logits for k in keys]
    expected = mc_dropout.entropy_score(np.mean(passes, 0))[0]
    np.testing.assert_allclose(values, expected, atol=2e-3)


def test_a_synthesis_without_a_segmenter_is_refused(folder, tmp_path):
    config = experiment(folder / 'store', stages=('synth',))
    with pytest.raises(UserError, match=r"synth.objective 'synthcp' judges a trained segmenter"):
        train(config, tmp_path)
    config = experiment(folder / 'store', stages=('pretrain', 'synth'))
    config.synth.optim.weight_decay = 1e-4
    with pytest.raises(UserError, match=r'synth.optim: weight_decay and frozen_epochs must be 0'):
        train(config, tmp_path)
