"""Trains every stage of an experiment; the same command continues after any interruption.

    python -m launch.train --config=configs/maxquery.py:demo --workdir=runs/demo
    python -m launch.train --config=configs/maxquery.py:liver --workdir=runs/liver \\
        --config.data.store=stores/liver --config.seed=1

Any field of the config can be changed with --config.FIELD=VALUE. On several hosts start it on each
of them, with --workdir on shared storage: under Slurm and on a TPU pod slice as it is, elsewhere
with --coordinator, --num_processes and --process_id (see docs/run_on.md).
"""

import pathlib
import time

from absl import flags
from ml_collections import config_flags

from launch import _cli, _cluster
from maxquery_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Experiment, e.g. configs/maxquery.py:demo', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; made if missing, continued if not.')
flags.adopt_module_key_flags(_cluster)


PLOT_SECONDS = 10.0  # drawing takes about half a second


def main() -> None:
    """Trains `--config` in `--workdir`."""
    config = _cli.experiment(_CONFIG.value)
    if not _WORKDIR.value:
        raise UserError('name a run directory with --workdir, e.g. --workdir=runs/demo')
    workdir = pathlib.Path(_WORKDIR.value)

    from configs.defaults import field_defaults
    from maxquery_jax.parallel import processes
    from maxquery_jax.report.progress_plot import plot_progress
    from maxquery_jax.train.experiment import train
    from maxquery_jax.train.goodput import process_age_s

    drawn = time.monotonic()

    def on_log() -> None:
        nonlocal drawn
        if processes.is_first() and time.monotonic() - drawn > PLOT_SECONDS:
            plot_progress(workdir / 'metrics.jsonl', workdir / 'progress.png')
            drawn = time.monotonic()

    with _cluster.joined():
        train(
            config,
            workdir,
            on_log=on_log,
            defaults=field_defaults(config),
            age_s=process_age_s(),
        )
        if processes.is_first():
            plot_progress(workdir / 'metrics.jsonl', workdir / 'progress.png')


if __name__ == '__main__':
    _cli.run(main)
