"""Every metric of a set of cases, each with its interval over cases."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maxquery_jax.metrics.bootstrap import Estimate, Statistic, bootstrap, mean_statistic
from maxquery_jax.metrics.dice import (
    SUMMARIES,
    DiceCounts,
    case_dice,
    class_mean,
    dice_statistic,
)
from maxquery_jax.metrics.lesions import RATES, LesionCounts, deciding_cases, lesion_statistic
from maxquery_jax.metrics.ood import METRICS, CaseScores, pooled_statistic
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.measure import REGIONS, CaseMeasurement

POOLINGS = ('case_mean', 'pooled')
SURFACE_SUMMARIES = {'nsd': ('case_mean', 'present_mean'), 'hd95': ('case_mean',)}
"""HD95 is finite only where truth and prediction both hold the class, so it has one mean."""

Estimator = Callable[..., list[Estimate]]
"""`bootstrap` with its resamples and seed fixed."""

Estimates = dict[str, Estimate]

Columns = tuple[Statistic, np.ndarray]
"""A metric as a function of case weights [R, n] giving [R, K], and [n, K] which cases take part."""

_UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)
_KNOWN = ('organ', 'tumour')


def estimate_all(
    cases: Sequence[CaseMeasurement],
    table: LabelTable,
    scores: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Estimates:
    """Metric name (docs/summary_schema.md) to its estimate.

    Args:
        cases: at least one, sorted by id.
        table: classes.
        scores: score names.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    estimate = functools.partial(bootstrap, resamples=resamples, seed=seed)
    inliers = [case for case in cases if not case.is_ood]
    unknown = [case for case in cases if case.is_ood]
    estimates = dice_estimates(inliers, table, estimate)
    for role, chosen in (('tumour', inliers), ('ood', unknown)):
        estimates |= any_dice_estimates(chosen, role, estimate)
    for metric in SURFACE_SUMMARIES:
        estimates |= surface_estimates(inliers, table, metric, estimate)
    estimates |= lesion_estimates(inliers, unknown, table, estimate)
    if table.zero_shot_ids:
        estimates |= zero_shot_estimates(cases, table, estimate)
    for score in scores:
        estimates |= voxel_estimates(cases, score, estimate)
    for score in scores:
        estimates |= case_estimates(cases, score, estimate)
    return estimates


def dice_estimates(
    cases: Sequence[CaseMeasurement], table: LabelTable, estimate: Estimator
) -> Estimates:
    """Dice per known class and its mean over organs and over tumour types."""
    result: Estimates = {}
    for summary in SUMMARIES:
        columns = _dice_columns([case.dice for case in cases], summary)
        result |= _class_estimates('dice', summary, columns, table, _KNOWN, estimate)
    return result


def any_dice_estimates(
    cases: Sequence[CaseMeasurement], role: str, estimate: Estimator
) -> Estimates:
    """Dice of all tumours joined to one: of 'tumour' over inlier cases, of 'ood' over OOD cases."""
    result: Estimates = {}
    tumour = [case.tumour_dice for case in cases]
    for summary in SUMMARIES:
        key, columns = f'dice_any/{role}/{summary}', _dice_columns(tumour, summary)
        if columns is not None:
            statistic, defined = columns
            result[key] = estimate(statistic, len(cases), counted=defined.sum(axis=0))[0]
        else:
            result[key] = _UNDEFINED
    return result


def surface_estimates(
    cases: Sequence[CaseMeasurement], table: LabelTable, metric: str, estimate: Estimator
) -> Estimates:
    """NSD or HD95 per known class and its mean over organs and over tumour types."""
    result: Estimates = {}
    for summary in SURFACE_SUMMARIES[metric]:
        columns = _surface_columns(cases, metric, summary)
        result |= _class_estimates(metric, summary, columns, table, _KNOWN, estimate)
    return result


