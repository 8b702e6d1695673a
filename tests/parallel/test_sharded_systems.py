"""Both systems on every mesh of 8 virtual devices: the same loss and gradients as on one."""

import itertools

import jax
import numpy as np
import pytest

from tests.parallel.systems import SYSTEMS, first_step

MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if int(np.prod(sizes)) == 8]
TOLERANCE = 1e-5  # of the loss, and of the gradient's norm


@pytest.fixture(scope='module', params=SYSTEMS)
def one_device(request):
    return request.param, first_step(request.param, (1, 1, 1))


def test_there_are_ten_meshes():
    assert len(MESHES) == 10


@pytest.mark.parametrize('sizes', MESHES, ids=lambda s: 'x'.join(map(str, s)))
def test_sharded_equals_unsharded(one_device, sizes):
    system, (loss, gradients, _, _) = one_device
    sharded_loss, sharded, state, _ = first_step(system, sizes)
    assert abs(sharded_loss - loss) <= TOLERANCE * abs(loss)
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values()))
    assert norm > 0.01
    for name, gradient in gradients.items():
        error = np.linalg.norm((sharded[name] - gradient).astype(np.float64))
        assert error <= TOLERANCE * norm, name
    if sizes[1] > 1:
        _require_split(state, sizes[1])


def _require_split(state, shards):
    """No parameter or moment that fsdp divides is whole on a device; little is not divided."""
    whole = 0
    leaves = jax.tree.leaves((state.params, state.opt_state))
    for leaf in leaves:
        largest = max(shard.data.size for shard in leaf.addressable_shards)
        if any(side % shards == 0 for side in leaf.shape):
            assert largest == leaf.size // shards, leaf.shape
        else:
            whole += leaf.size
    assert whole < 0.02 * sum(leaf.size for leaf in leaves)
