"""Where every array lives: parameters by their logical axes, batches over data and fsdp."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxquery_jax.errors import UserError
from maxquery_jax.parallel.mesh import DATA, FSDP, RULES
from maxquery_jax.typing import PyTree


def unbox(boxed: PyTree) -> PyTree:
    """Strips logical axes without adding sharding constraints (flax's own unboxing adds them)."""

    def strip(leaf):
        boxed_leaf = isinstance(leaf, nn.LogicallyPartitioned)
        return leaf.unbox(apply_constraint=False) if boxed_leaf else leaf

    return jax.tree.map(strip, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def tree_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """NamedSharding of each leaf of a tree boxed with logical axes.

    A dimension that its mesh axis does not divide stays whole: a bias of 9 classes over 8 devices
    is replicated, not an error.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    shapes = unbox(boxed)

    def place(leaf, spec: PartitionSpec) -> NamedSharding:
        names = tuple(spec) + (None,) * (len(leaf.shape) - len(spec))
        kept = [
            name if name is None or size % _extent(mesh, name) == 0 else None
            for size, name in zip(leaf.shape, names, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*kept))

    return jax.tree.map(place, shapes, specs)


def _extent(mesh: Mesh, name: str | tuple[str, ...]) -> int:
    names = (name,) if isinstance(name, str) else name
    return int(np.prod([mesh.shape[n] for n in names]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data x fsdp; the spatial axis is split inside the step by logical constraints."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Raises UserError unless rows divide evenly over micro-batches and devices."""
    replicas = mesh.shape[DATA] * mesh.shape[FSDP]
    if batch_size % (accumulate * replicas):
        raise UserError(
            f'batch_size {batch_size} must be a multiple of accumulate x data x fsdp = '
            f'{accumulate} x {mesh.shape[DATA]} x {mesh.shape[FSDP]}; change one of them'
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes the global batch from this process's rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def put_tree(host: PyTree, shardings: PyTree) -> PyTree:
    """Places host arrays shard by shard; no device ever holds a sharded leaf whole."""

    def place(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, host, shardings)