def zero_shot_estimates(
    cases: Sequence[CaseMeasurement], table: LabelTable, estimate: Estimator
) -> Estimates:
    """Dice, NSD and HD95 of the OOD classes that are predicted, and their means over classes.

    They are over all cases, since a model that names such a class can be wrong about it anywhere.
    """
    result: Estimates = {}
    for summary in SUMMARIES:
        columns = _dice_columns([case.dice for case in cases], summary)
        result |= _class_estimates('dice', summary, columns, table, ('ood',), estimate)
    for metric, summaries in SURFACE_SUMMARIES.items():
        for summary in summaries:
            columns = _surface_columns(cases, metric, summary)
            result |= _class_estimates(metric, summary, columns, table, ('ood',), estimate)
    return result


def lesion_estimates(
    inliers: Sequence[CaseMeasurement],
    unknown: Sequence[CaseMeasurement],
    table: LabelTable,
    estimate: Estimator,
) -> Estimates:
    """Lesion rates: known tumours over inlier cases, OOD lesions over OOD cases.

    OOD lesions that cannot be called by their name have the sensitivity to any tumour only;
    zero-shot classes have every rate, over all cases.
    """
    tumours = [table.names[i] for i in table.ids('tumour')]
    zero_shot = [table.names[i] for i in table.zero_shot_ids]
    ood = [table.names[i] for i in table.ids('ood') if i not in table.zero_shot_ids]
    every = [*inliers, *unknown]
    pooled = ('ood', every, RATES) if zero_shot else ('ood', unknown, ('sensitivity_any',))
    result: Estimates = {}
    for prefix, cases, names, rates in (
        ('lesion', inliers, tumours, RATES),
        ('lesion', every, zero_shot, RATES),
        ('lesion', unknown, ood, ('sensitivity_any',)),
        ('lesion_any', inliers, ['tumour'], tuple(r for r in RATES if r != 'sensitivity_any')),
        ('lesion_any', pooled[1], ['ood'], pooled[2]),
    ):
        if not names:
            continue
        states = [case.lesions if prefix == 'lesion' else case.pooled_lesions for case in cases]
        estimates = _lesion_rates(states, estimate)
        for name in names:
            for rate in rates:
                result[f'{prefix}/{name}/{rate}'] = estimates.get((name, rate), _UNDEFINED)
    return result


def voxel_estimates(cases: Sequence[CaseMeasurement], score: str, estimate: Estimator) -> Estimates:
    """AUROC, AUPR and FPR95 of one score: every region, per-case mean and pooled."""
    result: Estimates = {}
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


def class_voxel_estimates(
    cases: Sequence[CaseMeasurement], class_id: int, score: str, estimate: Estimator
) -> dict[str, Estimates]:
    """Region to metric: voxels of one OOD class against inlier voxels, mean over cases.

    Args:
        cases: those that hold the class, at least one.
        class_id: of the class.
        score: name.
        estimate: bootstrap over these cases.
    """
    result = {}
    for region in REGIONS:
        values = _class_values(cases, class_id, score, region)
        defined = np.isfinite(values).sum(axis=0)
        estimates = estimate(mean_statistic(values), len(cases), counted=defined)
        result[region] = dict(zip(METRICS, estimates, strict=True))
    return result


def class_mean_estimates(
    cases: Sequence[CaseMeasurement], ids: Sequence[int], score: str, estimate: Estimator
) -> dict[str, Estimates]:
    """Region to metric: unweighted mean over OOD classes, as ZePT averages its unseen tumours.

    Args:
        cases: that hold OOD voxels, at least one.
        ids: of the classes.
        score: name.
        estimate: bootstrap over these cases.
    """
    result: dict[str, Estimates] = {}
    for region in REGIONS:
        values = np.stack([_class_values(cases, i, score, region) for i in ids], axis=-1)
        result[region] = {}
        for row, metric in enumerate(METRICS):
            columns = values[:, row]  # [n, classes]
            mean = class_mean(mean_statistic(columns), range(len(ids)), len(cases))
            defined = np.isfinite(columns)
            counted = defined.any(axis=1).sum(keepdims=True)
            fewest = min((n for n in defined.sum(axis=0) if n), default=0)
            support = np.array([fewest])  # a class of one case does not vary over resamples
            found = estimate(mean, len(cases), counted=counted, support=support)
            result[region][metric] = found[0]
    return result


