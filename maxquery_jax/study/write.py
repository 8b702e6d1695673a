"""Writes a study's tables and prints its plan."""

import json
import pathlib

from maxquery_jax.files import write_text
from maxquery_jax.study import results
from maxquery_jax.study.estimate import describe_plan, measure_timing
from maxquery_jax.study.plan import MakeConfig, plan, take_part
from maxquery_jax.study.render import to_markdown
from maxquery_jax.study.spec import Study
from maxquery_jax.study.tables import build_table


def write_tables(
    study: Study, make_config: MakeConfig, workdir: pathlib.Path, *, command: str
) -> None:
    """Writes WORKDIR/tables/TABLE.md and .json of every table, and prints the tables.

    Args:
        study: the study.
        make_config: gives the unlocked config of the text after the colon.
        workdir: folder of the study.
        command: flags that made the tables, for their heading.

    Raises:
        UserError: a summary cannot be read.
    """
    runs = plan(study, make_config, workdir)
    heading = f'{study.title}. Made by `python -m launch.study {command}`, base `{study.base}`.'
    for spec in study.tables:
        has_groups = any(column.group for column in spec.columns)
        found = results.load(study, runs, spec.splits, with_groups=has_groups)
        table = build_table(study, spec, found)
        markdown = to_markdown(table, heading)
        write_text(workdir / 'tables' / f'{spec.name}.md', markdown)
        write_text(workdir / 'tables' / f'{spec.name}.json', json.dumps(table, indent=1) + '\n')
        print(f'\n{markdown}', flush=True)
    print(f'written: {workdir / "tables"}', flush=True)


def print_plan(study: Study, make_config: MakeConfig, workdir: pathlib.Path, *, part: str) -> None:
    """Prints the runs of a part: what each shares, what is left, and the time it takes."""
    runs = plan(study, make_config, workdir)
    timing = measure_timing(runs)
    chosen = take_part(runs, part)
    finished = [results.is_finished(study, run) for run in chosen]
    print('\n'.join(describe_plan(chosen, timing, finished)))
