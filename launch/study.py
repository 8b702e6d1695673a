"""Runs a study (variants x seeds x folds) and writes its tables; the same command continues it.

    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/maxquery
    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/x --dry_run
    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/x --workers=2
    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/x --part=1/3
    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/x --tables_only
    python -m launch.study --study=configs/studies/maxquery_table1.py --workdir=runs/liver \\
        --base=liver --store=stores/liver

Tables are written to WORKDIR/tables as Markdown and JSON; rows that are not finished say so.
Studies with one WORKDIR share the runs of a variant. Several processes may run the same command on
one WORKDIR: they share out the runs.
"""

import pathlib
import runpy
import sys

from absl import flags

from launch import _cli

_STUDY = flags.DEFINE_string('study', None, 'Study file below configs/studies.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the study.')
_PART = flags.DEFINE_string(
    'part', '1/1', 'i/n: this host runs the i-th of n parts; a seed and fold is never divided.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only print what would run, and how long it takes.')
_TABLES_ONLY = flags.DEFINE_bool('tables_only', False, 'Only write the tables of what is finished.')
_WORKERS = flags.DEFINE_integer(
    'workers', 1, 'Processes, each on its share of the CPU cores; they share out the runs.'
)
_BASE = flags.DEFINE_string(
    'base', None, "Words of the experiment in place of the study's, such as liver."
)
_STORE = flags.DEFINE_string('store', None, 'Store to train on, in place of a generated cohort.')


def main() -> None:
    """Runs `--study`."""
    from configs.defaults import field_defaults
    from maxquery_jax.errors import UserError
    from maxquery_jax.study import runner
    from maxquery_jax.study.write import print_plan, write_tables

    if not _STUDY.value or not _WORKDIR.value:
        raise UserError('name the study with --study and its folder with --workdir')
    file, workdir = pathlib.Path(_STUDY.value), pathlib.Path(_WORKDIR.value)
    if file.suffix != '.py' or not file.is_file():
        raise UserError(f'--study={file} does not exist; look into configs/studies')
    module = runpy.run_path(str(file))
    if 'get_study' not in module or 'get_config' not in module:
        raise UserError(f'--study={file} lacks get_study or get_config; look into configs/studies')
    make_config = module['get_config']
    study = runner.open_study(module['get_study'](), base=_BASE.value)
    if _DRY_RUN.value:
        print_plan(study, make_config, workdir, part=_PART.value)
        return
    failed = []
    if _WORKERS.value != 1 and not _TABLES_ONLY.value:
        _run_workers()
    elif not _TABLES_ONLY.value:
        failed = runner.run_study(
            study,
            make_config,
            workdir,
            part=_PART.value,
            store=_STORE.value or '',
            defaults_of=field_defaults,
        )
    write_tables(study, make_config, workdir, command=f'--study={file}')
    if failed:
        raise UserError(f'{len(failed)} runs failed: {"; ".join(failed)}')


def _run_workers() -> None:
    """Runs this command several times side by side; what they leave undone is an error."""
    from maxquery_jax.errors import UserError
    from maxquery_jax.study.workers import run_workers

    command = [sys.executable, '-m', 'launch.study', *sys.argv[1:], '--workers=1']
    failed = [code for code in run_workers(command, _WORKERS.value) if code]
    if failed:
        raise UserError(
            f'{len(failed)} of {_WORKERS.value} workers stopped early (see above); the same '
            'command continues'
        )


if __name__ == '__main__':
    _cli.run(main)
