"""Measures one predicted case: counts and histograms that merge over cases."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from maxquery_jax.data.orientation import apply, find_orientation
from maxquery_jax.errors import UserError
from maxquery_jax.inference.scores import case_ood_score
from maxquery_jax.metrics.dice import DiceCounts
from maxquery_jax.metrics.lesions import MIN_VOLUME_ML, OVERLAP, LesionCounts, LesionGroup
from maxquery_jax.metrics.ood import ScoreHistogram, dilate_region, interior
from maxquery_jax.metrics.surface import NSD_TOLERANCE_MM, SurfaceMetrics, measure_surfaces
from maxquery_jax.report.case_files import (
    CaseFiles,
    PredictionSet,
    check_same_grid,
    read_score,
    read_segmentation,
    read_truth,
)
from maxquery_jax.report.labels import LabelTable

REGIONS = ('organ', 'host', 'interior', 'whole')
"""Where voxels are ranked: organ, tumour and OOD truth (dilated on request); of these the organs
that the case's OOD classes grow in, with all tumours there; the first without its outermost voxels;
or everywhere."""


POOLED_LESIONS = ('tumour', 'ood')
"""Lesions of all tumours joined, known and unknown, and of all unknown ones."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choices that the numbers depend on; they are recorded in the summary's policy.

    Attributes:
        dilate_mm: margin around the organ region.
        nsd_tolerance_mm: see `metrics.surface`.
        min_lesion_ml: smaller components are no lesions, see `metrics.lesions`.
        lesion_overlap: share of a lesion that has to be covered, likewise.
    """

    dilate_mm: float = 0.0
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM
    min_lesion_ml: float = MIN_VOLUME_ML
    lesion_overlap: float = OVERLAP

    def validate(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: one is negative, not finite or, for a share, above 1.
        """
        for name, limit, what in (
            ('dilate_mm', math.inf, 'a distance of 0 or more'),
            ('nsd_tolerance_mm', math.inf, 'a distance of 0 or more'),
            ('min_lesion_ml', math.inf, 'a volume of 0 or more'),
            ('lesion_overlap', 1.0, 'a share from 0 to 1'),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= limit):
                raise UserError(f'{name} must be {what}, got {value}')


DEFAULTS = Settings()


@dataclasses.dataclass(frozen=True)
class CaseMeasurement:
    """What is kept of a case; a few MB at most, whatever its size.

    Attributes:
        case: id.
        dice: voxel counts of the classes that may be predicted (`LabelTable.predicted_ids`).
        tumour_dice: voxel counts of all tumours, known and unknown, joined to one.
        surfaces: NSD and HD95 of the same classes.
        lesions: of each tumour and OOD class.
        pooled_lesions: of `POOLED_LESIONS`.
        ood_class_voxels: OOD classes that the truth holds, id to voxels.
        histograms: (score, region) to the voxel histogram.
        class_histograms: the same with the id of each OOD class that the truth holds in front: its
            voxels against all that are not OOD.
        case_scores: score to the case-level OOD score.
        fallback: region the case score fell back to for want of predicted tumour, else None.
    """

    case: str
    dice: DiceCounts
    tumour_dice: DiceCounts
    surfaces: SurfaceMetrics
    lesions: LesionCounts
    pooled_lesions: LesionCounts
    ood_class_voxels: Mapping[int, int]
    histograms: Mapping[tuple[str, str], ScoreHistogram]
    class_histograms: Mapping[tuple[int, str, str], ScoreHistogram]
    case_scores: Mapping[str, float]
    fallback: str | None

    @property
    def is_ood(self) -> bool:
        """Whether the truth holds a tumour that no training label showed."""
        return self.ood_voxels > 0

    @property
    def ood_voxels(self) -> int:
        """OOD voxels of the truth."""
        return sum(self.ood_class_voxels.values())


def measure_cases(
    predictions: PredictionSet,
    *,
    settings: Settings = DEFAULTS,
    on_case: Callable[[str], object] = lambda case: None,
) -> list[CaseMeasurement]:
    """Measures every case, one at a time.

    Args:
        predictions: cases with truth.
        settings: tolerances and margins.
        on_case: called with the id of each case that is done.

    Raises:
        UserError: a file is missing, damaged or does not fit; names it.
    """
    measurements = []
    for case in predictions.cases:
        measurements.append(measure_case(case, predictions, settings))
        on_case(case.case)
    return measurements


def measure_case(
    case: CaseFiles, predictions: PredictionSet, settings: Settings = DEFAULTS
) -> CaseMeasurement:
    """Measures a case; see `measure_cases`."""
    table = predictions.table
    segmentation, grid = read_segmentation(case, table)
    truth, truth_volume = read_truth(case, predictions)
    check_same_grid(grid, truth_volume)
    is_ood, present = table.mask(truth, 'ood'), _count(truth, table.ids('ood'))
    shapes = _measure_shapes(segmentation, truth, grid.header.affine, table, settings)
    regions = _regions(truth, present, table, grid.header.spacing_mm, settings.dilate_mm)
    histograms: dict[tuple[str, str], ScoreHistogram] = {}
    class_histograms: dict[tuple[int, str, str], ScoreHistogram] = {}
    case_scores: dict[str, float] = {}
    fallbacks = []
    for name in predictions.scores:
        score = read_score(case, name)
        check_same_grid(grid, score)
        ranked: dict[int, _Ranked] = {}
        for region, mask in regions.items():
            if id(mask) not in ranked:  # host may be the very mask of organ
                rank = functools.partial(_histogram, score.array, case=case, name=name)
                ranked[id(mask)] = _rank(rank, truth, is_ood, present, mask)
            histograms[name, region], own = ranked[id(mask)]
            class_histograms |= {(i, name, region): found for i, found in own.items()}
        stored = _stored_case_score(case, name)
        if stored is None:
            result = case_ood_score(segmentation, score.array, table.class_groups)
            stored = result.value, result.fallback
        case_scores[name] = stored[0]
        fallbacks.append(stored[1])
    return CaseMeasurement(
        case.case,
        DiceCounts.empty(table.predicted_ids).update(segmentation, truth),
        *shapes,
        present,
        histograms,
        class_histograms,
        case_scores,
        fallbacks[0],  # the prediction decides it, not the score
    )


