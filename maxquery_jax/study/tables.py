"""A study's table: methods in rows, metrics with intervals over cases and spread over seeds."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from maxquery_jax.metrics.bootstrap import (
    Difference,
    Estimate,
    Statistic,
    bootstrap,
    mean_statistic,
    paired_difference,
)
from maxquery_jax.metrics.ood import METRICS, CaseScores

COLUMNS = ('auroc', 'aupr', 'fpr95', 'case_auc', 'dice_tumour')
TITLES = {
    'auroc': 'AUROC',
    'aupr': 'AUPR',
    'fpr95': 'FPR95',
    'case_auc': 'case AUC',
    'dice_tumour': 'inlier tumour Dice',
}
LOWER_IS_BETTER = ('fpr95',)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        estimate: mean over seeds with its 95% interval over cases.
        seeds: value of each seed.
    """

    estimate: Estimate
    seeds: tuple[float, ...]

    @property
    def seed_sd(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """A method: its title, variant, score, and the statistic behind each cell."""

    title: str
    variant: str
    score: str
    statistics: dict[str, Statistic]
    per_seed: dict[str, tuple[float, ...]]
    num_cases: int

    def cell(self, column: str) -> Cell:
        """Mean over seeds; the interval resamples cases, the same for all seeds."""
        (estimate,) = bootstrap(self.statistics[column], self.num_cases)
        return Cell(estimate, self.per_seed[column])


def build_rows(study: Any, summaries: dict[str, list[dict]], region: str = 'organ') -> list[Row]:
    """One row per entry of `study.rows` (`{title, variant, score}`)."""
    rows = []
    for entry in study.rows:
        seeds = summaries[entry.variant]
        statistics, per_seed = {}, {}
        for column in COLUMNS:
            parts = [_statistic(summary, column, entry.score, region) for summary in seeds]
            statistics[column] = _mean_of(parts)
            ones = np.ones((1, len(seeds[0]['cases'])))
            per_seed[column] = tuple(float(part(ones)[0, 0]) for part in parts)
        rows.append(
            Row(
                entry.title,
                entry.variant,
                entry.score,
                statistics,
                per_seed,
                len(seeds[0]['cases']),
            )
        )
    return rows


def compare(first: Row, second: Row) -> dict[str, Difference]:
    """Paired difference first - second of every column over the same cases."""
    return {
        column: paired_difference(
            first.statistics[column], second.statistics[column], first.num_cases
        )[0]
        for column in COLUMNS
    }


def _statistic(summary: dict, column: str, score: str, region: str) -> Statistic:
    """A column of one seed as a function of case weights [R, n], giving [R, 1]."""
    cases = sorted(summary['cases'], key=lambda case: case['case'])
    if column in METRICS:
        values = [_nan(case['ood'][score][region][column]) for case in cases]
        return mean_statistic(np.array(values)[:, None])
    if column == 'case_auc':
        state = CaseScores.empty()
        for case in cases:
            state = state.update(case['case'], case['case_score'][score], case['is_ood'])
        return state.statistic()
    names = [label['name'] for label in summary['labels'] if label['role'] == 'tumour']
    values = np.array(
        [[math.nan if c['is_ood'] else _nan(c['dice'][n]) for n in names] for c in cases]
    )
    per_class = mean_statistic(values)
    return lambda weights: _nanmean(per_class(weights))


def _mean_of(parts: list[Statistic]) -> Statistic:
    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.mean([part(weights) for part in parts], axis=0)

    return statistic


def _nanmean(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    count = defined.sum(axis=1, keepdims=True)
    total = np.where(defined, values, 0.0).sum(axis=1, keepdims=True)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def to_markdown(study: Any, rows: list[Row], heading: str) -> str:
    """The table, the paired differences and how to read them."""
    lines = [f'# {study.title}', '', heading, '']
    lines.append('| method | ' + ' | '.join(_title(column) for column in COLUMNS) + ' |')
    lines.append('|---' * (len(COLUMNS) + 1) + '|')
    for row in rows:
        cells = ' | '.join(_cell_text(row.cell(column)) for column in COLUMNS)
        lines.append(f'| {row.title} | {cells} |')
    lines += ['', 'Values in percent: mean over seeds [95% interval over cases] ± SD over seeds.']
    pairs = _pairs(study, rows)
    if pairs:
        lines += ['', '## Paired differences (first minus second, same cases)', '']
        lines.append('| pair | ' + ' | '.join(_title(column) for column in COLUMNS) + ' |')
        lines.append('|---' * (len(COLUMNS) + 1) + '|')
        for first, second in pairs:
            found = compare(first, second)
            cells = ' | '.join(_difference_text(found[column]) for column in COLUMNS)
            lines.append(f'| {first.title} - {second.title} | {cells} |')
    return '\n'.join(lines) + '\n'


def to_json(study: Any, rows: list[Row]) -> str:
    """The same numbers for programs."""
    table = [
        {
            'title': row.title,
            'variant': row.variant,
            'score': row.score,
            'cells': {
                column: _clean(
                    dataclasses.asdict(row.cell(column)) | {'seed_sd': row.cell(column).seed_sd}
                )
                for column in COLUMNS
            },
        }
        for row in rows
    ]
    pairs = [
        {
            'first': first.title,
            'second': second.title,
            'differences': {
                k: _clean(dataclasses.asdict(v)) for k, v in compare(first, second).items()
            },
        }
        for first, second in _pairs(study, rows)
    ]
    return json.dumps({'study': study.name, 'rows': table, 'pairs': pairs}, indent=1) + '\n'


def _pairs(study: Any, rows: list[Row]) -> list[tuple[Row, Row]]:
    by_title = {row.title: row for row in rows}
    return [(by_title[pair[0]], by_title[pair[1]]) for pair in study.pairs]


def _title(column: str) -> str:
    return TITLES[column] + (' (lower is better)' if column in LOWER_IS_BETTER else '')


def _cell_text(cell: Cell) -> str:
    value = cell.estimate
    sd = '' if math.isnan(cell.seed_sd) else f' ± {100 * cell.seed_sd:.1f}'
    return f'{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]{sd}'


def _difference_text(value: Difference) -> str:
    interval = f'[{100 * value.low:+.1f}, {100 * value.high:+.1f}]'
    return f'{100 * value.value:+.1f} {interval}, p {value.p_value:.3f}'


def _clean(value: Any) -> Any:
    transform: Callable[[Any], Any] = _clean
    if isinstance(value, dict):
        return {key: transform(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [transform(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
