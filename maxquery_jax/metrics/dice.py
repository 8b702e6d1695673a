"""Dice from mergeable voxel counts: per class, per case and pooled (MaxQuery Sec. 4.2).

Policy: Dice is 2|P and T| / (|P| + |T|). Both empty is undefined (NaN, skipped and counted, as in
nnU-Net); an empty truth with a non-empty prediction is 0. Three ways to summarise over cases:

- `case_mean`: mean of the defined per-case values;
- `present_mean`: mean over the cases whose truth holds the class. With one tumour type per
  patient, `case_mean` adds a 0 for every case of another type with a single false voxel;
- `pooled`: one Dice from the summed counts.

Unspecified in the paper: which of them Tab. 2 shows; its 'Avg.' is the unweighted mean over
inlier tumour types, which `class_mean` reproduces from any of the three.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from maxquery_jax.metrics.bootstrap import Statistic, mean_statistic
from maxquery_jax.metrics.state import iterate_blocks

SUMMARIES = ('case_mean', 'present_mean', 'pooled')
_MAX_LABEL = 256  # labels are uint8


@dataclasses.dataclass(frozen=True)
class DiceCounts:
    """Voxel counts of each class in prediction, truth and both.

    Attributes:
        class_ids: label ids that are counted, in order.
        intersection: [K] voxels where prediction and truth both hold the class.
        prediction: [K] voxels predicted as the class.
        truth: [K] voxels of the class in the truth.
    """

    class_ids: tuple[int, ...]
    intersection: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray

    @classmethod
    def empty(cls, class_ids: Sequence[int]) -> Self:
        """State that has seen nothing.

        Raises:
            ValueError: if an id is repeated or outside 0..255.
        """
        ids = tuple(int(i) for i in class_ids)
        if len(set(ids)) != len(ids) or any(not 0 <= i < _MAX_LABEL for i in ids):
            raise ValueError(f'class ids must be distinct and within 0..255, got {ids}')
        return cls(ids, *(np.zeros(len(ids), np.int64) for _ in range(3)))

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> Self:
        """Counts a volume.

        Args:
            prediction: [D, H, W] integer labels, 0..255.
            truth: the same shape.

        Raises:
            ValueError: if the shapes differ or a label is not an integer in 0..255.
        """
        added = np.zeros((3, _MAX_LABEL), np.int64)
        for block_prediction, block_truth in iterate_blocks(prediction, truth):
            block_prediction, block_truth = _as_uint8(block_prediction), _as_uint8(block_truth)
            hits = block_truth[block_prediction == block_truth]
            for row, labels in enumerate((hits, block_prediction, block_truth)):
                added[row] += np.bincount(labels, minlength=_MAX_LABEL)
        intersection, predicted, true = added[:, list(self.class_ids)]
        return type(self)(
            self.class_ids,
            self.intersection + intersection,
            self.prediction + predicted,
            self.truth + true,
        )

    def merge(self, other: Self) -> Self:
        """Counts of both.

        Raises:
            ValueError: if the states count different classes.
        """
        if self.class_ids != other.class_ids:
            raise ValueError(f'cannot merge counts of {self.class_ids} and {other.class_ids}')
        return type(self)(
            self.class_ids,
            self.intersection + other.intersection,
            self.prediction + other.prediction,
            self.truth + other.truth,
        )

    def compute(self) -> np.ndarray:
        """[K] Dice; NaN where prediction and truth are both empty."""
        return dice(self.intersection, self.prediction, self.truth)

    def to_json(self) -> dict[str, Any]:
        """Lists of integers."""
        fields = dataclasses.asdict(self)
        return {name: np.asarray(value).tolist() for name, value in fields.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        counts = (np.asarray(data[k], np.int64) for k in ('intersection', 'prediction', 'truth'))
        return cls(tuple(data['class_ids']), *counts)


def dice(intersection: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """2|P and T| / (|P| + |T|), elementwise; NaN where both are empty."""
    total = np.asarray(prediction + truth, np.float64)
    return np.divide(2.0 * intersection, total, out=np.full(total.shape, np.nan), where=total > 0)


def case_dice(counts: Sequence[DiceCounts], summary: str = 'case_mean') -> np.ndarray:
    """[n, K] Dice of each case, NaN where it does not take part in `summary`.

    Args:
        counts: one state per case.
        summary: 'case_mean' or 'present_mean', see the module.
    """
    values = np.stack([count.compute() for count in counts])
    if summary == 'present_mean':
        values[np.stack([count.truth for count in counts]) == 0] = np.nan
    return values


def dice_statistic(counts: Sequence[DiceCounts], summary: str) -> Statistic:
    """Dice per class as a function of case weights, for `bootstrap`.

    Args:
        counts: one state per case, n of them.
        summary: one of `SUMMARIES`.

    Returns:
        Function of weights [R, n] giving [R, K].

    Raises:
        ValueError: on another summary.
    """
    if summary not in SUMMARIES:
        raise ValueError(f'summary must be one of {SUMMARIES}, got {summary!r}')
    if summary != 'pooled':
        return mean_statistic(case_dice(counts, summary))
    intersection, prediction, truth = (
        np.stack([getattr(count, name) for count in counts]).astype(np.float64)
        for name in ('intersection', 'prediction', 'truth')
    )
    return lambda weights: dice(weights @ intersection, weights @ prediction, weights @ truth)


def class_mean(statistic: Statistic, columns: Sequence[int], num_cases: int) -> Statistic:
    """Unweighted mean over classes, as the papers average tumour types (MaxQuery Tab. 2).

    A class that no case defines is left out; resamples in which one of the others is undefined
    give NaN, so that every resample estimates the same mean.

    Args:
        statistic: function of weights [R, n] giving [R, K].
        columns: indices into K.
        num_cases: n.

    Returns:
        Function of weights [R, n] giving [R, 1].
    """
    whole = statistic(np.ones((1, num_cases)))[0]
    defined = [column for column in columns if np.isfinite(whole[column])]
    if not defined:
        return lambda weights: np.full((len(weights), 1), np.nan)
    return lambda weights: statistic(weights)[:, defined].mean(axis=1, keepdims=True)


def _as_uint8(labels: np.ndarray) -> np.ndarray:
    """Casts labels to uint8 after a range check: NumPy would turn 300 into 44 silently."""
    if labels.dtype == np.uint8:
        return labels
    if labels.dtype.kind not in 'iub':
        raise ValueError(f'labels must be integers, got {labels.dtype}')
    if labels.min() < 0 or labels.max() >= _MAX_LABEL:
        raise ValueError(f'labels must lie in 0..255, got {labels.min()}..{labels.max()}')
    return labels.astype(np.uint8)
