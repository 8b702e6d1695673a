"""What compiled numbers mean: a step's time at published peaks, advice when it does not fit."""

import re
from typing import Any

from maxquery_jax.aot.targets import Chip, Target
from maxquery_jax.typing import Config

_UNITS = {'K': 2**-20, 'M': 2**-10, 'G': 1.0}


def step_time(
    reports: dict[str, dict[str, Any]], flops_per_device: float, chip: Chip
) -> dict[str, Any]:
    """Estimated seconds of a step, and the share of the chip's peak that it would reach.

    Three estimates, none of them a measurement: `compute_s`, the model's operations at the peak
    rate; `memory_s`, the bytes that the program moves at the memory's rate; `compiler_s`, the
    cycles that the TPU compiler expects of its own instructions. `collective_s` is the results of
    all collectives at the rate of one chip's links. `step_s` is the compiler's estimate, or the
    larger of the first two where it makes none, plus the collectives, nothing overlapped. For GPUs
    the compiler tells neither cycles nor bytes: `step_s` is then no more than a lower bound, and
    there is no `mfu`.

    Args:
        reports: of `aot.compile`, by program.
        flops_per_device: of the model, not of the program: padding and recomputation do not count.
        chip: its published limits.

    Returns:
        The estimates, `augment_s` and `mfu`; None for what cannot be known.
    """
    step = reports['step']
    if 'collectives' not in step or chip.platform == 'cpu':
        return {'step_s': None, 'mfu': None}
    compute = flops_per_device / (chip.tflops * 1e12)
    memory = None if step['gb_moved'] is None else step['gb_moved'] / chip.memory_gbps
    compiler = _compiler_seconds(step, chip)
    collective = sum(c['mb'] for c in step['collectives'].values()) / (chip.link_gbps * 1e3)
    busy = max(compute, memory or 0.0) if compiler is None else compiler
    augment = reports.get('augment', {})
    return {
        'step_s': busy + collective,
        'mfu': None if compiler is None and memory is None else compute / (busy + collective),
        'compute_s': compute,
        'memory_s': memory,
        'compiler_s': compiler,
        'collective_s': collective,
        'augment_s': _compiler_seconds(augment, chip) if 'collectives' in augment else None,
    }


def _compiler_seconds(report: dict[str, Any], chip: Chip) -> float | None:
    cycles = sum(report['cycles_by_layer'].values())
    return cycles / (chip.clock_ghz * 1e9) if cycles and chip.clock_ghz else None


def memory_that_was_missing(message: str) -> float | None:
    """GiB that a program would have used, from the compiler's refusal; None for other failures."""
    found = re.search(r'[Uu]sed ([\d.]+)([KMG])i?B? of ([\d.]+)[KMG]', message) or re.search(
        r'\(([\d.]+)([KMG])\) exceeds available', message
    )
    if found is None or 'memory' not in message:
        return None
    return float(found.group(1)) * _UNITS[found.group(2)]


def advice(
    config: Config, stage_name: str, fits: bool, needed_gib: float | None, target: Target
) -> list[str]:
    """What to change when a step does not fit, the cheapest in time first; nothing when it does."""
    if fits or needed_gib is None:
        return []
    stage, mesh = config[stage_name], config.mesh
    found = []
    if config.model.dtype == 'float32':
        found.append('--config.model.dtype=bfloat16 halves the activations')
    rows = config.data.batch_size // max(target.num_chips // (mesh.spatial or 1), 1)
    if stage.accumulate < rows:
        found.append(
            f'--config.{stage_name}.accumulate={max(2 * stage.accumulate, 2)} takes the batch in '
            'smaller parts'
        )
    if config.model.remat != 'blocks':
        better = 'norms' if config.model.remat == 'none' else 'blocks'
        found.append(f'--config.model.remat={better} recomputes instead of keeping')
    if config.model.backbone.name != 'swin_unetr':
        found.append(
            f'--config.mesh.spatial={2 * mesh.spatial} splits the depth of a patch over chips'
        )
    found.append('a topology of chips with more memory')
    over = needed_gib / target.limits.memory_gib
    return [f'{needed_gib:.1f} GiB is {over:.1f} times what a chip has', *found]