def lesion_groups(table: LabelTable) -> tuple[LesionGroup, ...]:
    """A group per tumour class and per OOD class; only zero-shot ones of these can be named."""
    named = table.tumour_ids
    return tuple(
        LesionGroup(table.names[i], (i,), (i,) if i in named else ())
        for i in (*table.ids('tumour'), *table.ids('ood'))
    )


def pooled_lesion_groups(table: LabelTable) -> tuple[LesionGroup, ...]:
    """The groups `POOLED_LESIONS`."""
    tumours, unknown = table.ids('tumour'), table.ids('ood')
    return (
        LesionGroup('tumour', (*tumours, *unknown), table.tumour_ids),
        LesionGroup('ood', unknown, table.zero_shot_ids),
    )


_Ranked = tuple[ScoreHistogram, dict[int, ScoreHistogram]]
"""Of all OOD voxels, and of those of each OOD class."""


def _rank(
    rank: Callable[..., ScoreHistogram],
    truth: np.ndarray,
    is_ood: np.ndarray,
    present: Collection[int],
    mask: np.ndarray | None,
) -> _Ranked:
    """Histograms of one score in one region."""
    whole = rank(is_ood, mask)
    if len(present) < 2:
        return whole, dict.fromkeys(present, whole)
    own = {i: truth == i for i in present}
    return whole, {i: rank(own[i], _without_others(is_ood, own[i], mask)) for i in present}


def _regions(
    truth: np.ndarray,
    present: Collection[int],
    table: LabelTable,
    spacing_mm: tuple[float, ...],
    dilate_mm: float,
) -> dict[str, np.ndarray | None]:
    """Mask of each of `REGIONS`; `host` is the very mask of `organ` where no name tells it."""
    organ = dilate_region(table.mask(truth, 'organ', 'tumour', 'ood'), spacing_mm, dilate_mm)
    hosts = [table.hosts(i) for i in present]
    host = organ
    if hosts and all(hosts):
        organs = {i for ids in hosts for i in ids}
        others = [i for i in table.ids('tumour', 'ood') if organs & {*table.hosts(i)}]
        inside = np.isin(truth, [*organs, *others, *present])
        host = dilate_region(inside, spacing_mm, dilate_mm)
    return {'organ': organ, 'host': host, 'interior': interior(organ), 'whole': None}


def _count(truth: np.ndarray, ids: Sequence[int]) -> dict[int, int]:
    """Voxels of those of some ids that a label map holds."""
    counts = DiceCounts.empty(ids).update(truth, truth).truth
    return {i: int(count) for i, count in zip(ids, counts, strict=True) if count}


def _without_others(is_ood: np.ndarray, own: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The region in which one OOD class is ranked: other OOD voxels are no negatives of it."""
    rest = own | ~is_ood
    return rest if mask is None else rest & mask


def _measure_shapes(
    segmentation: np.ndarray,
    truth: np.ndarray,
    affine: np.ndarray,
    table: LabelTable,
    settings: Settings,
) -> tuple[DiceCounts, SurfaceMetrics, LesionCounts, LesionCounts]:
    """Tumour Dice, surfaces and lesions, in canonical order: the file's order must not matter."""
    orientation = find_orientation(affine, segmentation.shape)
    views = [apply(labels, orientation) for labels in (segmentation, truth)]
    box = _foreground_box(views)
    predicted, true = (np.ascontiguousarray(view[box]) for view in views)
    tumours = table.tumour_ids
    any_tumour = DiceCounts.empty((1,)).update(
        np.isin(predicted, tumours).view(np.uint8),
        np.isin(true, (*tumours, *table.ids('ood'))).view(np.uint8),
    )
    surfaces = measure_surfaces(
        predicted, true, table.predicted_ids, orientation.spacing_mm, settings.nsd_tolerance_mm
    )
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    lesions, pooled = (
        LesionCounts.empty(groups).update(
            predicted,
            true,
            tumours,
            voxel_ml,
            min_volume_ml=settings.min_lesion_ml,
            overlap=settings.lesion_overlap,
        )
        for groups in (lesion_groups(table), pooled_lesion_groups(table))
    )
    return any_tumour, surfaces, lesions, pooled


def _foreground_box(arrays: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Smallest box outside of which all arrays are 0."""
    box = []
    for axis in range(arrays[0].ndim):
        others = tuple(i for i in range(arrays[0].ndim) if i != axis)
        used = np.flatnonzero(np.any([array.any(axis=others) for array in arrays], axis=0))
        box.append(slice(used[0], used[-1] + 1) if used.size else slice(0, 0))
    return tuple(box)


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
