"""Tiny versions of both systems and what one real training step of them gives on a mesh."""

import functools

import jax
import numpy as np
import optax

from configs import maxquery, zept
from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train.rngs import stream
from maxquery_jax.train.stage import build_stage
from maxquery_jax.train.state import init_params, path_name
from maxquery_jax.train.synthetic import synthetic_manifest

BATCH = 8


def tiny_maxquery():
    config = maxquery.get_config('demo')
    config.model.backbone.update({'base_features': 8, 'max_features': 16, 'max_stages': 2})
    config.model.decoder.update(
        {'output_strides': (2,), 'query_dim': 16, 'embed_dim': 8, 'num_heads': 2, 'ffn_dim': 16}
    )
    return config, 'finetune', synthetic_manifest(2, (2.0, 2.0, 2.0), 2)


def tiny_zept():
    config = zept.get_config('demo')
    config.model.backbone.name = 'swin_unetr'
    config.model.backbone.update(
        {'feature_size': 8, 'window_size': 4, 'depths': (2,), 'num_heads': (2,)}
    )
    config.model.zept.update(
        {'organs': (), 'output_strides': (4,), 'query_dim': 16, 'refine_dim': 16, 'num_heads': 2}
    )
    return config, 'stage2', synthetic_manifest(0, (2.0, 2.0, 2.0), 1, is_taxonomy=True)


SYSTEMS = {'maxquery': tiny_maxquery, 'zept': tiny_zept}


def build(system, sizes, **fields):
    """A tiny stage on a mesh; its optimiser keeps the first step's gradients as they are."""
    config, name, manifest = SYSTEMS[system]()
    config.data.batch_size = BATCH
    config.data.patch_size = (16, 8, 8)
    config.model.conv_form = 'plain'
    config[name].optim.update({'name': 'sgd', 'weight_decay': 0.0, 'clip_norm': 0.0})
    config[name].optim.update({'frozen_epochs': 0, 'backbone_multiplier': 1.0})
    config[name].optim.learning_rate = 1e-3
    config.update_from_flattened_dict(fields)
    mesh = make_mesh(*sizes)
    return build_stage(config, name, manifest, mesh), manifest, mesh


@functools.cache
def host_batch(patch, channels, classes):
    rng = np.random.default_rng(0)
    return {
        'image': rng.standard_normal((BATCH, *patch, channels)).astype(np.float32),
        'label': rng.integers(0, classes, (BATCH, *patch)).astype(np.int32),
    }


def first_step(system, sizes, **fields):
    """(loss, gradient of every parameter by path, state, compiled step) on a mesh."""
    stage, manifest, mesh = build(system, sizes, **fields)
    channels = len(manifest.channels)
    with mesh_context(mesh):
        params = init_params(stage.model, (1, *stage.patch_size, channels), stream(0, 'init', 0))
        state = stage.layout.create(params)
        batch = host_batch(stage.patch_size, channels, manifest.num_classes)
        batch = sharding.put_batch(batch, mesh)
        step = stage.jit_step().lower(state, batch, stage.dropout_key).compile()
        state, metrics = step(state, batch, stage.dropout_key)
    trace = optax.tree.get(stage.layout.to_saved(state).opt_state, 'trace')
    gradients = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trace)
    }
    return float(metrics['loss']), gradients, state, step


def train_steps(system, sizes, num_steps):
    """Losses of some steps on batches that are functions of the step, on a mesh."""
    stage, manifest, mesh = build(system, sizes, **{'data.patch_size': (8, 8, 8)})
    channels = len(manifest.channels)
    losses = []
    with mesh_context(mesh):
        params = init_params(stage.model, (1, *stage.patch_size, channels), stream(0, 'init', 0))
        state = stage.layout.create(params)
        step = stage.jit_step()
        for index in range(num_steps):
            rng = np.random.default_rng(index)
            label = rng.integers(0, manifest.num_classes, (BATCH, *stage.patch_size))
            image = rng.standard_normal((*label.shape, channels)) + label[..., None]
            host = {'image': image.astype(np.float32), 'label': label.astype(np.int32)}
            batch = sharding.put_batch(host, mesh)
            state, metrics = step(state, batch, stage.dropout_key)
            losses.append(float(metrics['loss']))
    return losses
