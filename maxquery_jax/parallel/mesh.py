"""The device mesh and the one table that maps logical axes onto it."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from maxquery_jax import axes
from maxquery_jax.errors import UserError

DATA, FSDP, SPATIAL = 'data', 'fsdp', 'spatial'
MESH_AXES = (DATA, FSDP, SPATIAL)

RULES = (
    (axes.BATCH, (DATA, FSDP)),
    (axes.DEPTH, SPATIAL),
    (axes.HEIGHT, None),
    (axes.WIDTH, None),
    (axes.CHANNEL, None),
    (axes.QUERY, None),
    (axes.FEATURES_IN, None),
    (axes.FEATURES_OUT, FSDP),
    (axes.NORM, FSDP),
    (axes.CLASS, FSDP),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, spatial: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Builds the mesh; one size may be -1 and takes the devices that are left.

    Args:
        data: replicas that share the batch.
        fsdp: shards of parameters and optimiser state; also divides the batch.
        spatial: shards of the patch depth.
        devices: defaults to all devices; surplus devices are left unused.

    Raises:
        UserError: more than one -1, a size below 1, or more devices asked for than there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {DATA: data, FSDP: fsdp, SPATIAL: spatial}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f'mesh sizes must be positive, at most one of them -1; got {sizes}')
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = max(len(devices) // fixed, 1)
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise UserError(f'mesh {sizes} needs {needed} devices, there are {len(devices)}')
    # As jax.make_mesh does, but a slice's axis may be split: v6e:16x16 has no 64 x 4 x 1 otherwise.
    laid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices[:needed], allow_split_physical_axes=True
    )
    return Mesh(laid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


@contextlib.contextmanager
def mesh_context(mesh: Mesh) -> Iterator[None]:
    """Activates mesh and rules together; logical constraints are silent no-ops without both."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield
