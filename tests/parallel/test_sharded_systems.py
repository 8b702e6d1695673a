"""Both systems on meshes of 8 virtual devices: loss, gradients, collectives, 50 steps."""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maxquery_jax.aot.hlo import count_collectives
from maxquery_jax.ops.conv_planes import DepthSplit, conv3d_planes
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from tests.parallel.systems import SYSTEMS, first_step, train_steps

pytestmark = pytest.mark.integration  # whole training steps of both systems

MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if int(np.prod(sizes)) == 8]
FEW = [(2, 2, 2)]  # for ZePT, which compiles longest; MAXQUERY_TEST_LARGE=1 for all
IS_LARGE = bool(os.environ.get('MAXQUERY_TEST_LARGE'))
CASES = [(s, m) for s in SYSTEMS for m in (MESHES if s == 'maxquery' or IS_LARGE else FEW)]
TOLERANCE = 1e-5  # of the loss, and of the gradient's norm


@pytest.fixture(scope='module')
def one_device():
    return {}


def test_there_are_ten_meshes():
    assert len(MESHES) == 10


@pytest.mark.parametrize(('system', 'sizes'), CASES, ids=str)
def test_sharded_equals_unsharded(one_device, system, sizes):
    if system not in one_device:
        one_device[system] = first_step(system, (1, 1, 1))
    loss, gradients, _, _ = one_device[system]
    sharded_loss, sharded, state, step = first_step(system, sizes)
    assert abs(sharded_loss - loss) <= TOLERANCE * abs(loss)
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values()))
    assert norm > 0.01
    for name, gradient in gradients.items():
        error = np.linalg.norm((sharded[name] - gradient).astype(np.float64))
        assert error <= TOLERANCE * norm, name
    if sizes[1] > 1:
        _require_split(state, sizes[1])
    _require_collectives(system, sizes, step, len(gradients))


def _require_split(state, shards):
    """No parameter and no moment is whole on a device; one of a single number is on one of them."""
    leaves = jax.tree.leaves((state.params, optax.tree.get(state.opt_state, 'trace')))
    assert len(leaves) == 2 * len(jax.tree.leaves(state.params))
    for leaf in leaves:
        held = {shard.data.size for shard in leaf.addressable_shards}
        assert held == {leaf.size // shards}, leaf.shape


def _require_collectives(system, sizes, step, num_parameters):
    """Sums everywhere, parameters gathered once under fsdp, halos under spatial; nothing else."""
    found = count_collectives(step.as_text())
    _, fsdp, spatial = sizes
    allowed = {'all-reduce'} | ({'all-gather', 'reduce-scatter'} if fsdp > 1 else set())
    allowed |= {'collective-permute'} if spatial > 1 else set()
    if system == 'zept' and spatial > 1:
        allowed |= {'all-gather'}  # windows of the transformer span what depth splits
    assert set(found) <= allowed, found
    if sizes == (8, 1, 1):
        assert found['all-reduce'].count == 1
    if fsdp > 1 and spatial == 1:
        assert found['all-gather'].count <= num_parameters + 2, found  # some are split in two
    if spatial > 1:
        assert found['collective-permute'].count > 0


@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 1, 8)], ids=str)
def test_the_form_for_tpus_exchanges_halos_itself(one_device, sizes):
    if 'maxquery' not in one_device:
        one_device['maxquery'] = first_step('maxquery', (1, 1, 1))
    loss, gradients, _, _ = one_device['maxquery']
    again, found, _, step = first_step('maxquery', sizes, **{'model.conv_form': 'planes'})
    assert abs(again - loss) <= TOLERANCE * abs(loss)
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values()))
    for name, gradient in gradients.items():
        assert np.linalg.norm(found[name] - gradient) <= 2 * TOLERANCE * norm, name
    _require_collectives('maxquery', sizes, step, len(gradients))


def test_a_depth_that_devices_do_not_divide_is_gathered_with_its_own_rows_only():
    mesh, split = make_mesh(4, 1, 2), DepthSplit(('data', 'fsdp'), 'spatial', 2)
    rng = np.random.default_rng(0)
    host = rng.standard_normal((4, 6, 5, 5, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 3, 4)).astype(np.float32)

    def total(x, kernel, split=None):
        y = conv3d_planes(x, kernel, (2, 2, 2), split=split)  # depth 6 to 3
        return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum()

    expected = jax.grad(total, (0, 1))(host, kernel)
    with mesh_context(mesh):
        x = jax.device_put(host, NamedSharding(mesh, PartitionSpec(split.rows, split.depth)))
        step = jax.jit(jax.grad(functools.partial(total, split=split), (0, 1)))
        compiled = step.lower(x, kernel).compile()
        found = compiled(x, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    gathers = count_collectives(compiled.as_text())['all-gather']
    assert gathers.num_bytes == gathers.count * host.nbytes // 4  # a row of four, whole in depth


@pytest.mark.parametrize('devices', [2, 4, 8] if IS_LARGE else [8])
def test_fifty_steps_agree_on_any_number_of_devices(one_device, devices):
    """Of the same global batches; rounding grows, as orders of sums differ, to at most 1e-4."""
    if 'losses' not in one_device:
        one_device['losses'] = train_steps('maxquery', (1, 1, 1), 50)
    losses = train_steps('maxquery', (devices, 1, 1), 50)
    assert len(losses) == 50 and losses[-1] < losses[0]
    np.testing.assert_allclose(losses, one_device['losses'], rtol=1e-4)


@pytest.mark.parametrize('remat', ['norms', 'blocks'])
def test_rematerialisation_changes_no_value(one_device, remat):
    if 'maxquery' not in one_device:
        one_device['maxquery'] = first_step('maxquery', (1, 1, 1))
    loss, gradients, _, _ = one_device['maxquery']
    again, found, _, _ = first_step('maxquery', (1, 1, 1), **{'model.remat': remat})
    assert abs(again - loss) <= 1e-6 * abs(loss) and set(found) == set(gradients)
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values()))
    for name, gradient in gradients.items():
        assert np.linalg.norm(found[name] - gradient) <= TOLERANCE * norm, name


def test_bfloat16_keeps_state_and_loss_in_float32(one_device):
    if 'maxquery' not in one_device:
        one_device['maxquery'] = first_step('maxquery', (1, 1, 1))
    loss, _, state, step = first_step('maxquery', (1, 1, 1), **{'model.dtype': 'bfloat16'})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {'float32'}
    assert 'bf16' in step.as_text()
    assert abs(loss - one_device['maxquery'][0]) < 0.02 * one_device['maxquery'][0]


def test_without_mesh_and_rules_nothing_is_constrained():
    from maxquery_jax.models.partition import constrain_features

    x = jax.ShapeDtypeStruct((8, 16, 4, 4, 3), np.float32)
    text = str(jax.make_jaxpr(constrain_features)(x))
    assert 'sharding_constraint' not in text
    with mesh_context(make_mesh(2, 2, 2)):
        assert 'sharding_constraint' in str(jax.make_jaxpr(constrain_features)(x))