def _class_values(
    cases: Sequence[CaseMeasurement], class_id: int, score: str, region: str
) -> np.ndarray:
    """[n, 3] metrics of an OOD class per case; NaN where a case does not define them."""
    rows = np.full((len(cases), len(METRICS)), np.nan)
    for row, case in zip(rows, cases, strict=True):
        if class_id in case.ood_class_voxels:
            row[:] = case.class_histograms[class_id, score, region].compute().stack()
    return rows


def case_estimates(cases: Sequence[CaseMeasurement], score: str, estimate: Estimator) -> Estimates:
    """AUC of OOD against inlier cases: of all, and of those that a tumour was predicted in."""
    by_rule = [case for case in cases if case.fallback is None]
    parts = {'auc': cases, 'auc_without_fallback': by_rule}
    return {
        f'ood_case/{score}/{name}': _case_auc(part, len(cases), score, estimate)
        for name, part in parts.items()
    }


def _case_auc(
    cases: Sequence[CaseMeasurement], total: int, score: str, estimate: Estimator
) -> Estimate:
    if not cases:
        return Estimate(math.nan, math.nan, math.nan, 0, total)
    state = CaseScores.empty()
    for case in cases:
        state = state.update(case.case, case.case_scores[score], case.is_ood)
    num_ood = sum(case.is_ood for case in cases)
    support = np.array([min(num_ood, len(cases) - num_ood)])
    (auc,) = estimate(state.statistic(), len(cases), support=support)
    return Estimate(auc.value, auc.low, auc.high, len(cases), total - len(cases))


def _dice_columns(counts: Sequence[DiceCounts], summary: str) -> Columns | None:
    if not counts:
        return None
    which = 'case_mean' if summary == 'pooled' else summary
    return dice_statistic(counts, summary), np.isfinite(case_dice(counts, which))


def _surface_columns(cases: Sequence[CaseMeasurement], metric: str, summary: str) -> Columns | None:
    if not cases:
        return None
    name = {'nsd': 'nsd', 'hd95': 'hd95_mm'}[metric]
    values = np.stack([getattr(case.surfaces, name) for case in cases])
    if summary == 'present_mean':
        values = np.where([case.dice.truth > 0 for case in cases], values, np.nan)
    return mean_statistic(values), np.isfinite(values)


def _class_estimates(
    metric: str,
    summary: str,
    columns: Columns | None,
    table: LabelTable,
    roles: Sequence[str],
    estimate: Estimator,
) -> Estimates:
    """A metric of each predicted class of some roles, and its unweighted mean over each role.

    Args:
        metric: first part of the names.
        summary: last part of the names.
        columns: of all predicted classes; None without cases.
        table: classes.
        roles: of the classes wanted.
        estimate: bootstrap.
    """
    groups = {role: [i for i in table.predicted_ids if table.roles[i] == role] for role in roles}
    ids = sorted(i for members in groups.values() for i in members)
    keys = [f'{metric}/{table.names[i]}/{summary}' for i in ids]
    means = [f'{metric}_mean/{role}/{summary}' for role in groups]
    if columns is None:
        return dict.fromkeys([*keys, *means], _UNDEFINED)
    whole, all_defined = columns
    places = [table.predicted_ids.index(i) for i in ids]
    defined, num_cases = all_defined[:, places], len(all_defined)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return whole(weights)[:, places]

    values = estimate(statistic, num_cases, counted=defined.sum(axis=0))
    result = dict(zip(keys, values, strict=True))
    for key, role in zip(means, groups, strict=True):
        members = [ids.index(i) for i in groups[role]]
        counted = np.array([defined[:, members].any(axis=1).sum()])
        mean = class_mean(statistic, members, num_cases)
        result[key] = estimate(mean, num_cases, counted=counted)[0]
    return result


def _lesion_rates(
    states: Sequence[LesionCounts], estimate: Estimator
) -> Mapping[tuple[str, str], Estimate]:
    """(group, rate) to its estimate; nothing without cases."""
    if not states or not states[0].groups:
        return {}
    counted = deciding_cases(states).ravel()
    estimates = estimate(lesion_statistic(states), len(states), counted=counted)
    keys = [(group.name, rate) for group in states[0].groups for rate in RATES]
    return dict(zip(keys, estimates, strict=True))
