"""Train state and its cheap, sharded initialisation."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maxquery_jax.parallel import sharding
from maxquery_jax.typing import Array, PyTree


@flax.struct.dataclass
class TrainState:
    """Everything a restart needs; keys and the data cursor derive from seed and step.

    Attributes:
        step: int32 scalar, optimiser steps finished in this stage.
        params: parameter tree.
        opt_state: optimiser state.
    """

    step: PyTree
    params: PyTree
    opt_state: PyTree


def path_name(path: Any) -> str:
    """`backbone/encoder_stage0/conv0/kernel` for a key path."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def count_parameters(params: PyTree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def abstract_params(model: nn.Module, image_shape: tuple[int, ...]) -> PyTree:
    """Shapes of the parameters, boxed with their logical axes; computes nothing."""
    return jax.eval_shape(_init_fn(model, image_shape), jax.random.key(0))


def init_params(model: nn.Module, image_shape: tuple[int, ...], key: Array) -> PyTree:
    """Initial parameters as host arrays, equal on every backend and mesh.

    Drawn on the host (`models.initializers`), so that no parameter is ever whole on a device that
    is to hold a shard of it.

    Args:
        model: the module.
        image_shape: [B, D, H, W, P] of any valid input.
        key: typed key.
    """
    words = np.asarray(jax.random.key_data(key))
    cpu = jax.local_devices(backend='cpu')[0]
    host = jax.make_mesh((1,), ('host',), axis_types=(AxisType.Auto,), devices=[cpu])
    with jax.set_mesh(host), nn.logical_axis_rules(()):  # whatever the caller trains on
        key = jax.random.wrap_key_data(jnp.asarray(words))
        boxed = jax.jit(_init_fn(model, image_shape))(key)
    return jax.device_get(sharding.unbox(boxed))


def _init_fn(model: nn.Module, image_shape: tuple[int, ...]):
    def init(key):
        params_key, dropout_key = jax.random.split(key)
        image = jnp.zeros(image_shape, jnp.float32)
        rngs = {'params': params_key, 'dropout': dropout_key}
        return model.init(rngs, image, train=True)['params']

    return init


def state_shardings(
    boxed_params: PyTree, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """NamedShardings of a whole state; a moment lies where its parameter lies."""
    params = sharding.tree_shardings(boxed_params, mesh)
    by_name = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        parts = path_name(path).split('/')
        for start in range(len(parts)):  # a moment's path ends with its parameter's
            found = by_name.get('/'.join(parts[start:]))
            if found is not None and leaf.shape:
                return found
        return replicated

    opt_state = jax.eval_shape(tx.init, sharding.unbox(boxed_params))
    return TrainState(
        step=replicated,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(place, opt_state),
    )


def create_state(
    host_params: PyTree, tx: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Places parameters and builds the optimiser state directly in its shards."""
    params = sharding.put_tree(host_params, shardings.params)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, params, opt_state)


def abstract_state(
    boxed_params: PyTree, tx: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings, for restoring and ahead-of-time compiles."""
    params = sharding.unbox(boxed_params)
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(tx.init, params)
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
