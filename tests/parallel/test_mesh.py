"""Mesh sizes, rules and placement on 8 virtual devices."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxquery_jax import axes
from maxquery_jax.errors import UserError
from maxquery_jax.parallel import mesh, padding, sharding


def test_minus_one_takes_what_is_left():
    assert dict(mesh.make_mesh(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'spatial': 2}
    assert dict(mesh.make_mesh(1, 1, 1).shape) == {'data': 1, 'fsdp': 1, 'spatial': 1}


@pytest.mark.parametrize('sizes', [(-1, -1, 1), (0, 1, 1), (16, 1, 1)])
def test_impossible_meshes_are_user_errors(sizes):
    with pytest.raises(UserError):
        mesh.make_mesh(*sizes)


def test_every_logical_axis_has_a_rule():
    names = {v for k, v in vars(axes).items() if k.isupper() and isinstance(v, str)}
    assert names == {name for name, _ in mesh.RULES}


def test_parameters_follow_their_axes_and_odd_sizes_are_stored_flat():
    devices = mesh.make_mesh(2, 4, 1)
    box = nn.LogicallyPartitioned
    boxed = {
        'k': box(jax.ShapeDtypeStruct((3, 3, 3, 2, 8), np.float32), axes.CONV_KERNEL),
        'odd': box(jax.ShapeDtypeStruct((3, 3, 3, 2, 9), np.float32), axes.CONV_KERNEL),
    }
    shardings = sharding.tree_shardings(boxed, devices)
    assert shardings['k'].spec == PartitionSpec(None, None, None, None, 'fsdp')
    assert shardings['odd'].spec == PartitionSpec('fsdp')
    assert padding.stored_shape((3, 3, 3, 2, 9), 4) == (488,)  # of 486
    host = np.arange(3 * 3 * 3 * 2 * 8, dtype=np.float32).reshape(3, 3, 3, 2, 8)
    placed = sharding.put_tree({'k': host}, {'k': shardings['k']})['k']
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 3, 3, 2, 2)}
    np.testing.assert_array_equal(placed, host)


def test_batch_must_divide():
    with pytest.raises(UserError, match='batch_size 6'):
        sharding.check_batch(mesh.make_mesh(4, 1, 1), 6, 1)
