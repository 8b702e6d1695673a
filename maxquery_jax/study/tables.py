"""Fills a study's tables from what its runs measured; the result is plain JSON."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

from maxquery_jax.study.columns import Column, expand
from maxquery_jax.study.measures import Evaluation, Measured, measure
from maxquery_jax.study.spec import RowSpec, Study, TableSpec
from maxquery_jax.study.statistics import RESAMPLES, Cell, Comparison, compare, correct, make_cell

FORMAT = 'maxquery_jax/table'
VERSION = 2

Row = Mapping[str, Mapping[int, Measured]]
"""Column key to seed to what was measured; a column that was not measured is left out."""


def build_table(
    study: Study, table: TableSpec, evaluations: Mapping[str, Mapping[int, Evaluation]]
) -> dict[str, Any]:
    """Computes every cell, comparison and order of a table.

    Args:
        study: the study.
        table: one of its tables.
        evaluations: variant to seed to what was measured (`results.load`).

    Returns:
        JSON values; numbers that are undefined are None.
    """
    measured = [e for row in table.rows for e in evaluations.get(row.variant, {}).values()]
    first = measured[0] if measured else None
    columns = expand(table.columns, first.tumours if first else ())
    rows = {
        row.title: _measure_row(row, columns, evaluations.get(row.variant, {}))
        for row in table.rows
    }
    cells = {
        title: {key: make_cell(seeds) for key, seeds in row.items()} for title, row in rows.items()
    }
    cases = first.cases if first else ()
    return {
        'format': FORMAT,
        'version': VERSION,
        'study': study.name,
        'table': table.name,
        'title': table.title,
        'seeds': list(study.seeds),
        'folds': study.folds,
        'splits': list(table.splits),
        'counts': {
            'cases': len(cases),
            'inlier_cases': sum(not case['is_ood'] for case in cases),
            'ood_cases': sum(case['is_ood'] for case in cases),
        },
        'groups': {
            group: len(first.of_group(group).cases) if first else 0
            for group in dict.fromkeys(column.group for column in columns if column.group)
        },
        'cohorts': len({evaluation.cohort for evaluation in measured}),
        'resamples': RESAMPLES,
        'columns': [dataclasses.asdict(column) for column in columns],
        'rows': [
            {
                **dataclasses.asdict(row),
                'seeds': [s for s in study.seeds if s in evaluations.get(row.variant, {})],
                'cells': {key: _cell_json(cell) for key, cell in cells[row.title].items()},
            }
            for row in table.rows
        ],
        'pairs': _compare_pairs(table, columns, rows),
        'reference': {
            source: {title: dict(numbers) for title, numbers in titles.items()}
            for source, titles in table.reference.items()
        },
        'order': _order(table, columns, cells),
        'note': table.note,
    }


def _measure_row(
    row: RowSpec, columns: Sequence[Column], evaluations: Mapping[int, Evaluation]
) -> Row:
    found: dict[str, dict[int, Measured]] = {}
    for column in columns:
        for seed, evaluation in evaluations.items():
            measured = measure(evaluation, column, row.score)
            if measured is not None:
                measured = dataclasses.replace(measured, cohort=evaluation.cohort)
                found.setdefault(column.key, {})[seed] = measured
    return found


def _compare_pairs(
    table: TableSpec, columns: Sequence[Column], rows: Mapping[str, Row]
) -> list[dict[str, Any]]:
    """Every pair in every column, corrected over the pairs of a column."""
    compared: dict[tuple[str, str], dict[str, Comparison]] = {pair: {} for pair in table.pairs}
    for column in columns:
        if not column.is_compared:
            continue
        found = {}
        for first, second in table.pairs:
            sides = [rows[title].get(column.key, {}) for title in (first, second)]
            comparison = compare(*sides)
            if comparison is not None:
                found[first, second] = comparison
        corrected = correct(list(found.values()))
        for pair, comparison in zip(found, corrected, strict=True):
            compared[pair][column.key] = comparison
    return [
        {
            'first': first,
            'second': second,
            'differences': {
                key: _clean(dataclasses.asdict(comparison)) for key, comparison in by_column.items()
            },
        }
        for (first, second), by_column in compared.items()
    ]


def _order(
    table: TableSpec, columns: Sequence[Column], cells: Mapping[str, Mapping[str, Cell]]
) -> dict[str, dict[str, Any]]:
    """Kendall's tau between our column and the reference's, over the rows that both have."""
    result: dict[str, dict[str, Any]] = {}
    for source, numbers in table.reference.items():
        for column in columns:
            both = [
                (cells[title][column.key].value, values[column.key])
                for title, values in numbers.items()
                if column.key in values and column.key in cells.get(title, {})
            ]
            both = [pair for pair in both if math.isfinite(pair[0])]
            if len(both) > 2:
                found: Any = scipy.stats.kendalltau(*zip(*both, strict=True))
                entry = {'tau': _clean(float(found.statistic)), 'rows': len(both)}
                result.setdefault(source, {})[column.key] = entry
    return result


def _cell_json(cell: Cell) -> dict[str, Any]:
    return _clean({**dataclasses.asdict(cell), 'seed_sd': cell.seed_sd})


def _clean(value: Any) -> Any:
    """Strict JSON: undefined numbers become None, keys strings."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
