"""How the state of a stage lies on a mesh, and how in a checkpoint."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxquery_jax.parallel import padding, sharding
from maxquery_jax.train.state import TrainState, path_name
from maxquery_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and places of a train state.

    On the devices every parameter and moment is divided over the fsdp axis, some of them padded
    for it (`parallel.padding`). A checkpoint holds the model's own shapes, so that any mesh and
    any number of processes can read it.

    Attributes:
        boxed_params: abstract parameters with logical axes.
        tx: optimiser.
        mesh: devices.
    """

    boxed_params: PyTree
    tx: optax.GradientTransformation
    mesh: Mesh

    @functools.cached_property
    def params(self) -> PyTree:
        """Shapes of the parameters as the model takes them."""
        return sharding.unbox(self.boxed_params)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """NamedSharding of every leaf on the devices; a moment lies where its parameter lies."""
        places = sharding.tree_shardings(self.boxed_params, self.mesh)
        replicated = self._replicated
        by_name = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(places)}

        def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            parts = path_name(path).split('/')
            for start in range(len(parts)):  # a moment's path ends with its parameter's
                found = by_name.get('/'.join(parts[start:]))
                if found is not None and leaf.shape:
                    return found
            return replicated

        moments = jax.tree_util.tree_map_with_path(place, self._shapes(self._stored).opt_state)
        return TrainState(step=replicated, params=places, opt_state=moments)

    @functools.cached_property
    def abstract(self) -> TrainState:
        """The state on the devices, as ShapeDtypeStructs with shardings."""
        return jax.tree.map(_struct, self._shapes(self._stored), self.shardings)

    @functools.cached_property
    def abstract_saved(self) -> TrainState:
        """The state in a checkpoint; what is padded on the devices is whole here."""

        def describe(saved, stored, place):
            return _struct(saved, place if saved.shape == stored.shape else self._replicated)

        stored = self._shapes(self._stored)
        return jax.tree.map(describe, self._shapes(self.params), stored, self.shardings)

    def create(self, host_params: PyTree) -> TrainState:
        """Places host parameters and builds the optimiser state directly in its shards."""
        stored = jax.tree.map(_pad_host, host_params, self._stored)
        params = sharding.put_tree(stored, self.shardings.params)
        opt_state = jax.jit(self.tx.init, out_shardings=self.shardings.opt_state)(params)
        step = jax.device_put(jnp.zeros((), jnp.int32), self._replicated)
        return TrainState(step, params, opt_state)

    def model_params(self, params: PyTree) -> PyTree:
        """Stored parameters as the model takes them; of gradients too. Part of a step."""
        return padding.unpad(params, self.params)

    def to_saved(self, state: TrainState) -> TrainState:
        """The state as a checkpoint holds it; leaves that are not padded are not copied."""
        return self._saving(state)

    def from_saved(self, state: TrainState) -> TrainState:
        """The inverse of `to_saved`."""
        return self._restoring(state)

    @functools.cached_property
    def _saving(self) -> Callable[[TrainState], TrainState]:
        return _converter(padding.unpad, self.abstract, self.abstract_saved)

    @functools.cached_property
    def _restoring(self) -> Callable[[TrainState], TrainState]:
        return _converter(padding.pad, self.abstract_saved, self.abstract)

    @functools.cached_property
    def _stored(self) -> PyTree:
        """Shapes of the parameters on the devices."""
        shards = self.mesh.shape[sharding.FSDP]

        def shape(leaf):
            return jax.ShapeDtypeStruct(padding.stored_shape(leaf.shape, shards), leaf.dtype)

        return jax.tree.map(shape, self.params)

    def _shapes(self, params: PyTree) -> TrainState:
        step = jax.ShapeDtypeStruct((), jnp.int32)
        return TrainState(step, params, jax.eval_shape(self.tx.init, params))

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


def _struct(leaf, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _pad_host(leaf: np.ndarray, stored: jax.ShapeDtypeStruct) -> np.ndarray:
    leaf = np.asarray(leaf)
    if leaf.shape == stored.shape:
        return leaf
    return np.pad(leaf.ravel(), (0, stored.shape[0] - leaf.size))


def _converter(
    function: Callable[[PyTree, PyTree], PyTree], source: TrainState, target: TrainState
) -> Callable[[TrainState], TrainState]:
    """Changes the leaves whose shapes differ, in one program that every call shares."""
    wanted = jax.tree.leaves(target)
    pairs = enumerate(zip(jax.tree.leaves(source), wanted, strict=True))
    odd = [i for i, (old, new) in pairs if old.shape != new.shape]
    shapes = [wanted[i] for i in odd]
    places = [leaf.sharding for leaf in shapes]
    program = jax.jit(lambda some: function(some, shapes), out_shardings=places)

    def convert(state: TrainState) -> TrainState:
        leaves, tree = jax.tree.flatten(state)
        if odd:
            for i, leaf in zip(odd, program([leaves[i] for i in odd]), strict=True):
                leaves[i] = leaf
        return jax.tree.unflatten(tree, leaves)

    return convert
