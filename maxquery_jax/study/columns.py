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
OOD = 'ood'
_GROUPS = {'organ': 'organs', OOD: 'unseen tumours'}  # means over all classes of a role
_SHORT = {'dice_present': 'Dice where present', 'nsd_present': 'NSD where present'}

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
    'nsd_present': ('NSD, cases that hold the type', '%', False),
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
    'gflop': ('forward pass of a patch', 'GFLOP', True),
    'train_time': ('training time', 'min', True),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: as the study file writes it.
        metric: its first part.
        title: heading.
        unit: '%' (values are fractions), 'mm', 'M', 'GFLOP', 'min' or 'cases'.
        lower_is_better: whether a smaller value is better.
        region: of `REGIONS`, of voxel metrics.
        pooling: 'case_mean' or 'pooled', of voxel metrics.
        tumour: of one class; of several joined by '+', or of all with the role 'organ' or 'ood',
            the mean over them. '' is, of voxel metrics, all OOD voxels as one, and of the others
            the mean over the known tumour types.
        group: whose cases alone count, such as a subtype; '' for all cases.
    """

    key: str
    metric: str
    title: str
    unit: str
    lower_is_better: bool
    region: str = ''
    pooling: str = ''
    tumour: str = ''
    group: str = ''

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
        ood_by_class: `summary['ood_by_class']` likewise.
        organs: names of the organs.
        zero_shot: names of the OOD classes that the model predicts all the same.
        cohort: `plan.Run.cohort`; what is of one cohort has the same cases.
        parameters: number of parameters, None if unknown.
        gflop: operations of one forward pass of one patch, 1e9, None if unknown.
        train_s: seconds of training, None if unknown.
        group_of: case to its group, of those that are in one.
    """

    cases: Sequence[Mapping[str, Any]]
    tumours: tuple[str, ...]
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ood_by_class: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    organs: tuple[str, ...] = ()
    zero_shot: tuple[str, ...] = ()
    cohort: str = ''
    parameters: int | None = None
    gflop: float | None = None
    train_s: float | None = None
    group_of: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of_group(self, group: str) -> 'Evaluation':
        """The cases of a group alone; what summaries say of all cases is not known of these."""
        cases = [case for case in self.cases if self.group_of.get(case['case']) == group]
        return dataclasses.replace(self, cases=cases, metrics={}, ood_by_class={})


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
        cohort: of the evaluation; cases of different ones are not the same.
    """

    value: float
    statistic: Statistic | None = None
    per_case: np.ndarray | None = None
    interval: tuple[float, float] | None = None
    num_cases: int = 0
    support: int = 0
    cohort: str = ''


def parse_column(key: str, where: str) -> Column:
    """Reads 'auroc', 'auroc/organ/pooled', 'auroc/colon_tumor', 'dice/cyst', 'dice/types', ...

    '@GROUP' at the end of any of these is the same over the cases of one group.

    Raises:
        UserError: there is no such column.
    """
    whole, at, group = key.partition('@')
    if at:
        column = parse_column(whole, where)
        if group and column.is_compared and column.pooling != 'pooled':
            return _of_group(column, group)
        raise UserError(f'{where}: column {key!r}: name a group behind a mean over cases')
    metric, *rest = key.split('/')
    known = _VOXEL | _CASE | _CLASS | _ANY | _OTHER
    if metric not in known:
        raise UserError(f'{where}: no column {key!r}: choose from {", ".join(known)}')
    if metric in _VOXEL:
        return _parse_voxel_column(key, metric, rest, where)
    if rest and (metric not in _CLASS or len(rest) > 1):
        raise UserError(f'{where}: column {key!r} has too many parts')
    if rest and rest[0] != TYPES:
        return class_column(metric, rest[0])
    return Column(key, metric, *known[metric], tumour=rest[0] if rest else '')


def _parse_voxel_column(key: str, metric: str, parts: Sequence[str], where: str) -> Column:
    """Of METRIC[/REGION[/POOLING]], or METRIC/CLASS[/REGION]."""
    title, unit, lower = _VOXEL[metric]
    rest = list(parts)
    tumour = rest.pop(0) if rest and rest[0] not in REGIONS else ''
    region, pooling = (*rest, *('organ', 'case_mean')[len(rest) :])[:2]
    if len(rest) > (1 if tumour else 2) or region not in REGIONS or pooling not in POOLINGS:
        raise UserError(
            f'{where}: column {key!r}: name a region ({", ".join(REGIONS)}) and a pooling '
            f'({", ".join(POOLINGS)}), or a class and a region'
        )
    names = {'organ': '', 'interior': 'organ interior', 'whole': 'whole volume'}
    extra = [names[region], pooling.replace('case_mean', '')]
    suffix = ', '.join(text for text in extra if text)
    title = f'{title} ({suffix})' if suffix else title
    title = f'{title}: {_class_title(tumour)}' if tumour else title
    return Column(key, metric, title, unit, lower, region=region, pooling=pooling, tumour=tumour)


def class_column(metric: str, tumour: str) -> Column:
    """A column of one class, or of several; see `Column.tumour`."""
    title, unit, lower = _CLASS[metric]
    label = _class_title(tumour)
    if metric == 'dice':
        title = f'Dice, {label}' if label != tumour else label
    else:
        title = f'{_SHORT.get(metric, title)}: {label}'
    return Column(f'{metric}/{tumour}', metric, title, unit, lower, tumour=tumour)


def _of_group(column: Column, group: str) -> Column:
    named = {'key': f'{column.key}@{group}', 'title': f'{column.title} @ {group}'}
    return dataclasses.replace(column, group=group, **named) if group else column


def _class_title(tumour: str) -> str:
    names = tumour.split('+')
    label = f'{len(names)} classes' if len(names) > 1 else _GROUPS.get(tumour, tumour)
    return label if label == tumour else f'mean of {label}'


def expand(columns: Sequence[Column], tumours: Sequence[str]) -> tuple[Column, ...]:
    """Replaces 'dice/types' and the like by one column per tumour type."""
    found: list[Column] = []
    for column in columns:
        if column.tumour == TYPES:
            found += [_of_group(class_column(column.metric, n), column.group) for n in tumours]
        else:
            found.append(column)
    return tuple(found)


def measure(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """A column of one seed; None where the summaries do not hold it, or its group has no case."""
    evaluation = evaluation.of_group(column.group) if column.group else evaluation
    if not evaluation.cases:
        return None
    if column.metric in _VOXEL:
        measured = _class_voxel if column.tumour else _voxel
        return measured(evaluation, column, score)
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


def _class_voxel(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """Voxels of OOD classes, each over the cases that hold it; the unweighted mean of several."""
    cases = evaluation.cases
    if any('ood_labels' not in case or score not in case['ood'] for case in cases):
        return None
    held = dict.fromkeys(name for case in cases for name in case['ood_labels'])
    names = tuple(held) if column.tumour == OOD else tuple(column.tumour.split('+'))
    values = np.full((len(cases), len(names)), np.nan)
    for row, case in enumerate(cases):
        for index, name in enumerate(names):
            if name in case['ood_labels']:
                if len(case['ood_labels']) > 1:  # its own value counts other classes too
                    return _summary_class_voxel(evaluation, column, score)
                values[row, index] = _nan(case['ood'][score][column.region][column.metric])
    return _mean(values, of_all=True) if names else None


def _summary_class_voxel(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """The summary's own number of one class, where those of the cases are not at hand."""
    scores = evaluation.ood_by_class.get(column.tumour, {}).get('scores', {})
    return _of_summary(scores.get(score, {}).get(column.region, {}).get(column.metric))


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
    """Mean over classes of the mean over cases ('Avg.' of MaxQuery Tab. 2).

    Inlier cases, or all cases where it is about a class that the model predicts unseen.
    """
    key = column.metric.removesuffix('_present')
    present_only = key != column.metric
    names = _class_names(evaluation, column)
    needed = (key, 'truth_voxels') if present_only else (key,)
    if not names or not _hold(evaluation.cases, needed, names):
        return None
    values = np.full((len(evaluation.cases), len(names)), np.nan)
    for row, case in enumerate(evaluation.cases):
        for index, name in enumerate(names):
            present = not present_only or case['truth_voxels'][name]
            if present and _is_counted(evaluation, case, name):
                values[row, index] = _nan(case[key][name])
    return _mean(values, of_all='+' in column.tumour)


