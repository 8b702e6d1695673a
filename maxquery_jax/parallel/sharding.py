"""Where every array lives: parameters by their logical axes, batches over data and fsdp."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxquery_jax.errors import UserError
from maxquery_jax.parallel import padding
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

    A dimension that its mesh axis does not divide stays whole. The fsdp axis then takes the longest
    dimension that it does divide, so that the kernel of a head of 9 classes is split over its input
    features. Where there is none (that head's bias) it divides the leaf's stored form, which is
    flat and padded (`padding.stored_shape`).
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    shapes = unbox(boxed)

    def place(leaf, spec: PartitionSpec) -> NamedSharding:
        if padding.stored_shape(leaf.shape, mesh.shape[FSDP]) != leaf.shape:
            return NamedSharding(mesh, PartitionSpec(FSDP))
        names = tuple(spec) + (None,) * (len(leaf.shape) - len(spec))
        kept = [
            name if name is None or size % _extent(mesh, name) == 0 else None
            for size, name in zip(leaf.shape, names, strict=True)
        ]
        if FSDP not in kept:
            kept = _split_longest(leaf.shape, kept, mesh)
        return NamedSharding(mesh, PartitionSpec(*kept))

    return jax.tree.map(place, shapes, specs)


def _split_longest(shape: tuple[int, ...], kept: list, mesh: Mesh) -> list:
    """`kept` with fsdp on the longest free dimension that it divides, if there is any."""
    shards = mesh.shape[FSDP]
    fitting = [
        (size, -axis)
        for axis, (size, name) in enumerate(zip(shape, kept, strict=True))
        if name is None and size % shards == 0
    ]
    if shards > 1 and fitting:
        kept[-max(fitting)[1]] = FSDP
    return kept


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


def process_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> tuple[int, ...]:
    """The rows of each global batch that a process reads: those that its devices hold.

    On a TPU slice the devices of a host need not be neighbours in the mesh, nor then its rows.
    Where the axis `spatial` spans hosts, several read the same rows.

    Args:
        mesh: of the run.
        batch_size: rows of a global batch, a multiple of data x fsdp.
        process_index: of a process; None for this one.

    Returns:
        Rows in ascending order, as `pipeline.build_batches(rows=)` and `put_batch` take them.

    Raises:
        UserError: the mesh leaves a process without a device.
    """
    if process_index is None:
        process_index = jax.process_index()
    order = [mesh.axis_names.index(name) for name in (DATA, FSDP)]
    rest = [i for i in range(mesh.devices.ndim) if i not in order]
    blocks = mesh.devices.transpose(*order, *rest).reshape(mesh.shape[DATA] * mesh.shape[FSDP], -1)
    size = batch_size // len(blocks)
    rows = [
        block * size + row
        for block, devices in enumerate(blocks)
        if any(device.process_index == process_index for device in devices)
        for row in range(size)
    ]
    if not rows:
        raise UserError(
            f'mesh {dict(mesh.shape)} has no device of process {process_index}; with several '
            'processes it must use all devices: set one of its sizes to -1'
        )
    return tuple(rows)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes the global batch from this process's rows, those of `process_rows`."""
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
