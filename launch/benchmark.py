"""Measures a part of the program on this machine.

    python -m launch.benchmark --part=step --config=configs/maxquery.py:pancreas --stage=finetune

`step` compiles the stage's training step at the config's full size, takes real optimiser steps on
random data and prints seconds, GFLOP and peak memory as JSON. It needs no store.
"""

import json

from absl import flags
from ml_collections import config_flags

from launch import _cli

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment, e.g. configs/maxquery.py:pancreas', lock_config=True
)
_PART = flags.DEFINE_enum('part', 'step', ['step'], 'What to measure.')
_STAGE = flags.DEFINE_string('stage', None, 'Stage of the config; the last one by default.')
_STEPS = flags.DEFINE_integer('steps', 2, 'Timed steps after a warm-up step.', lower_bound=1)
_TUMOURS = flags.DEFINE_integer('tumours', 7, 'Known tumour classes.', lower_bound=0)
_CHANNELS = flags.DEFINE_integer('channels', 1, 'Input channels (phases).', lower_bound=1)
_SPACING = flags.DEFINE_list('spacing_mm', ['3', '0.419', '0.419'], 'Voxel size (z, y, x) in mm.')
_JSON = flags.DEFINE_string('json', None, 'Also write the figures to this file.')


def main() -> None:
    """Prints what `--part` measured."""
    from maxquery_jax.errors import UserError
    from maxquery_jax.train.benchmark import benchmark_step, synthetic_manifest
    from maxquery_jax.train.run_dir import write_text

    config = _cli.experiment(_CONFIG.value)
    stage = _STAGE.value or config.stages[-1]
    if stage not in config.stages:
        raise UserError(f'--stage={stage} is not one of {", ".join(config.stages)}')
    try:
        spacing = tuple(float(value) for value in _SPACING.value)
    except ValueError as error:
        raise UserError(f'--spacing_mm must be three numbers: {error}') from error
    manifest = synthetic_manifest(_TUMOURS.value, spacing, _CHANNELS.value)
    figures = benchmark_step(config, stage, manifest, _STEPS.value)
    text = json.dumps(figures, indent=1)
    print(text)
    if _JSON.value:
        import pathlib

        write_text(pathlib.Path(_JSON.value), text + '\n')


if __name__ == '__main__':
    _cli.run(main)
