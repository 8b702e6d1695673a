"""Measures one predicted case: counts and histograms that merge over cases."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.inference.scores import case_ood_score
from maxquery_jax.metrics.dice import DiceCounts
from maxquery_jax.metrics.ood import ScoreHistogram, dilate_region
from maxquery_jax.report.predictions import (
    CaseFiles,
    PredictionSet,
    check_same_grid,
    read_score,
    read_segmentation,
    read_truth,
)

REGIONS = ('organ', 'whole')
"""Where voxels are ranked: organ, tumour and OOD truth (dilated on request), or everywhere."""


@dataclasses.dataclass(frozen=True)
class CaseMeasurement:
    """What is kept of a case; a few MB at most, whatever its size.

    Attributes:
        case: id.
        dice: voxel counts of the known foreground classes.
        ood_voxels: OOD voxels of the truth; more than none makes it an OOD case.
        histograms: (score, region) to the voxel histogram.
        case_scores: score to the case-level OOD score.
        fallback: region the case score fell back to for want of predicted tumour, else None.
    """

    case: str
    dice: DiceCounts
    ood_voxels: int
    histograms: Mapping[tuple[str, str], ScoreHistogram]
    case_scores: Mapping[str, float]
    fallback: str | None

    @property
    def is_ood(self) -> bool:
        """Whether the truth holds an unknown tumour."""
        return self.ood_voxels > 0


def measure_cases(
    predictions: PredictionSet,
    *,
    dilate_mm: float = 0.0,
    on_case: Callable[[str], object] = lambda case: None,
) -> list[CaseMeasurement]:
    """Measures every case, one at a time.

    Args:
        predictions: cases with truth.
        dilate_mm: margin around the organ region.
        on_case: called with the id of each case that is done.

    Raises:
        UserError: a file is missing, damaged or does not fit; names it.
    """
    measurements = []
    for case in predictions.cases:
        measurements.append(measure_case(case, predictions, dilate_mm=dilate_mm))
        on_case(case.case)
    return measurements


def measure_case(
    case: CaseFiles, predictions: PredictionSet, *, dilate_mm: float = 0.0
) -> CaseMeasurement:
    """Measures a case; see `measure_cases`."""
    table = predictions.table
    segmentation, grid = read_segmentation(case, table)
    truth, truth_volume = read_truth(case, predictions)
    check_same_grid(grid, truth_volume)
    is_ood = table.mask(truth, 'ood')
    organ = table.mask(truth, 'organ', 'tumour', 'ood')
    regions = {'organ': dilate_region(organ, grid.header.spacing_mm, dilate_mm), 'whole': None}
    histograms: dict[tuple[str, str], ScoreHistogram] = {}
    case_scores: dict[str, float] = {}
    fallbacks = []
    for name in predictions.scores:
        score = read_score(case, name)
        check_same_grid(grid, score)
        for region, mask in regions.items():
            histograms[name, region] = _histogram(score.array, is_ood, mask, case, name)
        stored = _stored_case_score(case, name)
        if stored is None:
            result = case_ood_score(segmentation, score.array, table.class_groups)
            stored = result.value, result.fallback
        case_scores[name] = stored[0]
        fallbacks.append(stored[1])
    return CaseMeasurement(
        case.case,
        DiceCounts.empty(table.known_ids).update(segmentation, truth),
        int(is_ood.sum()),
        histograms,
        case_scores,
        fallbacks[0],  # the prediction decides it, not the score
    )


def _histogram(
    score: np.ndarray, is_ood: np.ndarray, mask: np.ndarray | None, case: CaseFiles, name: str
) -> ScoreHistogram:
    try:
        return ScoreHistogram.empty().update(score, is_ood, mask)
    except ValueError as error:
        raise UserError(f'{case.scores[name]}: {error}; predict this case again') from error


def _stored_case_score(case: CaseFiles, score: str) -> tuple[float, str | None] | None:
    """Case score and fallback region that `launch.predict` wrote, None where it did not.

    Raises:
        UserError: what stands there is no finite number.
    """
    if score == next(iter(case.scores)):
        value, fallback = case.info.get('case_ood_score'), case.info.get('case_ood_fallback')
    else:
        record = case.info.get('scores', {}).get(score, {})
        value, fallback = record.get('case'), record.get('fallback')
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        where = case.segmentation.parent / f'{case.case}.json'
        raise UserError(
            f'{where}: the case score of {score} must be a finite number, got {value!r}; '
            'predict again'
        )
    return float(value), str(fallback) if fallback else None
