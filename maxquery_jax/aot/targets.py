"""The hardware that a step can be compiled for: its chips, their published limits, its devices."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from maxquery_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What a device can do at most, by its maker's data sheet.

    Attributes:
        platform: 'tpu', 'cuda' or 'cpu'.
        memory_gib: what a program may use.
        tflops: peak of bfloat16 matrix products, in 10^12 operations/s.
        memory_gbps: bandwidth of the device's memory, 10^9 bytes/s.
        link_gbps: of the links to other chips of a slice or host, one direction, 10^9 bytes/s.
        clock_ghz: of the cycles that the TPU compiler estimates; 0 where it estimates none.
    """

    platform: str
    memory_gib: float
    tflops: float
    memory_gbps: float
    link_gbps: float
    clock_ghz: float = 0.0


# Peak rates: cloud.google.com/tpu/docs, "System architecture" of each version, links at half of
# the bidirectional figure; NVIDIA H100 SXM data sheet (dense bfloat16, NVLink one direction).
# Memory is what the compiler grants (v5e: 15.75 of 16 GB).
CHIPS = {
    'v4': Chip(platform='tpu', memory_gib=31.25, tflops=275, memory_gbps=1228, link_gbps=150),
    'v5e': Chip(
        platform='tpu', memory_gib=15.75, tflops=197, memory_gbps=819, link_gbps=200, clock_ghz=1.5
    ),
    'v5p': Chip(platform='tpu', memory_gib=95.0, tflops=459, memory_gbps=2765, link_gbps=600),
    'v6e': Chip(platform='tpu', memory_gib=31.25, tflops=918, memory_gbps=1638, link_gbps=400),
    'h100': Chip(platform='cuda', memory_gib=79.1, tflops=989, memory_gbps=3352, link_gbps=450),
    'cpu': Chip(platform='cpu', memory_gib=math.inf, tflops=0.0, memory_gbps=0.0, link_gbps=0.0),
}

# The description that stands in for a device when XLA compiles for CUDA without one.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_PACKAGES = {'tpu': 'libtpu', 'cuda': 'jax_cuda12_plugin'}


@dataclasses.dataclass(frozen=True)
class Target:
    """Absent hardware.

    Attributes:
        name: as the user wrote it.
        chip: its kind, a key of `CHIPS`.
        num_chips: in the slice or host.
    """

    name: str
    chip: str
    num_chips: int

    @property
    def limits(self) -> Chip:
        """Of one chip."""
        return CHIPS[self.chip]


def parse_target(text: str) -> Target:
    """Reads `v5e:4x4` (a TPU slice), `h100:8` (GPUs of a host) or `cpu:8` (virtual devices).

    Raises:
        UserError: anything else.
    """
    chip, _, size = text.partition(':')
    form = r'\d+(x\d+){1,2}' if chip in CHIPS and CHIPS[chip].platform == 'tpu' else r'\d+'
    if chip not in CHIPS or not re.fullmatch(form, size) or '0' in re.split('x', size):
        raise UserError(
            f'--topology={text} is not known; write v5e:4x4, v5p:2x2x2 or v6e:4x4 for a TPU slice, '
            f'h100:8 for GPUs, cpu:8 for virtual devices (chips: {", ".join(CHIPS)})'
        )
    return Target(text, chip, math.prod(int(side) for side in size.split('x')))


def require_compiler(target: Target) -> None:
    """Raises UserError unless the target's compiler is installed."""
    package = _PACKAGES.get(target.limits.platform)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f'--topology={target.name} needs the compiler in the package {package}, which is not '
            "installed; install the extra 'aot': pip install -e '.[aot]'"
        )


def compiler_environment(target: Target) -> dict[str, str]:
    """Environment variables that must be set before JAX is imported."""
    shared = {'JAX_PLATFORMS': 'cpu'}
    if target.limits.platform == 'cpu':
        flag = f'--xla_force_host_platform_device_count={target.num_chips}'
        return shared | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()}
    if target.limits.platform == 'cuda':
        return shared
    return shared | {
        'TPU_SKIP_MDS_QUERY': '1',  # ask no metadata server what machine this is
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several compilations at a time
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # without these libtpu warns at every start
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
    }


def target_devices(target: Target) -> list[Any]:
    """The devices of a target, in the order that meshes are built from.

    A chip of several cores that programs see one by one (v4, v5p) counts as so many devices.

    Raises:
        UserError: the compiler does not know the shape.
    """
    platform = target.limits.platform
    if platform == 'cpu':
        return list(jax.devices('cpu')[: target.num_chips])
    size = target.name.partition(':')[2]
    try:
        if platform == 'cuda':
            return list(
                topologies.get_topology_desc(
                    platform='cuda',
                    topology_name='',
                    topology=f'1x1x{size}',
                    target_config=_H100,
                ).devices
            )
        return list(topologies.get_topology_desc(platform='tpu', topology_name=target.name).devices)
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'--topology={target.name} is not a shape it can have: {reason}') from error
