"""An experiment: its stages in order, in one command, resumed by itself."""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maxquery_jax.errors import StoppedError
from maxquery_jax.parallel import processes
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train import goodput, run_dir, zept_stage
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.data import TrainingData, open_data
from maxquery_jax.train.loop import StageRun
from maxquery_jax.train.merge import merge_params
from maxquery_jax.train.rngs import stream
from maxquery_jax.train.stage import Stage, build_stage, count_flops, make_model
from maxquery_jax.train.state import count_parameters, init_params
from maxquery_jax.train.validate import validate
from maxquery_jax.typing import Config, PyTree

# Heads belong to one objective; the backbone must carry over whole, for SynthCP the segmenter, for
# ZePT all of stage I.
_HEADS = r'(?!backbone/)'
_DROPPED = {'zept_stage2': ''}
_NEW = {
    'synthcp': r'(generator|discriminator)/',
    'zept_stage2': (
        r'(refinement_decoder|fundamental_out|advanced_mask_head|knowledge_projection|'
        r'knowledge_norm)/|log_temperature$'
    ),
}


def train(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    on_log: Callable[[], None] = lambda: None,
    defaults: Mapping[str, Any] | None = None,
    age_s: float = 0.0,
) -> None:
    """Runs every stage of an experiment; a second call continues or finds nothing to do.

    Args:
        config: see `configs/base.py`.
        workdir: run directory (DESIGN section 6).
        on_log: called after metric rows were written.
        defaults: of the config's fields, see `RunDir.write_config`.
        age_s: seconds that the start took until now, for the record of where the time goes.

    Raises:
        UserError: anything the user or the data can mend.

    With several processes (`parallel.processes`) each calls this; process 0 alone writes what is
    not a checkpoint.
    """
    book = goodput.Goodput(pathlib.Path(workdir) / goodput.FILE, age_s=age_s)
    ended = 'failed'
    validate(config)
    _dry_build(config)
    resolved = config.to_json_best_effort()
    processes.require_same('the config', resolved, 'start all with the same flags')
    run = run_dir.RunDir(workdir, is_writer=processes.is_first())
    try:
        processes.require_shared(run.path, '--workdir')
        enable_compilation_cache(run.path / 'cache')
        data = open_data(config, run.path)
        _require_same_data(data)
        mesh = make_mesh(**config.mesh)
        run.write_config(json.loads(resolved), defaults)
        run.write_manifest(_manifest(config, data, dict(mesh.shape)))
        if processes.is_first():
            zept_stage.keep_knowledge(config, run.path)
        for name in config.stages:
            _run_stage(config, name, data, mesh, run, on_log, book)
        ended = 'finished'
    except StoppedError:
        ended = 'stopped'
        raise
    finally:
        table = book.end(ended)
        if table:
            processes.say(table)
        run.close()


def enable_compilation_cache(directory: pathlib.Path) -> None:
    """Keeps compiled programs in the run, so that a restart starts several times faster."""
    jax.config.update('jax_compilation_cache_dir', str(directory.absolute()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    # Without this a cache that moved to another path is never hit.
    jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


def _require_same_data(data: TrainingData) -> None:
    """A store may be a copy on each host, but it must be the same one."""
    for store in data.stores:
        content = json.dumps(store.manifest.to_json() | {'source': ''}, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        fix = 'copy the whole store again, or name one on shared storage'
        processes.require_same(f'store {store.location}: the manifest', digest, fix)


def _dry_build(config: Config) -> None:
    """Fails on sizes that do not fit before a phantom cohort is generated for them."""
    if config.data.phantom and not config.data.store and not config.data.stores:
        for name in config.stages:
            spacing = tuple(config.data.phantom.spacing_mm)
            make_model(config, config[name].objective, 3, spacing, 'plain')


def _run_stage(config, name: str, data: TrainingData, mesh, run, on_log, book) -> None:
    stage = build_stage(config, name, data.manifest, mesh, is_partial=data.is_partial)
    stage_run = StageRun(config, stage, data, mesh, run, on_log, book)
    done = stage_run.finished_steps()
    if stage_run.is_finished():
        processes.say(f'{name}: already at step {done} of {stage.total_steps}')
        stage_run.close()
        return
    run.drop_rows_after(tuple(config.stages), name, done)
    started = time.perf_counter()
    if processes.is_first():
        _describe(config, stage, data)
    stage_run.execute(lambda: _initial_params(config, stage, data, run.path))
    processes.say(f'{name}: finished in {time.perf_counter() - started:.0f} s')


def _describe(config: Config, stage: Stage, data: TrainingData) -> None:
    count = count_parameters(stage.layout.params)
    flops = count_flops(config, stage, data.manifest) * config.data.batch_size
    print(
        f'{stage.name}: {count / 1e6:.2f} M parameters, {flops / 1e9:.1f} GFLOP per step '
        f'(forward and backward, batch {config.data.batch_size}), patch {stage.patch_size}, '
        f'{stage.total_steps} steps, {data.num_cases("train")} training cases',
        flush=True,
    )
    small = data.count_smaller(stage.patch_size)
    if small:
        print(
            f'{stage.name}: note: {small} training cases are smaller than the patch along some '
            'axis and are padded; a smaller data.patch_size wastes less',
            flush=True,
        )


def _initial_params(config: Config, stage: Stage, data: TrainingData, path: pathlib.Path) -> PyTree:
    shape = (1, *stage.patch_size, len(data.manifest.channels))
    initial = init_params(stage.model, shape, stream(config.seed, f'{stage.name}/init', 0))
    position = tuple(config.stages).index(stage.name)
    if stage.config.init_from:
        run, _, wanted = stage.config.init_from.rpartition(':')
        run, wanted = (run, wanted) if run else (wanted, None)
        loaded, name, step = load_params(run, wanted)
        source = f'{run}, {name} step {step}'
    elif position:
        loaded, name, step = load_params(path, config.stages[position - 1])
        source = f'{name} step {step}'
    else:
        return initial
    processes.say(f'{stage.name}: initial weights from {source}')
    only_initial = _NEW.get(stage.config.objective, _HEADS)
    only_loaded = _DROPPED.get(stage.config.objective, _HEADS)
    return merge_params(initial, loaded, only_loaded=only_loaded, only_initial=only_initial)


def _manifest(config: Config, data: TrainingData, mesh: dict) -> dict:
    first = data.manifest.to_json()
    keys = (
        'dataset',
        'spacing_mm',
        'channels',
        'intensity',
        'labels',
        'label_map',
        'contains',
        'splits',
    )
    several = len(data.stores) > 1
    sources = {
        f'{store.manifest.dataset}/{case_id}' if several else case_id: case['sha256']
        for store in data.stores
        for case_id, case in store.manifest.cases.items()
    }
    record = {
        'format': 'maxquery_jax/run',
        'version': 1,
        'versions': run_dir.versions(),
        'seed': config.seed,
        'mesh': mesh,
        'devices': [str(device.device_kind) for device in jax.devices()],
        'store': data.stores[0].location,
        'data': {key: first[key] for key in keys},
        'data_sha256': sources,
    }
    if several:
        record['stores'] = [
            {
                'store': store.location,
                'dataset': store.manifest.dataset,
                'annotated': list(store.manifest.annotated),
                'splits': store.manifest.to_json()['splits'],
            }
            for store in data.stores
        ]
    return record
