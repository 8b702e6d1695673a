"""Stages of ZePT as they are built: what the optimiser leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import zept
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.models.zept import STAGE1_MODULES
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train import zept_stage
from maxquery_jax.train.stage import build_stage
from maxquery_jax.train.steps import as_stored
from maxquery_jax.train.synthetic import synthetic_manifest


@pytest.mark.parametrize('is_frozen', [False, True])
def test_freeze_stage1_keeps_stage_one_under_weight_decay(is_frozen):
    config = zept.get_config('demo')
    config.mesh.data = 1
    config.data.patch_size = (16, 16, 16)
    config.model.backbone.max_stages = 2
    config.model.zept.update({'organs': (), 'output_strides': (2,), 'freeze_stage1': is_frozen})
    config.stage2.optim.name, config.stage2.optim.weight_decay = 'adamw', 0.1
    manifest = synthetic_manifest(0, (5.0, 5.0, 5.0), 1, is_taxonomy=True)
    stage = build_stage(config, 'stage2', manifest, make_mesh(**config.mesh))
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), stage.layout.params)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    updates, _ = jax.jit(lambda p, g: stage.tx.update(g, stage.tx.init(p), p))(ones, zeros)
    moved = {
        name: any(bool(jnp.any(x)) for x in jax.tree.leaves(updates[name])) for name in updates
    }
    assert moved['refinement_decoder'] and moved['knowledge_projection']
    assert {moved[name] for name in STAGE1_MODULES} == {not is_frozen}


def test_queries_that_nothing_tells_apart_get_the_mean_of_their_gradients():
    config = zept.get_config('demo')
    config.model.zept.organs = ()
    manifest = synthetic_manifest(0, (5.0, 5.0, 5.0), 1, is_taxonomy=True)
    table = zept_stage.query_table(config, manifest)
    unseen = np.array(table.classes[table.num_fundamental :]) == UNSEEN
    assert 2 <= unseen.sum() < len(unseen)
    tie = zept_stage.tie_unseen_queries(config.stage2, config, manifest)
    rng = np.random.default_rng(0)
    queries, rounding = np.zeros((len(unseen), 8), np.float32), rng.normal(size=(len(unseen), 8))
    params = {'refinement_decoder': {'queries': queries, 'other': 1.0}, 'backbone': 2.0}

    def loss(params):
        tied = tie(params)
        assert tied['backbone'] == 2.0 and set(tied['refinement_decoder']) == {'queries', 'other'}
        return jnp.sum(tied['refinement_decoder']['queries'] * rounding)

    found = np.asarray(jax.grad(loss)(params)['refinement_decoder']['queries'])
    np.testing.assert_allclose(found[~unseen], rounding[~unseen], rtol=1e-6)
    np.testing.assert_allclose(found[unseen][0], rounding[unseen].mean(0), rtol=1e-5)
    assert (found[unseen] == found[unseen][:1]).all()


@pytest.mark.parametrize(
    ('stage', 'words'),
    [('stage1', 'demo'), ('stage2', 'demo,align_all'), ('stage2', 'demo,released')],
)
def test_queries_that_may_differ_are_left_alone(stage, words):
    config = zept.get_config(words)
    config.model.zept.organs = ()
    manifest = synthetic_manifest(0, (5.0, 5.0, 5.0), 1, is_taxonomy=True)
    assert zept_stage.tie_unseen_queries(config[stage], config, manifest) is as_stored
