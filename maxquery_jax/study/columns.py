"""Columns of a study's tables: how a number of one seed comes from the cases of its summaries."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.metrics.bootstrap import Statistic, mean_statistic
from maxquery_jax.metrics.ood import METRICS, CaseScores

REGIONS = ('organ', 'interior', 'whole')
POOLINGS = ('case_mean', 'pooled')
TYPES = 'types'  # 'dice/types' stands for one column per tumour type

# name: title, unit, whether lower is better
_VOXEL = {
    'auroc': ('AUROC', '%', False),
    'aupr': ('AUPR', '%', False),
    'fpr95': ('FPR95', '%', True),
}
_CASE = {'case_auc': ('case AUC', '%', False)}
_CLASS = {
    'dice': ('inlier tumour Dice', '%', False),
    'dice_present': ('Dice, cases that hold the type', '%', False),
    'nsd': ('NSD', '%', False),
    'hd95': ('HD95', 'mm', True),
    'lesion_sensitivity': ('lesion sensitivity', '%', False),
}
_ANY = {
    'dice_any': ('Dice, tumours of all types as one', '%', False),
    'lesion_sensitivity_any': ('lesion sensitivity, any type', '%', False),
}
_OTHER = {
    'fallbacks': ('case score fell back', 'cases', True),
    'parameters': ('parameters', 'M', True),
    'train_time': ('training time', 'min', True),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: as the study file writes it.
        metric: its first part.
        title: heading.
        unit: '%' (values are fractions), 'mm', 'M', 'min' or 'cases'.
        lower_is_better: whether a smaller value is better.
        region: of `REGIONS`, of voxel metrics.
        pooling: 'case_mean' or 'pooled', of voxel metrics.
        tumour: of one tumour type; '' for the mean over the types.
    """

    key: str
    metric: str
    title: str
    unit: str
    lower_is_better: bool
    region: str = ''
    pooling: str = ''
    tumour: str = ''

    @property
    def needs_score(self) -> bool:
        """Whether a row must name an anomaly score for it."""
        return self.metric in _VOXEL or self.metric in _CASE

    @property
    def is_compared(self) -> bool:
        """Whether a difference between two rows is a finding: not of costs and counts."""
        return self.metric not in _OTHER


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of one variant under one seed.

    Attributes:
        cases: entries of the summaries, sorted by case.
        tumours: names of the known tumour types.
        metrics: entries of `summary['metrics']` where all cases come from one summary, else empty.
        parameters: number of parameters, None if unknown.
        train_s: seconds of training, None if unknown.
    """

    cases: Sequence[Mapping[str, Any]]
    tumours: tuple[str, ...]
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    train_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A column of one seed.

    Attributes:
        value: on all cases.
        statistic: function of case weights [R, n] giving [R, 1]; None where only the summary's
            own numbers are at hand.
        per_case: [n] value of each case, NaN where undefined; None where cases have none.
        interval: of the summary, where there is no statistic.
        num_cases: n.
        support: cases that decide the value, such as those that hold OOD voxels; one says nothing
            about the next, so below two there is neither interval nor test.
    """

    value: float
    statistic: Statistic | None = None
    per_case: np.ndarray | None = None
    interval: tuple[float, float] | None = None
    num_cases: int = 0
    support: int = 0


def parse_column(key: str, where: str) -> Column:
    """Reads 'auroc', 'auroc/whole', 'auroc/organ/pooled', 'dice', 'dice/cyst', 'dice/types', ...

    Raises:
        UserError: there is no such column.
    """
    metric, *rest = key.split('/')
    known = _VOXEL | _CASE | _CLASS | _ANY | _OTHER
    if metric not in known:
        raise UserError(f'{where}: no column {key!r}: choose from {", ".join(known)}')
    title, unit, lower = known[metric]
    if metric in _VOXEL:
        region, pooling = (*rest, *('organ', 'case_mean')[len(rest) :])[:2]
        if len(rest) > 2 or region not in REGIONS or pooling not in POOLINGS:
            raise UserError(
                f'{where}: column {key!r}: name a region ({", ".join(REGIONS)}) and a pooling '
                f'({", ".join(POOLINGS)})'
            )
        names = {'organ': '', 'interior': 'organ interior', 'whole': 'whole volume'}
        extra = [names[region], pooling.replace('case_mean', '')]
        suffix = ', '.join(text for text in extra if text)
        title = f'{title} ({suffix})' if suffix else title
        return Column(key, metric, title, unit, lower, region=region, pooling=pooling)
    if rest and (metric not in _CLASS or len(rest) > 1):
        raise UserError(f'{where}: column {key!r} has too many parts')
    if rest and rest[0] != TYPES:
        return class_column(metric, rest[0])
    return Column(key, metric, title, unit, lower, tumour=rest[0] if rest else '')


