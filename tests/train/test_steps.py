"""The step on a two-layer toy model: accumulation, damage control, sharding, streams."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train import rngs, state, steps
from maxquery_jax.train.layout import StateLayout


class Toy(nn.Module):
    drop: float = 0.0

    @nn.compact
    def __call__(self, image, *, train=False, freeze_backbone=False):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ('x', 'features_out'))
        x = nn.Dense(8, name='backbone', kernel_init=init)(image)
        if freeze_backbone:
            x = jax.lax.stop_gradient(x)
        x = nn.Dropout(self.drop, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(3, name='head')(x)


def objective(outputs, label):
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, label).mean()
    return loss, {'loss': loss}


def augment(batch, key):
    noise = jax.random.normal(key, batch['image'].shape)
    return {'image': batch['image'] + 0.01 * noise, 'label': batch['label']}


def make_batch(rows=8):
    rng = np.random.default_rng(0)
    return {
        'image': rng.normal(size=(rows, 4, 4, 4, 2)).astype(np.float32),
        'label': rng.integers(0, 3, (rows, 4, 4, 4)),
    }


def make_layout(mesh):
    boxed = state.abstract_params(Toy(), (1, 4, 4, 4, 2))
    return StateLayout(boxed, optax.adam(0.01), mesh)


@functools.cache  # tests that train alike share a program; a second one would be a fault
def jit_step(drop, accumulate, frozen_steps, mesh):
    model, tx = Toy(drop), optax.adam(0.01)
    layout = make_layout(mesh)
    step = steps.make_train_step(
        model,
        tx,
        objective,
        accumulate=accumulate,
        frozen_steps=frozen_steps,
        model_params=layout.model_params,
    )
    return jax.jit(step, out_shardings=(layout.shardings, None))


def train(num_steps=3, accumulate=1, drop=0.0, seed=0, batch=None, mesh=None, frozen_steps=0):
    model = Toy(drop)
    mesh = mesh or make_mesh(1, 1, 1)
    with mesh_context(mesh):
        params = state.init_params(model, (1, 4, 4, 4, 2), rngs.stream(seed, 'init', 0))
        current = make_layout(mesh).create(params)
        step = jit_step(drop, accumulate, frozen_steps, mesh)
        key = rngs.stream_key(seed, 'toy/dropout')
        augment_step = steps.AugmentStep(augment, seed=seed, stage='toy')
        for index in range(num_steps):
            raw = sharding.put_batch(batch or make_batch(), mesh)
            current, metrics = step(current, augment_step(raw, index), key)
    return jax.device_get(make_layout(mesh).to_saved(current)), jax.device_get(metrics), step


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_accumulation_equals_the_full_batch():
    whole, loss, _ = train()
    parts, loss_parts, _ = train(accumulate=4)
    assert_trees_close(whole.params, parts.params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss['loss'], loss_parts['loss'], rtol=1e-5)


def test_repeat_is_bitwise_and_seeds_differ():
    first, _, step = train(drop=0.3)
    second, _, _ = train(drop=0.3)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other, _, _ = train(drop=0.3, seed=1)
    assert not np.array_equal(first.params['head']['kernel'], other.params['head']['kernel'])
    assert step._cache_size() == 1


def test_a_non_finite_loss_changes_nothing_but_the_step():
    bad = make_batch()
    bad['image'][3] = np.nan
    after, metrics, _ = train(num_steps=2, batch=bad)
    params = state.init_params(Toy(), (1, 4, 4, 4, 2), rngs.stream(0, 'init', 0))
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert not np.isfinite(metrics['loss']) and after.step == 2


def test_frozen_backbone_gets_no_gradient():
    frozen, _, _ = train(frozen_steps=3)
    params = state.init_params(Toy(), (1, 4, 4, 4, 2), rngs.stream(0, 'init', 0))
    np.testing.assert_array_equal(frozen.params['backbone']['kernel'], params['backbone']['kernel'])
    assert not np.array_equal(frozen.params['head']['kernel'], params['head']['kernel'])


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 4, 1), (1, 8, 1)])
def test_sharded_equals_one_device(sizes):
    one, loss, _ = train()
    many, loss_many, _ = train(mesh=make_mesh(*sizes))
    assert_trees_close(one.params, many.params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss['loss'], loss_many['loss'], rtol=1e-5)


def test_streams_are_functions_of_seed_name_and_step():
    def bits(*args):
        return tuple(np.asarray(jax.random.key_data(rngs.stream(*args))))

    assert bits(1, 'a', 2) == bits(1, 'a', 2)
    assert len({bits(s, n, t) for s in (0, 1) for n in ('a', 'b') for t in (0, 1)}) == 8


def test_eval_step_counts_by_hand():
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, image, *, train=False):
            class Out:
                seg_logits = jnp.moveaxis(jnp.stack([image[..., 0] < 0, image[..., 0] >= 0]), 0, -1)

            return Out

    image = np.array([-1.0, 1.0, 1.0, -1.0]).reshape(1, 1, 1, 4, 1)
    label = np.array([0, 1, 0, 1]).reshape(1, 1, 1, 4)
    step = steps.make_eval_step(Fixed(), lambda batch, key: batch, steps.exclusive_masks(2))
    counts = step({}, {'image': jnp.asarray(image), 'label': jnp.asarray(label)})
    np.testing.assert_array_equal(counts, [[1, 2, 2], [1, 2, 2]])
    batch = {
        'image': jnp.tile(jnp.asarray(image), (2, 1, 1, 1, 1)),
        'label': jnp.tile(jnp.asarray(label), (2, 1, 1, 1)),
        'class_mask': jnp.array([[True, True], [True, False]]),
    }
    np.testing.assert_array_equal(step({}, batch), [[2, 4, 4], [1, 2, 2]])


def test_the_program_does_not_depend_on_the_seed():
    def program(seed):
        model, tx = Toy(0.3), optax.adam(0.01)
        params = state.init_params(model, (1, 4, 4, 4, 2), rngs.stream(seed, 'init', 0))
        current = state.TrainState(jnp.asarray(0), params, tx.init(params))
        step = steps.make_train_step(model, tx, objective)
        key = rngs.stream_key(seed, 'toy/dropout')
        return jax.jit(step).lower(current, make_batch(), key).as_text()

    assert program(0) == program(1)


def test_overlapping_masks_by_hand():
    """An organ's mask holds its tumour; classes without a query count nowhere."""
    label = jnp.asarray([0, 1, 2, 3]).reshape(1, 1, 1, 4)  # background, organ, its tumour, organ
    logits = jnp.asarray([[5.0, 5, -5, -5], [-5.0, -5, 5, -5]]).reshape(1, 2, 1, 1, 4)
    masks = steps.overlapping_masks(((), (), (1,), ()), (1, 2, -1, -1))
    outputs = types.SimpleNamespace(mask_logits=logits)
    predicted, truth = (np.asarray(x).reshape(4, 4) for x in masks(outputs, label))
    expected = [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(predicted, np.array(expected, bool))
    expected = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(truth, np.array(expected, bool))
