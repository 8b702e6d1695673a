"""Runs a study (variants x seeds) and writes its table; the same command continues it.

    python -m launch.study --study=configs/studies/first_light.py --workdir=runs/first_light
    python -m launch.study --study=configs/studies/first_light.py --workdir=runs/x --part=1/3
    python -m launch.study --study=configs/studies/first_light.py --workdir=runs/x --dry_run

Tables appear in WORKDIR/tables once every run is finished.
"""

import importlib
import pathlib

from absl import flags

from launch import _cli

_STUDY = flags.DEFINE_string('study', None, 'Study file below configs/studies.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the study.')
_PART = flags.DEFINE_string('part', '1/1', 'i/n: this host runs the i-th of n parts (by seed).')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only print what would run.')


def main() -> None:
    """Runs `--study`."""
    from maxquery_jax.errors import UserError
    from maxquery_jax.files import write_text
    from maxquery_jax.study import runner, tables

    if not _STUDY.value or not _WORKDIR.value:
        raise UserError('name the study with --study and its folder with --workdir')
    file = pathlib.Path(_STUDY.value)
    if not file.is_file():
        raise UserError(f'--study={file} does not exist; look into configs/studies')
    module = importlib.import_module('.'.join(file.with_suffix('').parts))
    study, workdir = module.get_study(), pathlib.Path(_WORKDIR.value)
    if _DRY_RUN.value:
        for run in runner.take_part(runner.plan(study, workdir), _PART.value):
            state = 'finished' if run.is_finished else 'to run'
            print(f'{run.variant} seed {run.seed}: {state}')
        return
    runner.run_study(study, module.get_config, workdir, part=_PART.value)
    unfinished = [run for run in runner.plan(study, workdir) if not run.is_finished]
    if unfinished:
        print(f'{len(unfinished)} runs belong to other parts; tables are written by the last')
        return
    rows = tables.build_rows(study, runner.read_summaries(study, workdir))
    heading = f'Made by `python -m launch.study --study={file}`, seeds {tuple(study.seeds)}.'
    folder = workdir / 'tables'
    folder.mkdir(exist_ok=True)
    markdown = tables.to_markdown(study, rows, heading)
    write_text(folder / f'{study.name}.md', markdown)
    write_text(folder / f'{study.name}.json', tables.to_json(study, rows))
    print(markdown)


if __name__ == '__main__':
    _cli.run(main)
