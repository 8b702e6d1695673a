"""Stage II with boxes of the label as prompts: which boxes, in every program that trains."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import zept
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train import steps, zept_stage
from maxquery_jax.train.stage import build_stage, count_flops
from maxquery_jax.train.state import TrainState, init_params
from maxquery_jax.train.synthetic import synthetic_manifest

MARGIN, SHAPE = 2.0, (16, 16, 16)


def tiny(**options):
    config = zept.get_config('demo,prompt_of_box')
    config.mesh.data = 1
    config.data.patch_size, config.data.batch_size = SHAPE, 2
    config.model.conv_form = 'plain'
    config.model.backbone.update({'base_features': 4, 'max_stages': 2})
    sizes = {'organs': (), 'output_strides': (2,), 'query_dim': 8, 'refine_dim': 8, 'num_heads': 2}
    config.model.zept.update(sizes | {'box_margin': MARGIN} | options)
    return config


@functools.cache
def manifest():
    """The classes of ZePT Table 8 that training shows."""
    return synthetic_manifest(0, (5.0, 5.0, 5.0), 1, is_taxonomy=True)


def ids_of(role):
    return [record['id'] for record in manifest().labels if record['role'] == role]


@pytest.fixture(scope='module')
def label():
    """Two tumours of two classes beside organs; the second sample shows organs alone."""
    label = np.zeros((2, *SHAPE), np.int32)
    organ, (first, *_, last) = ids_of('organ')[0], ids_of('tumour')
    label[:, 2:14, 2:14, 2:14] = organ
    label[0, 3:5, 4, 5:8] = first
    label[0, 4, 8, 5] = first  # shares the box
    label[0, 13, 15, 15] = last
    return label


def oracle(label):
    """Voxels at most MARGIN away from the box of each tumour class, one by one."""
    prompt = np.zeros(label.shape, bool)
    for sample, tumour in np.ndindex(len(label), len(ids_of('tumour'))):
        voxels = np.argwhere(label[sample] == ids_of('tumour')[tumour])
        for place in np.ndindex(SHAPE) if len(voxels) else ():
            near = (place >= voxels.min(0) - MARGIN) & (place <= voxels.max(0) + MARGIN)
            prompt[(sample, *place)] |= near.all()
    return prompt


def test_the_prompt_is_the_relaxed_boxes_of_annotated_tumours(label):
    box_prompt = jax.jit(zept_stage.make_box_prompt(tiny(), manifest()))
    found = np.asarray(box_prompt({'label': label})['prompt'])
    np.testing.assert_array_equal(found, oracle(label))
    assert 0 < found[0].mean() < 0.3 and not found[1].any()


def test_a_tumour_without_a_query_prompts_nothing(label):
    """The table of queries, not the role, says which classes are boxed: others are unseen."""
    first, *_, last = ids_of('tumour')
    labels = tuple(
        {**record, 'role': 'ood' if record['id'] == last else record['role']}
        for record in manifest().labels
    )
    store = dataclasses.replace(manifest(), labels=labels)
    unseen = zept_stage.make_box_prompt(tiny(), store)
    found = np.asarray(jax.jit(unseen)({'label': label})['prompt'])
    np.testing.assert_array_equal(found, oracle(np.where(label == last, 0, label)))
    assert found[0].any() and (found != oracle(label)).any() and first != last


class Recorder(nn.Module):
    """Returns what it is called with."""

    @nn.compact
    def __call__(self, image, *, train=False, prompt=None):
        scale = self.param('scale', nn.initializers.ones_init(), ())
        return {'image': scale * image, 'prompt': prompt}


def test_every_micro_batch_of_a_step_has_its_own_prompt(label):
    """The share of each sample that is prompted comes back through the step's metrics."""

    def objective(outputs, label):
        assert outputs['prompt'].shape == label.shape
        share = jnp.mean(outputs['prompt'].astype(jnp.float32))
        loss = jnp.mean(outputs['image'] ** 2)
        odd = jnp.mean((outputs['prompt'] != (outputs['image'][..., 0] > 0.5)).astype(jnp.float32))
        return loss, {'loss': loss, 'share': share, 'odd': odd}

    tx, prompt = optax.sgd(0.1), oracle(label)
    params = {'scale': jnp.ones(())}
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
    model_inputs = zept_stage.make_box_prompt(tiny(), manifest())
    step = steps.make_train_step(Recorder(), tx, objective, accumulate=2, model_inputs=model_inputs)
    batch = {'image': prompt[..., None].astype(np.float32), 'label': label}
    _, metrics = jax.jit(step)(state, batch, jax.random.key(0))
    assert float(metrics['share']) == pytest.approx(prompt.mean())
    assert float(metrics['odd']) == 0  # the image marks the oracle's voxels


def test_stage_two_trains_on_the_label_and_validates_without(label):
    """The stage as it is built: its step, its validation, its count of operations."""
    config = tiny()
    mesh = make_mesh(**config.mesh)
    with mesh_context(mesh):
        stage = build_stage(config, 'stage2', manifest(), mesh)
        params = init_params(stage.model, (1, *SHAPE, 1), jax.random.key(0))
        state = stage.layout.create(params)
        image = np.random.default_rng(0).normal(size=(2, *SHAPE, 1)).astype(np.float32)
        batch = {'image': image, 'label': label}
        before = {name: np.asarray(x) for name, x in _flat(state.params).items()}
        after, metrics = stage.jit_step()(state, batch, stage.dropout_key)
        assert np.isfinite(float(metrics['loss'])) and int(after.step) == 1
        moved = _flat(after.params)
        name = next(n for n in before if 'refinement_decoder' in n and 'queries' in n)
        assert (np.asarray(moved[name]) != before[name]).any()
        raw = {'image': (100 * image).astype(np.int16), 'label': label.astype(np.uint8)}
        counts = jax.jit(stage.eval_step)(after.params, raw)
        assert counts.shape == (manifest().num_classes, 3)
    assert count_flops(config, stage, manifest()) > 0


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_other_stages_and_sources_get_no_prompt():
    config = tiny()
    assert zept_stage.is_box_prompted(config.stage2, config)
    assert not zept_stage.is_box_prompted(config.stage1, config)
    config.model.zept.prompt_source = 'encoder'
    assert not zept_stage.is_box_prompted(config.stage2, config)
    assert steps.image_alone({'label': jnp.zeros(1)}) == {}