def class_column(metric: str, tumour: str) -> Column:
    """A column of one tumour type."""
    title, unit, lower = _CLASS[metric]
    title = tumour if metric == 'dice' else f'{title}: {tumour}'
    return Column(f'{metric}/{tumour}', metric, title, unit, lower, tumour=tumour)


def expand(columns: Sequence[Column], tumours: Sequence[str]) -> tuple[Column, ...]:
    """Replaces 'dice/types' and the like by one column per tumour type."""
    found: list[Column] = []
    for column in columns:
        if column.tumour == TYPES:
            found += [class_column(column.metric, name) for name in tumours]
        else:
            found.append(column)
    return tuple(found)


def measure(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """A column of one seed; None where the summaries do not hold it."""
    if column.metric in _VOXEL:
        return _voxel(evaluation, column, score)
    if column.metric == 'case_auc':
        return _case_auc(evaluation, score)
    if column.metric.startswith('lesion_sensitivity'):
        return _lesion_sensitivity(evaluation, column)
    if column.metric == 'dice_any':
        return _class_mean(evaluation, dataclasses.replace(column, tumour='tumour'))
    if column.metric in _CLASS:
        return _class_mean(evaluation, column)
    return _other(evaluation, column)


def _voxel(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    if column.pooling == 'pooled':
        key = f'ood/{score}/{column.region}/pooled/{column.metric}'
        return _of_summary(evaluation.metrics.get(key))
    assert column.metric in METRICS
    values = []
    for case in evaluation.cases:
        if score not in case['ood']:
            return None
        values.append(_nan(case['ood'][score][column.region][column.metric]))
    return _mean(np.array(values)[:, None])


def _case_auc(evaluation: Evaluation, score: str) -> Measured | None:
    state = CaseScores.empty()
    for case in evaluation.cases:
        if score not in case['case_score']:
            return None
        state = state.update(case['case'], case['case_score'][score], case['is_ood'])
    num_ood = sum(state.is_ood.values())
    support = min(num_ood, len(evaluation.cases) - num_ood)
    return Measured(
        state.compute(), state.statistic(), num_cases=len(evaluation.cases), support=support
    )


def _class_mean(evaluation: Evaluation, column: Column) -> Measured | None:
    """Mean over the types of the mean over the inlier cases ('Avg.' of MaxQuery Tab. 2)."""
    key = column.metric.removesuffix('_present')
    present_only = key != column.metric
    names = (column.tumour,) if column.tumour else evaluation.tumours
    needed = (key, 'truth_voxels') if present_only else (key,)
    if not names or any(name not in case for case in evaluation.cases for name in needed):
        return None
    values = np.full((len(evaluation.cases), len(names)), np.nan)
    for row, case in enumerate(evaluation.cases):
        for index, name in enumerate(names):
            if not case['is_ood'] and not (present_only and not case['truth_voxels'][name]):
                values[row, index] = _nan(case[key][name])
    return _mean(values)


def _lesion_sensitivity(evaluation: Evaluation, column: Column) -> Measured | None:
    """Share of the truth's lesions that were found, over types and inlier cases."""
    is_any = column.metric.endswith('_any')
    key = 'lesions_any' if is_any else 'lesions'
    names = ('tumour',) if is_any else ((column.tumour,) if column.tumour else evaluation.tumours)
    if any(key not in case for case in evaluation.cases):
        return None
    truth, found = np.zeros((2, len(evaluation.cases)))
    for row, case in enumerate(evaluation.cases):
        if not case['is_ood']:
            truth[row] = sum(case[key][name]['truth'] for name in names)
            found[row] = sum(case[key][name]['found'] for name in names)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _divide(weights @ found, weights @ truth)[:, None]

    return _with_cases(statistic, _divide(found, truth))


def _other(evaluation: Evaluation, column: Column) -> Measured | None:
    if column.metric == 'fallbacks':
        cases = evaluation.cases
        fell = [case['case_score_fallback'] for case in cases]
        return Measured(float(sum(region is not None for region in fell)))
    value = evaluation.parameters if column.metric == 'parameters' else evaluation.train_s
    scale = 1e6 if column.metric == 'parameters' else 60.0
    return None if value is None else Measured(value / scale)


def _of_summary(entry: Mapping[str, Any] | None) -> Measured | None:
    if entry is None:
        return None
    low, high = entry['ci95']
    return Measured(_nan(entry['value']), interval=(_nan(low), _nan(high)))


def _mean(values: np.ndarray) -> Measured:
    """Mean over the columns of the means over cases of values [n, M]."""
    per_class = mean_statistic(values)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return nan_mean(per_class(weights))[:, None]

    return _with_cases(statistic, nan_mean(values))


def _with_cases(statistic: Callable[[np.ndarray], np.ndarray], per_case: np.ndarray) -> Measured:
    ones = np.ones((1, len(per_case)))
    value = float(statistic(ones)[0, 0])
    support = int(np.isfinite(per_case).sum())
    return Measured(value, statistic, per_case, num_cases=len(per_case), support=support)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
