"""The tables of a summary, for the terminal, plain text and HTML."""

import dataclasses
import sys
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from maxquery_jax.metrics.dice import SUMMARIES
from maxquery_jax.metrics.ood import METRICS
from maxquery_jax.report.measure import REGIONS
from maxquery_jax.report.summary import POOLINGS

_TITLES = {
    'auroc': 'AUROC',
    'aupr': 'AUPR',
    'fpr95': 'FPR95',
    'auc': 'AUC',
    'case_mean': 'case mean',
    'present_mean': 'present mean',
    'pooled': 'pooled',
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table of text.

    Attributes:
        title: one line.
        columns: headings.
        rows: cells, as many per row as columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """Tables of a summary: headline, OOD localisation, OOD cases, Dice; values in percent."""
    return [
        _headline(summary),
        _localisation(summary),
        _case_level(summary),
        _dice(summary),
    ]


def case_table(summary: dict[str, Any]) -> Table:
    """One row per case: Dice of each class and the default score's metrics in the organ region."""
    score = summary['scores'][0]
    names = list(summary['cases'][0]['dice'])
    rows = []
    for case in summary['cases']:
        voxel = case['ood'][score]['organ']
        fallback = case['case_score_fallback']
        mark = f' ({fallback})' if fallback else ''
        rows.append(
            (
                case['case'],
                'OOD' if case['is_ood'] else 'inlier',
                *(percent(case['dice'][name]) for name in names),
                *(percent(voxel[metric]) for metric in METRICS),
                f'{case["case_score"][score]:.4g}{mark}',
            )
        )
    columns = (
        'case',
        'kind',
        *(f'Dice {name}' for name in names),
        *(_TITLES[metric] for metric in METRICS),
        'case score',
    )
    return Table(f'Cases: Dice, and {score} in the organ region', columns, tuple(rows))


def percent(value: float | None) -> str:
    """A rate in percent with one decimal; '-' when undefined."""
    return '-' if value is None else f'{100 * value:.1f}'


def show(tables: list[Table]) -> None:
    """Prints tables: drawn on a terminal, aligned plain text otherwise."""
    if sys.stdout.isatty():
        console = Console()
        for table in tables:
            drawn = RichTable(*table.columns, title=table.title, title_justify='left')
            for row in table.rows:
                drawn.add_row(*row)
            console.print(drawn)
    else:
        print('\n\n'.join(plain(table) for table in tables), flush=True)


def plain(table: Table) -> str:
    """A table as aligned text without colours or frames."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    text = ['  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return '\n'.join([table.title, *(line.rstrip() for line in text)])


def _cell(summary: dict[str, Any], key: str) -> str:
    """Value and interval of a metric in percent."""
    metric = summary['metrics'][key]
    low, high = metric['ci95']
    interval = '' if low is None else f' [{percent(low)}, {percent(high)}]'
    return percent(metric['value']) + interval


def _headline(summary: dict[str, Any]) -> Table:
    counts = summary['counts']
    title = (
        f'{summary["name"]}: {counts["cases"]} cases ({counts["inlier_cases"]} inlier, '
        f'{counts["ood_cases"]} OOD), % [95% CI]'
    )
    rows = [
        (key, _cell(summary, key), str(summary['metrics'][key]['n'])) for key in summary['headline']
    ]
    return Table(title, ('metric', 'value', 'n'), tuple(rows))


def _localisation(summary: dict[str, Any]) -> Table:
    rows = []
    for score in summary['scores']:
        for region in REGIONS:
            for pooling in POOLINGS:
                keys = [f'ood/{score}/{region}/{pooling}/{metric}' for metric in METRICS]
                n = summary['metrics'][keys[0]]['n']
                cells = (_cell(summary, key) for key in keys)
                rows.append((score, region, _TITLES[pooling], *cells, str(n)))
    columns = ('score', 'region', 'over', *(_TITLES[metric] for metric in METRICS), 'n')
    return Table('OOD localisation, % [95% CI]', columns, tuple(rows))


def _case_level(summary: dict[str, Any]) -> Table:
    fallbacks = summary['counts']['case_score_fallbacks']
    rows = []
    for score in summary['scores']:
        key = f'ood_case/{score}/auc'
        rows.append((score, _cell(summary, key), str(summary['metrics'][key]['n'])))
    title = f'OOD cases, % [95% CI]; {fallbacks} without predicted tumour'
    return Table(title, ('score', 'AUC', 'n'), tuple(rows))


def _dice(summary: dict[str, Any]) -> Table:
    known = [label for label in summary['labels'] if label['role'] in ('organ', 'tumour')]
    names = [(label['name'], label['role'], f'dice/{label["name"]}') for label in known]
    roles = [role for role in ('organ', 'tumour') if any(label['role'] == role for label in known)]
    names += [(f'mean over {role} classes', role, f'dice_mean/{role}') for role in roles]
    rows = []
    for name, role, key in names:
        cells = (_cell(summary, f'{key}/{kind}') for kind in SUMMARIES)
        counts = (summary['metrics'][f'{key}/{kind}']['n'] for kind in SUMMARIES[:2])
        rows.append((name, role, *cells, ' / '.join(map(str, counts))))
    columns = ('class', 'role', *(_TITLES[kind] for kind in SUMMARIES), 'n defined / present')
    return Table('Dice on inlier cases, % [95% CI]', columns, tuple(rows))
