"""Stages of ZePT as they are built: what the optimiser leaves alone."""

import jax
import jax.numpy as jnp
import pytest

from configs import zept
from maxquery_jax.models.zept import STAGE1_MODULES
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train.stage import build_stage
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
