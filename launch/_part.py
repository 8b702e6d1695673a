"""Which part of the scans this process predicts: the one of --part, or of its place in a job."""

from absl import flags

from launch import _cluster

_PART = flags.DEFINE_string(
    'part',
    None,
    'i/n: predict the i-th of n parts of the scans, dealt out by name. Default: a job of n '
    'processes (see --cluster) shares them out; they do not wait for each other.',
)
flags.adopt_module_key_flags(_cluster)


def own_part() -> str:
    """`i/n` of this process; where a host runs several, each takes GPUs of its own.

    Processes do not join: one that ends early, or fails, must not end the others.

    Raises:
        UserError: flags and environment do not describe a job.
    """
    import jax

    from maxquery_jax.parallel.cluster import find_cluster

    if _PART.value is not None:
        return _PART.value
    given = flags.FLAGS
    found = find_cluster(
        given.cluster,
        coordinator=given.coordinator,
        num_processes=given.num_processes,
        process_id=given.process_id,
    )
    if found is None:
        return '1/1'
    if found.local_device_ids is not None:
        own = ','.join(str(device) for device in found.local_device_ids)
        jax.config.update('jax_cuda_visible_devices', own)
    return f'{found.process_id + 1}/{found.num_processes}'
