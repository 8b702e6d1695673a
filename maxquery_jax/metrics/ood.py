"""Voxel and case OOD detection: AUROC, AUPR and FPR95 with constant memory (MaxQuery Sec. 4.2).

Scores are unbounded, so a histogram over a fixed range would need to know it. Anomaly maps are
stored rounded to float16, which has 63,488 finite values: counting voxels per float16 bit
pattern in the order of the values is an exact, mergeable histogram of such a map. Scores of
higher precision are rounded first, and how many that changed is counted.

Definitions: positives are OOD voxels, negatives all other voxels of the region; a larger score
is more anomalous. AUROC counts ties as a half. AUPR is average precision, the sum of precision
times the step in recall over distinct thresholds. FPR95 is the false positive rate at the first
threshold, from the highest, whose true positive rate reaches 0.95. All are NaN when the region
lacks positives or negatives.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.ndimage
import scipy.sparse

from maxquery_jax.metrics.bootstrap import Statistic
from maxquery_jax.metrics.state import iterate_blocks

METRICS = ('auroc', 'aupr', 'fpr95')
TARGET_TPR = 0.95

_PATTERNS = 1 << 16
_NEGATIVE_ZERO = 0x8000
_ELEMENTS = 1 << 20  # resamples x bins evaluated in one go: about 100 MB of float64 temporaries


def _order_patterns() -> np.ndarray:
    """Bit patterns of the finite float16 values by increasing value, -0.0 left out."""
    patterns = np.arange(_PATTERNS, dtype=np.uint16)
    values = patterns.view(np.float16).astype(np.float32)
    finite = patterns[np.isfinite(values) & (patterns != _NEGATIVE_ZERO)]
    return finite[np.argsort(values[finite])]


_PATTERN_ORDER = _order_patterns()


@dataclasses.dataclass(frozen=True)
class RankMetrics:
    """Threshold-free detection metrics, scalars or arrays over leading axes.

    Attributes:
        auroc: area under the receiver operating characteristic.
        aupr: average precision.
        fpr95: false positive rate where the true positive rate first reaches 0.95.
    """

    auroc: np.ndarray
    aupr: np.ndarray
    fpr95: np.ndarray

    def stack(self) -> np.ndarray:
        """[..., 3] in the order of `METRICS`."""
        return np.stack([self.auroc, self.aupr, self.fpr95], axis=-1)


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """Voxels per float16 score, positives and negatives apart; sparse, at most 63,487 bins.

    Attributes:
        bins: [M] increasing ranks of the occurring scores among the finite float16 values.
        positive: [M] OOD voxels with that score.
        negative: [M] other voxels with that score.
        rounded: voxels whose score was not a float16 value.
    """

    bins: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    rounded: int = 0

    @classmethod
    def empty(cls) -> Self:
        """State that has seen nothing."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def update(
        self, score: np.ndarray, is_positive: np.ndarray, region: np.ndarray | None = None
    ) -> Self:
        """Counts the voxels of a map.

        Args:
            score: [D, H, W] float, larger is more anomalous.
            is_positive: [D, H, W] bool, OOD voxels.
            region: [D, H, W] bool, voxels that count; all when not given.

        Raises:
            ValueError: if the shapes differ, or a score inside the region is NaN, infinite or
                beyond float16's range.
        """
        counts = np.zeros((2, _PATTERNS), np.int64)
        rounded = 0
        arrays = (score, is_positive) if region is None else (score, is_positive, region)
        for block_score, block_positive, *block_region in iterate_blocks(*arrays):
            if block_region:
                block_score = block_score[block_region[0]]
                block_positive = block_positive[block_region[0]]
            with np.errstate(over='ignore'):  # overflow becomes inf, refused below
                half = block_score.astype(np.float16)
            rounded += int((half != block_score).sum())
            pattern = half.view(np.uint16)
            is_in = block_positive.astype(bool)
            counts[0] += np.bincount(pattern[is_in], minlength=_PATTERNS)
            counts[1] += np.bincount(pattern[~is_in], minlength=_PATTERNS)
        counts[:, 0] += counts[:, _NEGATIVE_ZERO]  # -0.0 ties with 0.0
        counts[:, _NEGATIVE_ZERO] = 0
        ordered = counts[:, _PATTERN_ORDER]
        bad = int(counts.sum() - ordered.sum())
        if bad:
            raise ValueError(
                f'{bad} anomaly scores are NaN, infinite or beyond the range of float16 (65504)'
            )
        bins = np.flatnonzero(ordered.any(axis=0)).astype(np.int32)
        return self.merge(type(self)(bins, *ordered[:, bins], rounded=rounded))

    def merge(self, other: Self) -> Self:
        """Counts of both."""
        bins = np.union1d(self.bins, other.bins)
        sums = np.zeros((2, len(bins)), np.int64)
        for part in (self, other):
            places = np.searchsorted(bins, part.bins)
            sums[0, places] += part.positive
            sums[1, places] += part.negative
        return type(self)(bins, *sums, rounded=self.rounded + other.rounded)

    def compute(self) -> RankMetrics:
        """Metrics of the counted voxels, scalars."""
        return rank_metrics(self.positive, self.negative)

    def to_json(self) -> dict[str, Any]:
        """Lists of integers."""
        fields = dataclasses.asdict(self)
        return {name: np.asarray(value).tolist() for name, value in fields.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        counts = (np.asarray(data[name], np.int64) for name in ('positive', 'negative'))
        return cls(np.asarray(data['bins'], np.int32), *counts, rounded=int(data['rounded']))


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """Case-level OOD scores (MaxQuery Sec. 4.2), merged by case.

    Attributes:
        scores: case id to mean anomaly score.
        is_ood: case id to whether the truth holds OOD voxels.
    """

    scores: dict[str, float]
    is_ood: dict[str, bool]

    @classmethod
    def empty(cls) -> Self:
        """State that has seen nothing."""
        return cls({}, {})

    def update(self, case: str, score: float, is_ood: bool) -> Self:
        """Adds a case.

        Raises:
            ValueError: if the score is not finite or the case is known already.
        """
        if not np.isfinite(score):
            raise ValueError(f'case score of {case} must be finite, got {score}')
        return self.merge(type(self)({case: float(score)}, {case: bool(is_ood)}))

    def merge(self, other: Self) -> Self:
        """Cases of both.

        Raises:
            ValueError: if a case is in both: it would count twice.
        """
        twice = sorted(self.scores.keys() & other.scores.keys())
        if twice:
            raise ValueError(f'case {twice[0]} was measured twice')
        return type(self)({**self.scores, **other.scores}, {**self.is_ood, **other.is_ood})

    def compute(self) -> float:
        """AUC of OOD against inlier cases; NaN when either kind is absent."""
        if not self.scores:
            return float('nan')
        return float(self.statistic()(np.ones((1, len(self.scores))))[0, 0])

    def statistic(self) -> Statistic:
        """AUC as a function of case weights [R, n] giving [R, 1], for `bootstrap`."""
        cases = list(self.scores)
        is_ood = np.array([self.is_ood[case] for case in cases])
        values, places = np.unique([self.scores[case] for case in cases], return_inverse=True)
        member = np.zeros((len(cases), len(values)))
        member[np.arange(len(cases)), places] = 1.0  # a bin per distinct score

        def statistic(weights: np.ndarray) -> np.ndarray:
            metrics = rank_metrics(
                weights @ (member * is_ood[:, None]), weights @ (member * ~is_ood[:, None])
            )
            return metrics.auroc[:, None]

        return statistic

    def to_json(self) -> dict[str, Any]:
        """Dictionaries by case."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(dict(data['scores']), dict(data['is_ood']))


def rank_metrics(positive: np.ndarray, negative: np.ndarray) -> RankMetrics:
    """AUROC, average precision and FPR95 of binned scores; a bin is a set of tied scores.

    Args:
        positive: [..., M] number of positives per bin, bins by increasing score.
        negative: [..., M] number of negatives per bin.

    Returns:
        Metrics over the leading axes; NaN where positives or negatives are absent.
    """
    positive = np.asarray(positive, np.float64)[..., ::-1]  # from the highest threshold down
    negative = np.asarray(negative, np.float64)[..., ::-1]
    if not positive.shape[-1]:
        undefined = np.full(positive.shape[:-1], np.nan)
        return RankMetrics(undefined, undefined, undefined)
    true_positive = np.cumsum(positive, axis=-1)
    false_positive = np.cumsum(negative, axis=-1)
    num_positive, num_negative = true_positive[..., -1], false_positive[..., -1]
    with np.errstate(invalid='ignore', divide='ignore'):  # absent classes become NaN
        wins = ((true_positive - positive / 2) * negative).sum(axis=-1)
        auroc = wins / (num_positive * num_negative)
        called = true_positive + false_positive
        precision = np.divide(true_positive, called, out=np.zeros_like(called), where=called > 0)
        aupr = (precision * positive).sum(axis=-1) / num_positive
        reached = true_positive / num_positive[..., None] >= TARGET_TPR
        first = np.argmax(reached, axis=-1)[..., None]
        fpr95 = np.take_along_axis(false_positive, first, axis=-1)[..., 0] / num_negative
    defined = (num_positive > 0) & (num_negative > 0)
    return RankMetrics(*(np.where(defined, value, np.nan) for value in (auroc, aupr, fpr95)))


def pooled_statistic(histograms: Sequence[ScoreHistogram]) -> Statistic:
    """Metrics of the summed histograms as a function of case weights, for `bootstrap`.

    Histograms stay sparse and resamples are evaluated in blocks: memory does not depend on
    their number.

    Args:
        histograms: one per case, n of them.

    Returns:
        Function of weights [R, n] giving [R, 3] in the order of `METRICS`.
    """
    bins = np.unique(np.concatenate([histogram.bins for histogram in histograms]))
    starts = np.cumsum([0] + [len(histogram.bins) for histogram in histograms])
    columns = np.concatenate([np.searchsorted(bins, h.bins) for h in histograms])
    positive, negative = (
        scipy.sparse.csr_array(
            (
                np.concatenate([getattr(h, name) for h in histograms]).astype(np.float64),
                columns,
                starts,
            ),
            shape=(len(histograms), len(bins)),
        )
        for name in ('positive', 'negative')
    )
    rows = max(1, _ELEMENTS // max(1, len(bins)))

    def statistic(weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights, np.float64)
        parts = [weights[start : start + rows] for start in range(0, len(weights), rows)]
        return np.concatenate(
            [rank_metrics(part @ positive, part @ negative).stack() for part in parts]
        )

    return statistic


def dilate_region(region: np.ndarray, spacing_mm: Sequence[float], dilate_mm: float) -> np.ndarray:
    """Adds all voxels whose centre lies within a distance of the region.

    Args:
        region: [D, H, W] bool.
        spacing_mm: voxel size along each axis of `region`.
        dilate_mm: distance in mm; 0 leaves the region as it is.

    Returns:
        [D, H, W] bool.
    """
    if dilate_mm <= 0 or not region.any():
        return region
    box = []  # distances are only needed around the region
    for axis, spacing in enumerate(spacing_mm):
        others = tuple(i for i in range(region.ndim) if i != axis)
        places = np.flatnonzero(region.any(axis=others))
        margin = int(np.ceil(dilate_mm / spacing))
        box.append(slice(max(0, places[0] - margin), places[-1] + margin + 1))
    crop = tuple(box)
    distance = scipy.ndimage.distance_transform_edt(~region[crop], sampling=spacing_mm)
    dilated = region.copy()
    dilated[crop] = np.asarray(distance) <= dilate_mm
    return dilated


def interior(region: np.ndarray) -> np.ndarray:
    """A region without its outermost voxels, which hold a part of what lies outside.

    Args:
        region: [D, H, W] bool.

    Returns:
        [D, H, W] bool: voxels whose six neighbours all belong to the region. The end of the volume
        is no border.
    """
    return scipy.ndimage.binary_erosion(region, border_value=1)
