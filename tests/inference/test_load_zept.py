"""A run of ZePT to a model: both stages, on the phantom's 46 labels, with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from configs import zept
from maxquery_jax.data.taxonomy import TAXONOMY, hosts_of, role_of
from maxquery_jax.errors import UserError
from maxquery_jax.inference.decision import NestedDecision
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.zero_shot import find_by_text
from maxquery_jax.train.checkpoint import StageCheckpoints
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.state import TrainState, abstract_params
from maxquery_jax.train.zept_stage import keep_knowledge

PATCH = (16, 16, 16)
SPACING = (5.0, 5.0, 5.0)
_SORTED = sorted(TAXONOMY, key=lambda c: ['organ', 'tumour', 'ood'].index(role_of(c.name)))
LABELS = [{'id': 0, 'name': 'background', 'role': 'background'}] + [
    {'id': i, 'name': concept.name, 'role': role_of(concept.name)}
    for i, concept in enumerate(_SORTED, start=1)
]
IDS = {label['name']: label['id'] for label in LABELS}
SEEN, UNSEEN = (26, 27), tuple(range(28, 46))


def _config():
    config = zept.get_config('demo')
    config.data.patch_size = PATCH
    config.model.zept.organs = ()  # all of the taxonomy
    config.model.conv_form = 'plain'
    config.model.backbone.base_features = 4
    config.model.backbone.max_features = 8
    config.model.backbone.max_stages = 2
    config.model.zept.output_strides = (2,)
    config.model.zept.query_dim = 8
    config.model.zept.refine_dim = 8
    config.model.zept.num_heads = 2
    config.model.zept.mlp_ratio = 1
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('zept_run')
    config = _config()
    rng = np.random.default_rng(0)
    for step, name in enumerate(config.stages, start=3):
        model = make_model(config, config[name].objective, 28, SPACING)
        shapes = meta.unbox(abstract_params(model, (1, *PATCH, 1)))
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
        checkpoints = StageCheckpoints(path / 'checkpoints' / name)
        state = TrainState(jnp.int32(step), params, optax.sgd(0.1).init(params))
        checkpoints.save(state, step)
        checkpoints.close()
    keep_knowledge(config, path)
    # The file that it was trained with may be gone: the run has its own copy.
    config.model.zept.knowledge = 'gone.safetensors'
    (path / 'config.json').write_text(config.to_json_best_effort())
    intensity = {'lower': [-175.0], 'upper': [250.0], 'shift': [0.0], 'scale': [100.0]}
    data = {
        'spacing_mm': SPACING,
        'channels': ['venous'],
        'intensity': intensity,
        'labels': LABELS,
        'label_map': {str(i): i for i in range(len(LABELS))},
    }
    (path / 'manifest.json').write_text(json.dumps({'store': 'gone', 'data': data}))
    return path


@pytest.fixture(scope='module')
def model(run):
    return load_model(run)


def test_stage_two_predicts_unseen_tumours(model):
    assert (model.stage, model.step) == ('stage2', 4)
    assert len(model.labels) == 46 == model.num_logits and model.num_classes == 28
    assert [label['id'] for label in model.predicted_labels] == list(range(46))
    assert [label.get('predicted') for label in model.labels] == [None] * 28 + [True] * 18
    hosts = tuple(tuple(IDS[host] for host in hosts_of(LABELS[i]['name'])) for i in UNSEEN)
    assert {IDS['colon'], IDS['pancreas']} < {host for own in hosts for host in own}
    assert model.decide == NestedDecision(tuple(range(1, 26)), tuple(SEEN), UNSEEN, hosts)
    assert model.class_groups == (0, *[1] * 25, *[2] * 20)
    every = ('query_logit', 'tumour_logit', 'tumour_anomaly_logit')
    assert model.score_names == (*every, 'seen_logit', 'seen_anomaly_logit', 'unseen_logit')
    assert not model.fitted_scores and model.query_groups == ()


def test_queries_find_the_labels_by_name(model):
    table = model.zept.table
    assert [IDS[name] for name in table.names] == list(table.labels)
    assert {name for name, known in zip(table.names, table.classes, strict=True) if known < 0} == {
        LABELS[i]['name'] for i in UNSEEN
    }


def test_stage_one_predicts_organs(run):
    first = load_model(run, 'stage1')
    assert [label['id'] for label in first.predicted_labels] == list(range(26))
    assert [first.labels[i]['predicted'] for i in SEEN] == [False, False]
    assert first.score_names == ('query_logit',) and first.tumour_ids == ()


@pytest.mark.parametrize(('stage', 'scores'), [('stage1', 1), ('stage2', 6)])
def test_what_the_network_returns(run, stage, scores):
    loaded = load_model(run, stage)
    tiles = jax.ShapeDtypeStruct((2, *PATCH, 1), jnp.int16)
    logits, maps = jax.eval_shape(loaded.forward, loaded.params, tiles)
    assert logits.shape == (2, *PATCH, 46) and logits.dtype == jnp.float32
    assert set(maps) == set(loaded.score_names) and len(maps) == scores
    assert {found.shape for found in maps.values()} == {(2, *PATCH)}


def test_texts_come_with_the_run(run, model):
    by_text = find_by_text(model, ['colon_tumour', 'lung_tumour'])
    assert by_text.tumour_ids == (IDS['lung_tumour'], IDS['colon_tumour'])
    tiles = jax.ShapeDtypeStruct((1, *PATCH, 1), jnp.int16)
    logits, _ = jax.eval_shape(by_text.forward, by_text.params, tiles)
    assert logits.shape == (1, *PATCH, 46)
    (run / 'knowledge.safetensors').rename(run / 'away.safetensors')
    try:
        with pytest.raises(UserError, match='gone.safetensors'):
            load_model(run)
    finally:
        (run / 'away.safetensors').rename(run / 'knowledge.safetensors')
