"""Which processes a run has: from flags, the environment, Slurm, Open MPI or a TPU pod."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from maxquery_jax.errors import UserError

METHODS = ('auto', 'none', 'slurm', 'ompi', 'tpu')
_VARIABLES = {
    'coordinator': 'JAX_COORDINATOR_ADDRESS',
    'num_processes': 'JAX_NUM_PROCESSES',
    'process_id': 'JAX_PROCESS_ID',
}
_STARTERS = {
    'slurm': 'start the program with srun, one task per host or per GPU',
    'ompi': 'start the program with mpirun',
    'tpu': 'start the program on every worker of the pod slice',
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train together, as one of them sees it.

    Attributes:
        coordinator: HOST:PORT at which process 0 answers the others.
        num_processes: how many there are, at least 2.
        process_id: which one this is, from 0.
        local_device_ids: GPUs that this process takes; None for all that it sees.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


def find_cluster(
    method: str = 'auto',
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = 300.0,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The processes of this run; None where it is a single one, which needs no coordinator.

    What is given comes first, then the environment's JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, then what `method` allows: `auto` looks for a Slurm step or an Open MPI job
    of several tasks and, on a machine with TPU chips, for a pod slice of several hosts.

    Args:
        method: one of `METHODS`; `none` also ignores the environment.
        coordinator: HOST:PORT.
        num_processes: of the run.
        process_id: of this process.
        timeout_s: for the name of a TPU pod's first worker to resolve.
        environment: variables.

    Raises:
        UserError: settings that are incomplete or contradict each other, or `method` names a
            system that did not start this process.
    """
    given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    if method not in METHODS:
        raise UserError(f'--cluster={method} is unknown; choose from {", ".join(METHODS)}')
    if method != 'auto' and any(value is not None for value in given.values()):
        raise UserError(
            f'--cluster={method} contradicts --coordinator, --num_processes and --process_id; drop '
            'one or the other'
        )
    if method == 'none':
        return None
    if method == 'auto':
        stated = {
            name: environment.get(_VARIABLES[name]) if value is None else value
            for name, value in given.items()
        }
        if any(value is not None for value in stated.values()):
            return _from_settings(stated)
    return _detect(method, timeout_s, environment)


def _from_settings(stated: Mapping[str, Any]) -> Cluster | None:
    missing = [
        f'--{name} (or {_VARIABLES[name]})' for name, value in stated.items() if value is None
    ]
    if missing:
        raise UserError(f'{" and ".join(missing)} missing: give all three settings or none')
    numbers = {name: stated[name] for name in ('num_processes', 'process_id')}
    try:
        count, index = (int(value) for value in numbers.values())
    except ValueError:
        raise UserError(f'{numbers}: both must be whole numbers') from None
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f'--process_id={index} with --num_processes={count}: processes are numbered from 0 to '
            'num_processes - 1'
        )
    host, _, port = str(stated['coordinator']).rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(
            f'--coordinator={stated["coordinator"]} must be HOST:PORT with a free port of the host '
            'that runs process 0, e.g. 10.0.0.1:8476'
        )
    return Cluster(f'{host}:{port}', count, index) if count > 1 else None


def _detect(method: str, timeout_s: float, environment: Mapping[str, str]) -> Cluster | None:
    for name, system in _systems():
        if method not in ('auto', name):
            continue
        try:
            if not system.is_env_present():
                continue
            count = system.get_process_count()
            if count > 1:
                port = environment.get('JAX_COORDINATOR_PORT')
                return Cluster(
                    system.get_coordinator_address(int(timeout_s), port),
                    count,
                    system.get_process_id(),
                    _own_devices(name, environment, system),
                )
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise UserError(
                f'--cluster={name}: the description of the job cannot be read ({error!r}); use '
                '--coordinator, --num_processes and --process_id, or --cluster=none for one process'
            ) from error
        if method != 'auto':
            return None
    if method != 'auto':
        raise UserError(
            f'--cluster={method}, but nothing of it is found here; {_STARTERS[method]}, or drop '
            'the flag'
        )
    return None


def _systems() -> list[tuple[str, Any]]:
    """JAX's own readers of job descriptions, the one private interface this file uses.

    `jax.distributed.initialize()` asks them too, but fails where a process is alone.
    """
    from jax._src import clusters

    return [
        ('ompi', clusters.OmpiCluster),
        ('slurm', clusters.SlurmCluster),
        ('tpu', clusters.GkeTpuCluster),
        ('tpu', clusters.GceTpuCluster),
    ]


def _own_devices(name: str, environment: Mapping[str, str], system: Any) -> tuple[int, ...] | None:
    """GPUs of one task: its own where a host runs several tasks that all see every GPU.

    JAX gives each task one GPU, also where a host runs a single task and the others would idle.
    """
    if name == 'tpu':
        return None
    if name == 'slurm':
        per_host = environment.get('SLURM_STEP_TASKS_PER_NODE', '1').split(',')
        is_shared = any(part.split('(')[0] != '1' for part in per_host)
    else:
        is_shared = environment.get('OMPI_COMM_WORLD_LOCAL_SIZE', '1') != '1'
    seen = environment.get('CUDA_VISIBLE_DEVICES', '')
    bound_already = seen != '' and ',' not in seen
    return (system.get_local_process_id(),) if is_shared and not bound_already else None
