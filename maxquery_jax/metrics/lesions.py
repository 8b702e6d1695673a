"""Lesion-wise detection: how many lesions of the truth are found, how many found ones are real.

A lesion is a 26-connected component of at least `min_volume_ml`. It counts as found when at least
`overlap` of its own voxels lie in the prediction, by the same rule a predicted lesion is real when
that share of it lies in the truth, smaller truth components included. Both are many-to-many: two
predicted pieces may find one lesion, and one predicted blob several.

Unspecified in the papers. The overlap of 10% follows the hit criterion of PI-CAI and PANORAMA
(which take the intersection over union; a share of the lesion itself also finds a lesion within a
larger prediction, and leaves that one unreal). The smallest volume is that of the lesions that
`launch.predict` lists; BraTS 2023 takes 0.05 ml.

Rates are of summed counts, so every lesion weighs the same; intervals resample cases.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Self

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from maxquery_jax.metrics.bootstrap import Statistic

MIN_VOLUME_ML = 0.01
OVERLAP = 0.1
COUNTS = ('truth', 'found', 'found_any', 'predicted', 'matched')
RATES = ('sensitivity', 'sensitivity_any', 'precision', 'f1', 'fp_per_case')

_NEIGHBOURS = np.ones((3, 3, 3), bool)  # 26-connectivity
_BLOCK_VOXELS = 1 << 22  # labelled in one go: about 40 MB
_MAX_LABEL = 256
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class LesionGroup:
    """Lesions that are counted together.

    Attributes:
        name: of the group.
        truth_ids: labels of the truth that are joined before components are formed.
        class_ids: predicted labels that call it by its name, joined likewise; none for a class
            that cannot be predicted.
    """

    name: str
    truth_ids: tuple[int, ...]
    class_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LesionCounts:
    """Numbers of lesions, summed over cases.

    Attributes:
        groups: what is counted.
        counts: [G, 5] in the order of `COUNTS`: lesions of the truth; those found by a prediction
            of the group's classes; those found by any predicted tumour; predicted lesions of the
            group's classes; those that lie in the group's truth.
        cases: number of cases.
    """

    groups: tuple[LesionGroup, ...]
    counts: np.ndarray
    cases: int = 0

    @classmethod
    def empty(cls, groups: Sequence[LesionGroup]) -> Self:
        """State that has seen nothing."""
        return cls(tuple(groups), np.zeros((len(groups), len(COUNTS)), np.int64))

    def update(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        any_ids: Collection[int],
        voxel_ml: float,
        *,
        min_volume_ml: float = MIN_VOLUME_ML,
        overlap: float = OVERLAP,
    ) -> Self:
        """Counts the lesions of a case.

        Args:
            prediction: [D, H, W] uint8 labels.
            truth: the same shape.
            any_ids: predicted labels that are a tumour of any kind.
            voxel_ml: volume of a voxel.
            min_volume_ml: smaller components of truth and prediction are not counted.
            overlap: share in [0, 1] of a lesion that has to be covered; 0 means any voxel.

        Raises:
            ValueError: if the shapes differ.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f'shapes differ: {prediction.shape} and {truth.shape}')
        boxes = [ndimage.find_objects(labels, _MAX_LABEL - 1) for labels in (prediction, truth)]
        smallest = min_volume_ml / voxel_ml - _ROUNDING

        def covered(own: int, ids: Collection[int], others: Sequence[Collection[int]]) -> list[int]:
            """Number of lesions, and of those that are covered by each of `others`."""
            labels = prediction, truth
            box = _join([boxes[own][i - 1] for i in ids])
            if box is None:
                return [0] * (1 + len(others))
            voxels = component_voxels(labels[own][box], ids, labels[1 - own][box], others)
            voxels = voxels[voxels[:, 0] >= smallest]
            needed = np.maximum(1, overlap * voxels[:, :1] - _ROUNDING)
            return [len(voxels), *(voxels[:, 1:] >= needed).sum(axis=0).tolist()]

        added = [
            covered(1, group.truth_ids, [group.class_ids, any_ids])
            + covered(0, group.class_ids, [group.truth_ids])
            for group in self.groups
        ]
        counts = np.array(added, np.int64).reshape(self.counts.shape)
        return type(self)(self.groups, self.counts + counts, self.cases + 1)

    def merge(self, other: Self) -> Self:
        """Counts of both.

        Raises:
            ValueError: if the states count different groups.
        """
        if self.groups != other.groups:
            raise ValueError(f'cannot merge counts of {self.groups} and {other.groups}')
        return type(self)(self.groups, self.counts + other.counts, self.cases + other.cases)

    def compute(self) -> np.ndarray:
        """[G, 5] in the order of `RATES`; NaN where undefined, see `lesion_rates`."""
        return lesion_rates(self.counts, np.array(self.cases))

    def to_json(self) -> dict[str, Any]:
        """Lists of integers and records of the groups."""
        groups = [dataclasses.asdict(group) for group in self.groups]
        return {'groups': groups, 'counts': self.counts.tolist(), 'cases': self.cases}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        groups = tuple(
            LesionGroup(g['name'], tuple(g['truth_ids']), tuple(g['class_ids']))
            for g in data['groups']
        )
        counts = np.asarray(data['counts'], np.int64).reshape(len(groups), len(COUNTS))
        return cls(groups, counts, int(data['cases']))


