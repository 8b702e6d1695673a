"""From case measurements to `summary.json`: every metric with interval and n, and the policies.

The schema is documented in docs/summary_schema.md and carries a version.
"""

import csv
import functools
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json, write_text
from maxquery_jax.metrics import bootstrap as bootstrap_lib
from maxquery_jax.metrics.bootstrap import Estimate, bootstrap, mean_statistic
from maxquery_jax.metrics.dice import SUMMARIES, case_dice, class_mean, dice_statistic
from maxquery_jax.metrics.ood import METRICS, CaseScores, pooled_statistic
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.measure import REGIONS, CaseMeasurement

FORMAT = 'maxquery_jax/summary'
VERSION = 1
POOLINGS = ('case_mean', 'pooled')

Estimator = Callable[..., list[Estimate]]
"""`bootstrap` with its resamples and seed fixed."""

_UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)
_DIGITS = 10  # of a rate; beyond is the noise of summation order


def summarise(
    measurements: Sequence[CaseMeasurement],
    table: LabelTable,
    scores: Sequence[str],
    *,
    name: str = '',
    resamples: int = bootstrap_lib.NUM_RESAMPLES,
    seed: int = 0,
    dilate_mm: float = 0.0,
) -> dict[str, Any]:
    """Computes every metric over cases.

    Args:
        measurements: one per case, at least one; order does not matter.
        table: classes.
        scores: score names, the default one first.
        name: what was evaluated, for titles.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        dilate_mm: margin that the organ region was measured with, for the record.

    Returns:
        The content of `summary.json`: plain JSON values, undefined numbers are None.
    """
    cases = sorted(measurements, key=lambda measurement: measurement.case)
    estimate = functools.partial(bootstrap, resamples=resamples, seed=seed)
    estimates = _dice_estimates(cases, table, estimate)
    for score in scores:
        estimates |= _voxel_estimates(cases, score, estimate)
    for score in scores:
        estimates |= _case_estimates(cases, score, estimate)
    return {
        'format': FORMAT,
        'version': VERSION,
        'name': name,
        'labels': table.to_json(),
        'scores': list(scores),
        'metrics': {key: _entry(value) for key, value in estimates.items()},
        'headline': _headline(scores[0]),
        'counts': {
            'cases': len(cases),
            'inlier_cases': sum(not case.is_ood for case in cases),
            'ood_cases': sum(case.is_ood for case in cases),
            'case_score_fallbacks': sum(case.fallback is not None for case in cases),
            'rounded_voxels': {
                score: sum(case.histograms[score, 'whole'].rounded for case in cases)
                for score in scores
            },
        },
        'policy': _policy(resamples, seed, dilate_mm),
        'cases': [_case_entry(case, table, scores) for case in cases],
    }