def _class_names(evaluation: Evaluation, column: Column) -> tuple[str, ...]:
    groups = {'': evaluation.tumours, 'organ': evaluation.organs, OOD: evaluation.zero_shot}
    return groups.get(column.tumour, tuple(column.tumour.split('+')))


def _hold(cases: Sequence[Mapping[str, Any]], keys: Sequence[str], names: Sequence[str]) -> bool:
    """Whether all cases have these keys, and these classes under each."""
    return all(name in case.get(key, ()) for case in cases for key in keys for name in names)


def _is_counted(evaluation: Evaluation, case: Mapping[str, Any], name: str) -> bool:
    return not case['is_ood'] or name in evaluation.zero_shot


def _lesion_sensitivity(evaluation: Evaluation, column: Column) -> Measured | None:
    """Share of the truth's lesions that were found, over classes and cases as in `_class_mean`."""
    is_any = column.metric.endswith('_any')
    key = 'lesions_any' if is_any else 'lesions'
    names = ('tumour',) if is_any else _class_names(evaluation, column)
    if not _hold(evaluation.cases, (key,), names):
        return None
    truth, found = np.zeros((2, len(evaluation.cases)))
    for row, case in enumerate(evaluation.cases):
        counted = [name for name in names if _is_counted(evaluation, case, name)]
        truth[row] = sum(case[key][name]['truth'] for name in counted)
        found[row] = sum(case[key][name]['found'] for name in counted)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _divide(weights @ found, weights @ truth)[:, None]

    return _with_cases(statistic, _divide(found, truth))


def _other(evaluation: Evaluation, column: Column) -> Measured | None:
    if column.metric == 'fallbacks':
        fell = [case['case_score_fallback'] for case in evaluation.cases]
        return Measured(float(sum(region is not None for region in fell)))
    value, scale = {
        'parameters': (evaluation.parameters, 1e6),
        'gflop': (evaluation.gflop, 1.0),
        'train_time': (evaluation.train_s, 60.0),
    }[column.metric]
    return None if value is None else Measured(value / scale)


def _of_summary(entry: Mapping[str, Any] | None) -> Measured | None:
    if entry is None:
        return None
    low, high = entry['ci95']
    return Measured(_nan(entry['value']), interval=(_nan(low), _nan(high)))


def _mean(values: np.ndarray, *, of_all: bool = False) -> Measured:
    """Mean over the columns of the means over cases of values [n, M].

    Args:
        values: NaN where undefined.
        of_all: whether the mean is undefined as soon as one column is; its support is then that
            of the column with the fewest cases.
    """
    per_class = mean_statistic(values)

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = per_class(weights)
        return (means.mean(axis=-1) if of_all else nan_mean(means))[:, None]

    measured = _with_cases(statistic, nan_mean(values))
    if not of_all:
        return measured
    return dataclasses.replace(measured, support=int(np.isfinite(values).sum(axis=0).min()))


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
