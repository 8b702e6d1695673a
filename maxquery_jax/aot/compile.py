"""Compiles the step that trains for hardware that is not there, and says what it would need."""

import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from maxquery_jax.aot import estimate, hlo
from maxquery_jax.aot.targets import GIB, Target, target_devices
from maxquery_jax.data.store import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train.stage import Stage, build_stage, count_flops
from maxquery_jax.train.state import count_parameters
from maxquery_jax.train.validate import validate
from maxquery_jax.typing import Config

PROGRAMS = ('step', 'augment')


def compile_for(
    config: Config, stage_name: str, manifest: Manifest, target: Target, *, is_fast: bool = True
) -> dict[str, Any]:
    """Compiles the step of a stage, and its augmentation, for a target.

    Nothing is computed and no parameter exists: state and batch are shapes with shardings.

    Args:
        config: the experiment; its mesh is laid over the target's devices, a thawed stage is
            compiled so that every gradient is in the program.
        stage_name: one of its stages.
        manifest: classes, channels and spacing of the data.
        target: the hardware.
        is_fast: for TPUs, compile with least effort, ten times faster; the program then needs
            somewhat more memory than the one that would train.

    Returns:
        Per program ('step' and, if enabled, 'augment') memory per device in GiB by kind,
        collectives, bytes and estimated times; parameters, FLOPs, whether it fits, advice. See
        docs/scaling.md.

    Raises:
        UserError: the config is wrong, or model, batch and mesh do not fit the target.
    """
    validate(config)
    config = config.copy_and_resolve_references()
    config[stage_name].optim.frozen_epochs = 0
    mesh = make_mesh(**config.mesh, devices=target_devices(target))
    stage = build_stage(config, stage_name, manifest, mesh)
    flops = count_flops(config, stage, manifest) * config.data.batch_size
    programs = {'step': _lower_step(config, stage, manifest, mesh)}
    if config.augment.enabled:
        programs['augment'] = _lower_augment(config, stage, manifest, mesh)
    reports = {name: _compile(lower, target, is_fast) for name, lower in programs.items()}
    needed = [r['memory_gib']['total'] for r in reports.values() if r['memory_gib']]
    fits = all(r['fits'] for r in reports.values())
    return {
        'config': f'{config.name}:{config.variant}',
        'stage': stage_name,
        'topology': target.name,
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'batch_size': config.data.batch_size,
        'accumulate': config[stage_name].accumulate,
        'patch_size': list(stage.patch_size),
        'dtype': config.model.dtype,
        'remat': config.model.remat,
        'parameters': count_parameters(stage.layout.params),
        'tflop_per_step': flops / 1e12,
        'programs': reports,
        'memory_limit_gib': target.limits.memory_gib,
        'fits': fits,
        **estimate.step_time(reports, flops / mesh.size, target.limits),
        'advice': estimate.advice(config, stage_name, fits, max(needed, default=None), target),
    }


def _lower_step(config: Config, stage: Stage, manifest: Manifest, mesh):
    def lower():
        with mesh_context(mesh):
            state = stage.layout.abstract
            batch = stage.abstract_batch(config.data.batch_size, len(manifest.channels), mesh)
            return stage.jit_step().lower(state, batch, _abstract_key(stage.dropout_key, mesh))

    return lower


def _lower_augment(config: Config, stage: Stage, manifest: Manifest, mesh):
    def lower():
        with mesh_context(mesh):
            raw = stage.abstract_raw_batch(config.data.batch_size, len(manifest.channels), mesh)
            return stage.augment_step.lower(raw, _abstract_key(stage.dropout_key, mesh))

    return lower


def _abstract_key(key: jax.Array, mesh) -> jax.ShapeDtypeStruct:
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)


def _compile(lower, target: Target, is_fast: bool) -> dict[str, Any]:
    """Lowers and compiles a program; what does not fit the memory is a result, not a failure."""
    options = {}
    if is_fast and target.limits.platform == 'tpu':
        options['exec_time_optimization_effort'] = -1.0
    if target.limits.platform == 'cuda':
        # XLA times kernels on the device to choose them. Without one it guesses Triton's tiles, and
        # finds none for the windows of a Swin Transformer; cuBLAS takes every shape.
        options['xla_gpu_enable_triton_gemm'] = False
    started = time.perf_counter()
    try:
        compiled = lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = estimate.memory_that_was_missing(str(error))
        if needed is None:
            raise UserError(
                f'the compiler for {target.name} failed: {" ".join(str(error).split())[:300]}; try '
                'another --config.model.dtype, --effort or version of its package'
            ) from error
        seconds = time.perf_counter() - started
        return {'compile_s': seconds, 'fits': False, 'memory_gib': {'total': needed}}
    seconds = time.perf_counter() - started
    text, cost = compiled.as_text() or '', compiled.cost_analysis() or {}
    memory = _memory(compiled.memory_analysis())
    return {
        'compile_s': seconds,
        'memory_gib': memory,
        'fits': memory is None or memory['total'] <= target.limits.memory_gib,
        'gb_moved': _positive(cost.get('bytes accessed'), 1e-9),
        'optimal_s': _positive(cost.get('optimal_seconds'), 1.0),
        'collectives': {
            kind: {'count': found.count, 'mb': found.num_bytes / 1e6}
            for kind, found in hlo.count_collectives(text).items()
        },
        'cycles_by_layer': hlo.cycles_by_layer(text),
    }


def _positive(value: Any, scale: float) -> float | None:
    """A cost that the compiler knows; it reports nonsense below zero for what it does not."""
    return float(value) * scale if value is not None and value > 0 else None


def _memory(found: Any) -> dict[str, float] | None:
    """GiB per device by kind; donated arguments are counted once."""
    if found is None:
        return None
    parts = {
        'arguments': found.argument_size_in_bytes,
        'outputs': found.output_size_in_bytes - found.alias_size_in_bytes,
        'temporary': found.temp_size_in_bytes,
        'program': found.generated_code_size_in_bytes,
    }
    return {name: size / GIB for name, size in parts.items()} | {'total': sum(parts.values()) / GIB}


def require_stage(config: Config, name: str | None) -> str:
    """The stage that a flag names, the last of the experiment by default.

    Raises:
        UserError: the experiment has no such stage.
    """
    chosen: str = name or config.stages[-1]
    if chosen not in config.stages:
        raise UserError(f'--stage={chosen} is not one of {", ".join(config.stages)}')
    return chosen