def write_summary(folder: str | os.PathLike[str], summary: dict[str, Any]) -> None:
    """Writes `cases.csv`, then `summary.json`, each whole or not at all."""
    folder = pathlib.Path(folder)
    write_text(folder / 'cases.csv', cases_csv(summary))
    write_text(folder / 'summary.json', json.dumps(summary, indent=1, allow_nan=False) + '\n')


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a `summary.json`.

    Raises:
        UserError: it is missing, or of another format or version.
    """
    summary = read_json(path, fix='run launch.evaluate first')
    if summary.get('format') != FORMAT or summary.get('version') != VERSION:
        raise UserError(
            f'{path} is {summary.get("format")!r} version {summary.get("version")!r}, this program '
            f'reads {FORMAT!r} version {VERSION}; run launch.evaluate again'
        )
    return summary


def cases_csv(summary: dict[str, Any]) -> str:
    """One row per case; nested names are joined with '/', undefined values are empty."""
    rows = [_flatten(case) for case in summary['cases']]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows({key: '' if v is None else v for key, v in row.items()} for row in rows)
    return out.getvalue()


def _dice_estimates(
    cases: Sequence[CaseMeasurement], table: LabelTable, estimate: Estimator
) -> dict[str, Estimate]:
    """Dice per class and mean over organs and over tumour types, on the inlier cases."""
    counts = [case.dice for case in cases if not case.is_ood]
    ids = table.known_ids
    groups = {
        role: [column for column, i in enumerate(ids) if table.roles[i] == role]
        for role in ('organ', 'tumour')
    }
    result: dict[str, Estimate] = {}
    for summary in SUMMARIES:
        keys = [f'dice/{table.names[i]}/{summary}' for i in ids]
        means = [f'dice_mean/{role}/{summary}' for role in groups]
        if not counts:
            result |= dict.fromkeys([*keys, *means], _UNDEFINED)
            continue
        statistic = dice_statistic(counts, summary)
        defined = np.isfinite(case_dice(counts, 'case_mean' if summary == 'pooled' else summary))
        classes = estimate(statistic, len(counts), counted=defined.sum(axis=0))
        result |= dict(zip(keys, classes, strict=True))
        for key, columns in zip(means, groups.values(), strict=True):
            counted = np.array([defined[:, columns].any(axis=1).sum()])
            mean = class_mean(statistic, columns, len(counts))
            result[key] = estimate(mean, len(counts), counted=counted)[0]
    return result


def _voxel_estimates(
    cases: Sequence[CaseMeasurement], score: str, estimate: Estimator
) -> dict[str, Estimate]:
    """AUROC, AUPR and FPR95 of one score: both regions, per-case mean and pooled."""
    result: dict[str, Estimate] = {}
    for region in REGIONS:
        histograms = [case.histograms[score, region] for case in cases]
        values = np.stack([histogram.compute().stack() for histogram in histograms])
        defined = np.isfinite(values).sum(axis=0)
        means = estimate(mean_statistic(values), len(cases), counted=defined)
        used = sum(len(histogram.bins) > 0 for histogram in histograms)
        with_ood = sum(bool(histogram.positive.any()) for histogram in histograms)
        pooled = estimate(
            pooled_statistic(histograms),
            len(cases),
            counted=np.full(len(METRICS), used),
            support=np.full(len(METRICS), with_ood),
        )
        for pooling, estimates in zip(POOLINGS, (means, pooled), strict=True):
            for metric, value in zip(METRICS, estimates, strict=True):
                result[f'ood/{score}/{region}/{pooling}/{metric}'] = value
    return result


def _case_estimates(
    cases: Sequence[CaseMeasurement], score: str, estimate: Estimator
) -> dict[str, Estimate]:
    """AUC of OOD against inlier cases."""
    state = CaseScores.empty()
    for case in cases:
        state = state.update(case.case, case.case_scores[score], case.is_ood)
    num_ood = sum(case.is_ood for case in cases)
    support = np.array([min(num_ood, len(cases) - num_ood)])
    (auc,) = estimate(state.statistic(), len(cases), support=support)
    return {f'ood_case/{score}/auc': auc}


def _headline(score: str) -> list[str]:
    """The numbers of the paper's tables: MaxQuery Tab. 1 and the 'Avg.' of Tab. 2."""
    voxel = [f'ood/{score}/organ/case_mean/{metric}' for metric in METRICS]
    return [*voxel, f'ood_case/{score}/auc', 'dice_mean/tumour/case_mean']


def _policy(resamples: int, seed: int, dilate_mm: float) -> dict[str, Any]:
    return {
        'dice': {
            'cases': 'inlier cases: no OOD voxel in the truth',
            'both_empty': 'undefined, skipped and counted',
            'truth_empty': 'zero in case_mean, left out of present_mean',
            'class_mean': 'unweighted mean over the classes that any case defines',
        },
        'ood': {
            'positives': 'voxels whose truth has the role ood',
            'negatives': 'all other voxels of the region',
            'organ_region': 'truth with the role organ, tumour or ood, dilated by dilate_mm',
            'dilate_mm': dilate_mm,
            'scores': 'raw, ranked after rounding to float16; rounded_voxels counts changes',
            'case_mean': 'cases without OOD voxels (or nothing else) in the region are skipped',
            'fpr95': 'first threshold, from the highest, with a true positive rate >= 0.95',
            'aupr': 'average precision',
        },
        'ood_case': {
            'score': 'mean anomaly score over predicted tumour; without any, over the predicted '
            'organs, then over the volume (case_score_fallbacks)',
            'positives': 'cases with OOD voxels in the truth',
        },
        'ci95': {
            'method': 'percentile bootstrap over cases',
            'resamples': resamples,
            'seed': seed,
            'undefined': 'null with fewer than two deciding cases, or when more than half of the '
            'resamples leave the metric undefined',
        },
    }


def _case_entry(case: CaseMeasurement, table: LabelTable, scores: Sequence[str]) -> dict[str, Any]:
    names = [table.names[i] for i in table.known_ids]
    values = case.dice.compute()
    voxels: dict[str, Any] = {
        score: {
            region: {
                metric: _number(value)
                for metric, value in zip(
                    METRICS, case.histograms[score, region].compute().stack(), strict=True
                )
            }
            for region in REGIONS
        }
        for score in scores
    }
    return {
        'case': case.case,
        'is_ood': case.is_ood,
        'ood_voxels': case.ood_voxels,
        'dice': {name: _number(value) for name, value in zip(names, values, strict=True)},
        'ood': voxels,
        'case_score': dict(case.case_scores),
        'case_score_fallback': case.fallback,
    }


def _entry(estimate: Estimate) -> dict[str, Any]:
    return {
        'value': _number(estimate.value),
        'ci95': [_number(estimate.low), _number(estimate.high)],
        'n': estimate.n,
        'skipped': estimate.skipped,
    }


def _number(value: float) -> float | None:
    return round(float(value), _DIGITS) if math.isfinite(value) else None


def _flatten(value: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = {}
    for key, item in value.items():
        parts |= _flatten(item, f'{prefix}/{key}' if prefix else key)
    return parts