def lesion_rates(counts: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """Rates from counts.

    Sensitivity is undefined (NaN) without lesions in the truth, precision without predicted ones,
    F1 without either. F1 is the harmonic mean of sensitivity and precision, 0 where nothing is
    found.

    Args:
        counts: [..., 5] in the order of `COUNTS`.
        cases: [...] number of cases.

    Returns:
        [..., 5] in the order of `RATES`.
    """
    truth, found, found_any, predicted, matched = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    sensitivity, sensitivity_any = _divide(found, truth), _divide(found_any, truth)
    precision = _divide(matched, predicted)
    both = np.nan_to_num(sensitivity), np.nan_to_num(precision)
    f1 = np.nan_to_num(_divide(2 * both[0] * both[1], both[0] + both[1]))
    f1 = np.where(truth + predicted > 0, f1, np.nan)
    false_positives = _divide(predicted - matched, np.broadcast_to(cases, truth.shape))
    return np.stack([sensitivity, sensitivity_any, precision, f1, false_positives], axis=-1)


def lesion_statistic(counts: Sequence[LesionCounts]) -> Statistic:
    """Rates of the summed counts as a function of case weights, for `bootstrap`.

    Args:
        counts: one state per case, n of them, of the same groups.

    Returns:
        Function of weights [R, n] giving [R, G * 5], groups first.
    """
    table = np.stack([count.counts for count in counts]).astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        summed = np.tensordot(weights, table, axes=1)
        cases = np.asarray(weights, np.float64).sum(axis=1, keepdims=True)
        return lesion_rates(summed, cases).reshape(len(weights), -1)

    return statistic


def deciding_cases(counts: Sequence[LesionCounts]) -> np.ndarray:
    """[G, 5] cases that take part in each of `RATES`: that hold lesions of the kind it counts."""
    table = np.stack([count.counts for count in counts])
    truth, predicted = table[..., 0] > 0, table[..., 3] > 0
    every = np.ones_like(truth)
    parts = np.stack([truth, truth, predicted, truth | predicted, every], axis=-1)
    return parts.sum(axis=0)


def component_voxels(
    labels: np.ndarray,
    ids: Collection[int],
    other: np.ndarray,
    other_ids: Sequence[Collection[int]],
) -> np.ndarray:
    """Sizes of the 26-connected components of some labels, and their overlaps with other masks.

    Slabs are labelled one at a time. Neighbouring slabs share a slice, whose voxels say which
    components of the two are one; memory is a slab plus a row per component.

    Args:
        labels: [D, H, W] uint8.
        ids: labels that are joined to one mask.
        other: [D, H, W] uint8.
        other_ids: M sets of labels of `other`, each joined to one mask.

    Returns:
        int64 [number of components, 1 + M]: voxels, and voxels in each mask of `other`.
    """
    mask_of, other_masks = _table(ids), [_table(part) for part in other_ids]
    depth = labels.shape[0]
    thickness = max(1, _BLOCK_VOXELS // max(1, labels[0].size))
    rows, pairs = [np.zeros((0, 1 + len(other_masks)), np.int64)], [np.zeros((0, 2), np.int64)]
    total, last_slice = 0, np.zeros(labels.shape[1:], np.int64)
    for start in range(0, depth, thickness):
        stop, shared = min(start + thickness, depth), int(start > 0)
        inside = mask_of[labels[start - shared : stop]]
        found: Any = ndimage.label(inside, _NEIGHBOURS)
        components, count = found
        if shared:
            both = last_slice > 0
            beside = components[0][both].astype(np.int64) + total
            pairs.append(np.stack([last_slice[both], beside], axis=1))
        own, overlapped = components[shared:], other[start:stop]
        members = own > 0
        numbers, overlapped = own[members] - 1, overlapped[members]
        columns = [numbers, *(numbers[mask[overlapped]] for mask in other_masks)]
        rows.append(np.stack([np.bincount(c, minlength=count) for c in columns], axis=1))
        last = components[-1].astype(np.int64)
        last_slice = np.where(last > 0, last + total, 0)
        total += count
    return _merge_rows(np.concatenate(rows), np.unique(np.concatenate(pairs), axis=0) - 1)


def _merge_rows(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Adds up the rows of components that are one: pairs [n, 2] of row numbers."""
    if not len(rows):
        return rows
    links = np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])
    graph = sparse.coo_array(links, (len(rows), len(rows)))
    number, group = csgraph.connected_components(graph, directed=False)
    merged = np.zeros((number, rows.shape[1]), np.int64)
    np.add.at(merged, group, rows)
    return merged


def _table(ids: Collection[int]) -> np.ndarray:
    """bool [256]: which labels belong to a mask."""
    table = np.zeros(_MAX_LABEL, bool)
    table[list(ids)] = True
    return table


def _join(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """Smallest box around all that are given; None if there is none."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    axes = zip(*found, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    out = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
