"""Speed and memory of a real training step on made-up data, for any config."""

import resource
import statistics
import time
from typing import Any

import jax
import numpy as np

from maxquery_jax.data.store import Manifest
from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train.rngs import stream
from maxquery_jax.train.stage import Stage, build_stage, count_flops, count_forward_flops
from maxquery_jax.train.state import count_parameters, init_params
from maxquery_jax.train.validate import validate
from maxquery_jax.typing import Config


def network_size(config: Config, stage_name: str, manifest: Manifest) -> dict[str, Any]:
    """What the network of a stage needs, from shapes alone: nothing is computed or compiled.

    Args:
        config: the experiment.
        stage_name: one of its stages.
        manifest: classes, channels and spacing.

    Returns:
        Parameters, and GFLOP of a forward pass and of a training step of one patch.
    """
    validate(config)
    stage = build_stage(config, stage_name, manifest, make_mesh(data=1))
    return {
        'config': f'{config.name}:{config.variant}',
        'stage': stage_name,
        'patch_size': list(stage.patch_size),
        'num_classes': manifest.num_classes,
        'parameters': count_parameters(stage.layout.params),
        'gflop_forward': _gflop_forward(config, stage, manifest),
        'gflop_step': count_flops(config, stage, manifest) / 1e9,
    }


def _gflop_forward(config: Config, stage: Stage, manifest: Manifest) -> float:
    flops = count_forward_flops(
        config,
        stage.config.objective,
        num_classes=manifest.num_classes,
        num_channels=len(manifest.channels),
        spacing_mm=manifest.spacing_mm,
    )
    return flops / 1e9


def benchmark_step(
    config: Config, stage_name: str, manifest: Manifest, num_steps: int
) -> dict[str, Any]:
    """Compiles the training step of a stage and takes real optimiser steps on random HU.

    Args:
        config: the experiment.
        stage_name: one of its stages; it starts thawed, so that every gradient is computed.
        manifest: classes, channels and spacing.
        num_steps: timed steps after one warm-up step.

    Returns:
        Parameters, GFLOP per step, seconds to compile, median, minimum and maximum seconds per
        step, loss before and after, peak resident memory in GiB of this process.
    """
    validate(config)
    config = config.copy_and_resolve_references()
    config[stage_name].optim.frozen_epochs = 0
    mesh = make_mesh(**config.mesh)
    stage = build_stage(config, stage_name, manifest, mesh)
    channels = len(manifest.channels)
    with mesh_context(mesh):
        params = init_params(
            stage.model, (1, *stage.patch_size, channels), stream(config.seed, 'init', 0)
        )
        state = stage.layout.create(params)
        step = stage.jit_step()
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        started = time.perf_counter()
        batch = stage.abstract_batch(config.data.batch_size, channels, mesh)
        compiled = step.lower(shapes, batch, stage.dropout_key).compile()
        compile_s = time.perf_counter() - started
        raw = stage.abstract_raw_batch(config.data.batch_size, channels, mesh)
        host = _random_batch(raw, manifest.num_classes, config.seed)
        times, losses = [], []
        for index in range(num_steps + 1):
            started = time.perf_counter()
            raw = sharding.put_batch(host, mesh)
            batch = stage.augment_step(raw, index)
            state, metrics = compiled(state, batch, stage.dropout_key)
            losses.append(float(metrics['loss']))
            times.append(time.perf_counter() - started)
    times = times[1:]
    memory = compiled.memory_analysis()
    return {
        'config': f'{config.name}:{config.variant}',
        'stage': stage_name,
        'batch_size': config.data.batch_size,
        'accumulate': stage.config.accumulate,
        'patch_size': list(stage.patch_size),
        'num_classes': manifest.num_classes,
        'parameters': count_parameters(stage.layout.params),
        'gflop_per_step': count_flops(config, stage, manifest) * config.data.batch_size / 1e9,
        'compile_s': compile_s,
        'step_s_median': statistics.median(times),
        'step_s_min': min(times),
        'step_s_max': max(times),
        'num_steps': num_steps,
        'loss_first': losses[0],
        'loss_last': losses[-1],
        'compiled_temporary_gib': memory.temp_size_in_bytes / 2**30 if memory else None,
        'peak_rss_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        'devices': [str(d.device_kind) for d in mesh.devices.flat],
    }


def _random_batch(abstract: dict, num_classes: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image, label = abstract['image'], abstract['label']
    return {
        'image': rng.integers(-200, 300, image.shape, dtype=np.int16),
        'label': rng.integers(0, num_classes, label.shape, dtype=np.uint8),
        'case': np.zeros(abstract['case'].shape, np.int32),
    }
