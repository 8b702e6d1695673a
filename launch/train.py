"""Trains every stage of an experiment; the same command continues after any interruption.

    python -m launch.train --config=configs/maxquery.py:demo --workdir=runs/demo
    python -m launch.train --config=configs/maxquery.py:liver --workdir=runs/liver \\
        --config.data.store=stores/liver --config.seed=1

Any field of the config can be changed with --config.FIELD=VALUE.
"""

import pathlib
import time

from absl import flags
from ml_collections import config_flags

from launch import _cli

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment, e.g. configs/maxquery.py:demo', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; made if missing, continued if not.')


PLOT_SECONDS = 10.0  # drawing takes about half a second


def main() -> None:
    """Trains `--config` in `--workdir`."""
    from configs.defaults import field_defaults
    from maxquery_jax.errors import UserError
    from maxquery_jax.report.progress_plot import plot_progress
    from maxquery_jax.train.experiment import train

    config = _cli.experiment(_CONFIG.value)
    if not _WORKDIR.value:
        raise UserError('name a run directory with --workdir, e.g. --workdir=runs/demo')
    workdir = pathlib.Path(_WORKDIR.value)

    drawn = time.monotonic()

    def on_log() -> None:
        nonlocal drawn
        if time.monotonic() - drawn > PLOT_SECONDS:
            plot_progress(workdir / 'metrics.jsonl', workdir / 'progress.png')
            drawn = time.monotonic()

    train(config, workdir, on_log=on_log, defaults=field_defaults(config))
    plot_progress(workdir / 'metrics.jsonl', workdir / 'progress.png')


if __name__ == '__main__':
    _cli.run(main)
