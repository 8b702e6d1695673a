"""What a column shows of one seed: numbers from the cases of its summaries."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.metrics.bootstrap import Statistic, mean_statistic
from maxquery_jax.metrics.ood import METRICS, CaseScores
from maxquery_jax.study.columns import CLASS_METRICS, OOD, VOXEL_METRICS, Column


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


def measure(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """A column of one seed; None where the summaries do not hold it, or its group has no case."""
    evaluation = evaluation.of_group(column.group) if column.group else evaluation
    if not evaluation.cases:
        return None
    if column.metric in VOXEL_METRICS:
        measured = _class_voxel if column.tumour else _voxel
        return measured(evaluation, column, score)
    if column.metric == 'case_auc':
        return _case_auc(evaluation, score)
    if column.metric.startswith('lesion_sensitivity'):
        return _lesion_sensitivity(evaluation, column)
    if column.metric == 'dice_any' and column.tumour:
        return _any_of_classes(evaluation, column)
    if column.metric == 'dice_any':
        return _class_mean(evaluation, dataclasses.replace(column, tumour='tumour'))
    if column.metric in CLASS_METRICS:
        return _class_mean(evaluation, column)
    return _other(evaluation, column)


def _voxel(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    if column.pooling == 'pooled':
        key = f'ood/{score}/{column.region}/pooled/{column.metric}'
        return _of_summary(evaluation.metrics.get(key))
    assert column.metric in METRICS
    values = []
    for case in evaluation.cases:
        if column.region not in case['ood'].get(score, ()):  # or a summary from before the region
            return None
        values.append(_nan(case['ood'][score][column.region][column.metric]))
    return _mean(np.array(values)[:, None])


def _class_voxel(evaluation: Evaluation, column: Column, score: str) -> Measured | None:
    """Voxels of OOD classes, each over the cases that hold it; the unweighted mean of several."""
    cases = evaluation.cases
    if any(
        'ood_labels' not in case or column.region not in case['ood'].get(score, ())
        for case in cases
    ):
        return None
    names = set(_ood_names(cases, column))
    if any(len(case['ood_labels']) > 1 and names & {*case['ood_labels']} for case in cases):
        # The value of such a case counts its other classes too.
        return _summary_class_voxel(evaluation, column, score)
    return _mean_of_ood(
        cases, column, lambda case: case['ood'][score][column.region][column.metric]
    )


def _any_of_classes(evaluation: Evaluation, column: Column) -> Measured | None:
    """Dice of any tumour over the cases that hold each OOD class; the mean of several classes."""
    cases = evaluation.cases
    if any('ood_labels' not in case for case in cases):
        return None
    return _mean_of_ood(cases, column, lambda case: case['dice_any']['tumour'])


def _mean_of_ood(
    cases: Sequence[Mapping[str, Any]],
    column: Column,
    value_of: Callable[[Mapping[str, Any]], float | None],
) -> Measured | None:
    """Mean over the column's OOD classes of the mean over the cases that hold each."""
    names = _ood_names(cases, column)
    values = np.full((len(cases), len(names)), np.nan)
    for row, case in enumerate(cases):
        for index, name in enumerate(names):
            if name in case['ood_labels']:
                values[row, index] = _nan(value_of(case))
    return _mean(values, of_all=True) if names else None


def _ood_names(cases: Sequence[Mapping[str, Any]], column: Column) -> tuple[str, ...]:
    """The OOD classes that a column is about."""
    held = dict.fromkeys(name for case in cases for name in case['ood_labels'])
    return tuple(held) if column.tumour == OOD else tuple(column.tumour.split('+'))


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
