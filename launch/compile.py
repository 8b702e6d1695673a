"""Compiles a training step ahead of time for hardware that is not there.

    python -m launch.compile --config=configs/maxquery.py:pancreas --topology=v5e:16x16 \\
        --channels=5 --config.data.batch_size=256 --config.model.dtype=bfloat16
    python -m launch.compile --config=configs/zept.py --stage=stage2 --topology=h100:8 \\
        --config.data.batch_size=8 --config.model.dtype=bfloat16
    python -m launch.compile --config=configs/maxquery.py:demo --topology=cpu:8 \\
        --config.data.batch_size=8

It is the step that launch.train would run there, on abstract data: nothing is computed, no store is
needed. Prints memory per device and whether it fits, operations, bytes, collectives and estimated
times; what to change when it does not fit. The mesh is the config's (--config.mesh.spatial=2). TPU
slices are v4, v5e, v5p, v6e; GPUs h100:N; cpu:N are virtual devices. Compilers for TPU and GPU come
with the extra 'aot'. The exit code is 2 when the step does not fit.
"""

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from launch import _cli, _planned

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment, e.g. configs/maxquery.py:pancreas', lock_config=True
)
_TOPOLOGY = flags.DEFINE_string('topology', None, 'Hardware: v5e:4x4, h100:8, cpu:8, ...')
_STAGE = flags.DEFINE_string('stage', None, 'Stage of the config; the last by default.')
_EFFORT = flags.DEFINE_enum(
    'effort', 'fast', ['fast', 'full'], 'Of the TPU compiler; full takes ten times as long.'
)
_JSON = flags.DEFINE_string('json', None, 'Also write the report to this file.')
_IS_CHILD = flags.DEFINE_bool('in_this_process', False, 'Do not start a process of its own.')
flags.adopt_module_key_flags(_planned)


def main() -> None:
    """Compiles `--config` for `--topology`, in a process that may crash."""
    from maxquery_jax.aot.child import run_child
    from maxquery_jax.aot.targets import parse_target, require_compiler
    from maxquery_jax.errors import UserError

    config = _cli.experiment(_CONFIG.value)
    if not _TOPOLOGY.value:
        raise UserError('name the hardware with --topology, e.g. --topology=v5e:4x4')
    target = parse_target(_TOPOLOGY.value)
    require_compiler(target)
    if not _IS_CHILD.value:
        sys.exit(run_child([*sys.argv[1:], '--in_this_process'], target))

    from maxquery_jax.aot.compile import compile_for, require_stage
    from maxquery_jax.aot.describe import describe
    from maxquery_jax.files import write_text

    stage = require_stage(config, _STAGE.value)
    report = compile_for(
        config, stage, _planned.manifest(config, stage), target, is_fast=_EFFORT.value == 'fast'
    )
    print(describe(report))
    if _JSON.value:
        write_text(pathlib.Path(_JSON.value), json.dumps(report, indent=1) + '\n')
    if not report['fits']:
        raise UserError(f'the step does not fit {target.name}; see the advice above')


if __name__ == '__main__':
    _cli.run(main)
