"""Train state and its initialisation on the host."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

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
