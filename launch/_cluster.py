"""Flags of a run of several processes, which may be on several hosts.

    python -m launch.train ... --coordinator=host0:8476 --num_processes=2 --process_id=0
    srun python -m launch.train ...

Without any of them Slurm, Open MPI and TPU pod slices are recognised by themselves; on a single
machine nothing is started and nothing is waited for.
"""

from contextlib import AbstractContextManager

from absl import flags

_CLUSTER = flags.DEFINE_enum(
    'cluster',
    'auto',
    ('auto', 'none', 'slurm', 'ompi', 'tpu'),
    'Where the processes of the run are described; none runs this one alone.',
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT at which process 0 answers the others (port: any free one).'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
_TIMEOUT = flags.DEFINE_float(
    'cluster_timeout_s', 300.0, 'Seconds within which all processes must have come.'
)


def joined() -> AbstractContextManager[None]:
    """The block in which this process is one of the run's; see `processes.joined`.

    Raises:
        UserError: flags and environment do not describe a run, or some process did not come.
    """
    from maxquery_jax.parallel import cluster, processes

    found = cluster.find_cluster(
        _CLUSTER.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        timeout_s=_TIMEOUT.value,
    )
    return processes.joined(found, _TIMEOUT.value)
