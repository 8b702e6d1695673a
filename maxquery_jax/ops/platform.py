"""Which devices the code being traced is for: some formulations depend on it."""

import jax


def traced_for() -> tuple[str, int]:
    """Platform ('cpu', 'cuda', 'tpu') and number of devices; the active mesh says, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend(), jax.device_count()
    device = mesh.abstract_device
    return jax.default_backend() if device is None else device.platform, mesh.size
