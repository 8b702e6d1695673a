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
from collections.abc import Sequence
from typing import Any

from maxquery_jax.data.groups import Groups
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json, write_text
from maxquery_jax.metrics import bootstrap as bootstrap_lib
from maxquery_jax.metrics.bootstrap import Estimate
from maxquery_jax.metrics.lesions import COUNTS, LesionCounts
from maxquery_jax.metrics.ood import METRICS
from maxquery_jax.report.estimates import (
    Estimates,
    Estimator,
    class_mean_estimates,
    class_voxel_estimates,
    estimate_all,
)
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.measure import DEFAULTS, REGIONS, CaseMeasurement, Settings

FORMAT = 'maxquery_jax/summary'
VERSION = 2
FALLBACKS = ('organ', 'volume')
"""Regions of a case score where no tumour was predicted."""

_DIGITS = 10  # of a rate; beyond is the noise of summation order


def summarise(
    measurements: Sequence[CaseMeasurement],
    table: LabelTable,
    scores: Sequence[str],
    *,
    name: str = '',
    resamples: int = bootstrap_lib.NUM_RESAMPLES,
    seed: int = 0,
    settings: Settings = DEFAULTS,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Computes every metric over cases, and over those of each group.

    Args:
        measurements: one per case, at least one; order does not matter.
        table: classes.
        scores: score names, the default one first.
        name: what was evaluated, for titles.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        settings: that the cases were measured with, for the record.
        groups: of some of the cases.

    Returns:
        The content of `summary.json`: plain JSON values, undefined numbers are None.
    """
    cases = sorted(measurements, key=lambda measurement: measurement.case)
    drawing = {'resamples': resamples, 'seed': seed}
    return {
        'format': FORMAT,
        'version': VERSION,
        'name': name,
        'labels': table.to_json(),
        'scores': list(scores),
        'headline': _headline(scores[0]),
        **_over_cases(cases, table, scores, **drawing),
        'groups': _over_groups(cases, table, scores, groups, **drawing) if groups else {},
        'policy': _policy(resamples, seed, settings, bool(table.zero_shot_ids)),
        'cases': [_case_entry(case, table, scores) for case in cases],
    }


def _over_cases(
    cases: Sequence[CaseMeasurement],
    table: LabelTable,
    scores: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Every metric of a set of cases, and how many cases that are."""
    drawing = {'resamples': resamples, 'seed': seed}
    estimates = estimate_all(cases, table, scores, **drawing)
    estimate = functools.partial(bootstrap_lib.bootstrap, **drawing)
    return {
        'metrics': {key: _entry(value) for key, value in estimates.items()},
        **_by_class(cases, table, scores, estimate),
        'counts': _counts(cases, table, scores),
    }


def _over_groups(
    cases: Sequence[CaseMeasurement],
    table: LabelTable,
    scores: Sequence[str],
    groups: Groups,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The metrics of each group as if there were no other cases; those without a value left out."""
    drawing = {'resamples': resamples, 'seed': seed}
    found: dict[str, Any] = {}
    for name in groups.names:
        own = [case for case in cases if groups.group_of.get(case.case) == name]
        found[name] = _over_cases(own, table, scores, **drawing)
        metrics = found[name]['metrics'].items()
        found[name]['metrics'] = {key: e for key, e in metrics if e['value'] is not None}
        found[name]['cases'] = [case.case for case in own]
    return {
        'column': groups.column,
        'ungrouped_cases': sum(case.case not in groups.group_of for case in cases),
        'by_name': found,
    }


def _by_class(
    cases: Sequence[CaseMeasurement], table: LabelTable, scores: Sequence[str], estimate: Estimator
) -> dict[str, Any]:
    """OOD metrics of each OOD class that a case holds, and their means (ZePT Tab. 1)."""
    holders = {i: [case for case in cases if i in case.ood_class_voxels] for i in table.ids('ood')}
    holders = {i: found for i, found in holders.items() if found}
    unknown = [case for case in cases if case.is_ood]

    def entries(regions: dict[str, Estimates]) -> dict[str, Any]:
        return {
            region: {metric: _entry(value) for metric, value in found.items()}
            for region, found in regions.items()
        }

    return {
        'ood_by_class': {
            table.names[i]: {
                'cases': len(found),
                'scores': {
                    s: entries(class_voxel_estimates(found, i, s, estimate)) for s in scores
                },
            }
            for i, found in holders.items()
        },
        'ood_class_mean': {
            s: entries(class_mean_estimates(unknown, list(holders), s, estimate)) for s in scores
        }
        if holders
        else {},
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


def _headline(score: str) -> list[str]:
    """The numbers of the paper's tables: MaxQuery Tab. 1 and the 'Avg.' of Tab. 2."""
    voxel = [f'ood/{score}/organ/case_mean/{metric}' for metric in METRICS]
    return [*voxel, f'ood_case/{score}/auc', 'dice_mean/tumour/case_mean']


def _counts(
    cases: Sequence[CaseMeasurement], table: LabelTable, scores: Sequence[str]
) -> dict[str, Any]:
    """How many cases there are, and how many were measured otherwise than the rest."""
    kinds = {
        'inlier': [case for case in cases if not case.is_ood],
        'ood': [case for case in cases if case.is_ood],
    }
    infinite = [
        sum(
            math.isinf(case.surfaces.hd95_mm[column])
            for case in (cases if i in table.zero_shot_ids else kinds['inlier'])
        )
        for column, i in enumerate(table.predicted_ids)
    ]
    return {
        'cases': len(cases),
        'inlier_cases': len(kinds['inlier']),
        'ood_cases': len(kinds['ood']),
        'case_score_fallbacks': sum(case.fallback is not None for case in cases),
        'case_score_fallbacks_by_kind': {
            kind: {region: sum(case.fallback == region for case in part) for region in FALLBACKS}
            for kind, part in kinds.items()
        },
        'hd95_infinite': dict(zip(_names(table), infinite, strict=True)),
        'rounded_voxels': {
            score: sum(case.histograms[score, 'whole'].rounded for case in cases)
            for score in scores
        },
    }


def _policy(resamples: int, seed: int, settings: Settings, zero_shot: bool) -> dict[str, Any]:
    inlier = 'inlier cases: no OOD voxel in the truth'
    if zero_shot:
        inlier += '; of zero-shot classes (role ood, predicted) all cases'
    return {
        'dice': {
            'cases': inlier,
            'both_empty': 'undefined, skipped and counted',
            'truth_empty': 'zero in case_mean, left out of present_mean',
            'class_mean': 'unweighted mean over the classes that any case defines',
            'any_tumour': 'all tumours, known and unknown, joined, in prediction and truth',
            'nested': 'the most specific class of a voxel counts, in prediction and truth: an '
            'organ is measured without its tumours',
        },
        'surface': {
            'cases': inlier,
            'definition': 'of the surface-distance library: voxel corners weighted by area',
            'nsd_tolerance_mm': settings.nsd_tolerance_mm,
            'both_empty': 'undefined, skipped',
            'one_empty': 'NSD 0; HD95 infinite: null in the case, skipped by the mean and counted '
            'in hd95_infinite',
        },
        'lesion': {
            'cases': f'{inlier}; for OOD lesions OOD cases',
            'lesion': '26-connected component; for any tumour, all tumours are joined first',
            'min_lesion_ml': settings.min_lesion_ml,
            'lesion_overlap': settings.lesion_overlap,
            'found': 'lesion_overlap of its voxels, at least one, lie in predictions of its class '
            '(sensitivity) or of any tumour (sensitivity_any)',
            'matched': 'lesion_overlap of the voxels of a predicted lesion, at least one, lie in '
            'the truth of its class; the others are false positives',
            'rates': 'of counts summed over cases',
        },
        'ood': {
            'positives': 'voxels whose truth has the role ood',
            'negatives': 'all other voxels of the region',
            'organ_region': 'truth with the role organ, tumour or ood, dilated by dilate_mm',
            'dilate_mm': settings.dilate_mm,
            'scores': 'raw, ranked after rounding to float16; rounded_voxels counts changes',
            'by_class': 'positives: voxels of one OOD class; other OOD voxels are left out; mean '
            'over the cases that hold the class, which are resampled',
            'case_mean': 'cases without OOD voxels (or nothing else) in the region are skipped',
            'fpr95': 'first threshold, from the highest, with a true positive rate >= 0.95',
            'aupr': 'average precision',
        },
        'ood_case': {
            'score': 'mean anomaly score over predicted tumour; without any, over the predicted '
            'organs, then over the volume (case_score_fallbacks)',
            'positives': 'cases with OOD voxels in the truth',
            'auc_without_fallback': 'only the cases with predicted tumour',
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
    per_class = {
        'truth_voxels': [int(count) for count in case.dice.truth],
        'dice': [_number(value) for value in case.dice.compute()],
        'nsd': [_number(value) for value in case.surfaces.nsd],
        'hd95': [_number(value) for value in case.surfaces.hd95_mm],
    }
    return {
        'case': case.case,
        'is_ood': case.is_ood,
        'ood_voxels': case.ood_voxels,
        'ood_labels': {table.names[i]: count for i, count in case.ood_class_voxels.items()},
        **{key: dict(zip(_names(table), row, strict=True)) for key, row in per_class.items()},
        'dice_any': {'tumour': _number(case.tumour_dice.compute()[0])},
        'lesions': _lesions(case.lesions),
        'lesions_any': _lesions(case.pooled_lesions),
        'ood': voxels,
        'case_score': dict(case.case_scores),
        'case_score_fallback': case.fallback,
    }


def _lesions(counts: LesionCounts) -> dict[str, dict[str, int]]:
    """Counts by group."""
    return {
        group.name: dict(zip(COUNTS, row.tolist(), strict=True))
        for group, row in zip(counts.groups, counts.counts, strict=True)
    }


def _names(table: LabelTable) -> list[str]:
    """Names of the classes that may be predicted, by id, zero-shot classes last."""
    return [table.names[i] for i in table.predicted_ids]


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
