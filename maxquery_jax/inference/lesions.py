"""Lesions: connected components of the predicted tumour, found slab by slab."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

_NEIGHBOURS = np.ones((3, 3, 3), bool)  # 26-connectivity


@dataclasses.dataclass(frozen=True)
class Lesion:
    """One connected component of the tumour classes.

    Attributes:
        class_id: store id of its most frequent class; the smaller id on a tie.
        volume_ml: its volume.
        voxels: its size on the grid it was found on.
        centre_mm: centre of mass in scanner coordinates (R, A, S), mm.
        class_volumes_ml: class id to ml; a lesion may be predicted as a mixture.
        mean_score: mean anomaly score over its voxels.
        max_score: largest anomaly score.
    """

    class_id: int
    volume_ml: float
    voxels: int
    centre_mm: tuple[float, float, float]
    class_volumes_ml: dict[int, float]
    mean_score: float
    max_score: float


class LesionFinder:
    """Finds lesions in slabs that arrive in order; memory is one slab plus one row per lesion.

    Each slab is labelled on its own; components that touch (26-connectivity) across the border
    of two slabs are joined, and their sums are added up. Tumour classes are joined before the
    components are formed, since one lesion may be predicted as a mixture of types.
    """

    def __init__(self, tumour_ids: Sequence[int], affine: np.ndarray, voxel_ml: float):
        """Prepares an empty finder.

        Args:
            tumour_ids: store ids that are tumours.
            affine: [4, 4] from index (z, y, x, 1) to scanner (R, A, S, 1), mm.
            voxel_ml: volume of a voxel.
        """
        self._ids = np.asarray(sorted(tumour_ids), np.int64)
        self._affine = np.asarray(affine, np.float64)
        self._voxel_ml = float(voxel_ml)
        self._start = 0
        self._border: np.ndarray | None = None  # components of the last slice, 0 where none
        self._touching: list[np.ndarray] = []  # [n, 2] pairs of component numbers, from 1
        self._tables: list[np.ndarray] = []
        self._count = 0

    @property
    def _columns(self) -> int:
        return 5 + len(self._ids)  # sums of z, y, x, score; max score; voxels per tumour class

    def update(self, label: np.ndarray, score: np.ndarray) -> None:
        """Adds the next slab: label [d, H, W] integer and score [d, H, W]."""
        tumour = np.isin(label, self._ids)
        found: Any = ndimage.label(tumour, structure=_NEIGHBOURS)
        components, count = found
        self._tables.append(self._measure(components, count, label, score))
        if self._border is not None:
            self._touching.append(_touching(self._border, self._numbered(components[0])))
        self._border = self._numbered(components[-1])
        self._count += count
        self._start += label.shape[0]

    def _numbered(self, components: np.ndarray) -> np.ndarray:
        """Turns a slab's own component numbers into those of the whole volume; 0 stays 0."""
        return np.where(components > 0, components.astype(np.int64) + self._count, 0)

    def _measure(
        self, components: np.ndarray, count: int, label: np.ndarray, score: np.ndarray
    ) -> np.ndarray:
        """Returns [count, columns] sums of the slab's components."""
        table = np.zeros((count, self._columns))
        where = np.nonzero(components)
        number = components[where] - 1
        values = score[where].astype(np.float64)
        for column, index in enumerate(where):
            shift = self._start if column == 0 else 0
            table[:, column] = np.bincount(number, index + float(shift), minlength=count)
        table[:, 3] = np.bincount(number, values, minlength=count)
        table[:, 4] = -np.inf
        np.maximum.at(table[:, 4], number, values)
        kind = np.searchsorted(self._ids, label[where])
        pairs = np.bincount(number * len(self._ids) + kind, minlength=count * len(self._ids))
        table[:, 5:] = pairs.reshape(count, len(self._ids))
        return table

    def result(self, min_volume_ml: float = 0.0) -> list[Lesion]:
        """Returns the lesions of at least `min_volume_ml`, largest first."""
        if not self._count:
            return []
        table = np.concatenate(self._tables)
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._touching]) - 1
        graph = sparse.coo_array(
            (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (self._count, self._count)
        )
        number, group = csgraph.connected_components(graph, directed=False)
        merged = np.zeros((number, self._columns))
        np.add.at(merged, group, table)
        merged[:, 4] = -np.inf
        np.maximum.at(merged[:, 4], group, table[:, 4])
        large = merged[:, 5:].sum(axis=1) * self._voxel_ml >= min_volume_ml
        lesions = [self._lesion(row) for row in merged[large]]
        return sorted(lesions, key=lambda lesion: (-lesion.voxels, lesion.centre_mm))

    def _lesion(self, row: np.ndarray) -> Lesion:
        """Turns a row of sums into a lesion."""
        per_class = row[5:]
        voxels = int(per_class.sum())
        centre = self._affine @ np.append(row[:3] / voxels, 1.0)
        return Lesion(
            class_id=int(self._ids[per_class.argmax()]),
            volume_ml=voxels * self._voxel_ml,
            voxels=voxels,
            centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
            class_volumes_ml={
                int(i): float(n) * self._voxel_ml
                for i, n in zip(self._ids, per_class, strict=True)
                if n
            },
            mean_score=float(row[3] / voxels),
            max_score=float(row[4]),
        )


def _touching(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns [n, 2] components of two neighbouring slices [H, W] that touch, also diagonally."""
    height, width = after.shape
    padded = np.pad(before, 1)
    pairs = []
    for dy in range(3):
        for dx in range(3):
            other = padded[dy : dy + height, dx : dx + width]
            both = (other > 0) & (after > 0)
            pairs.append(np.stack([other[both], after[both]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def find_lesions(
    label: np.ndarray,
    score: np.ndarray,
    tumour_ids: Sequence[int],
    affine: np.ndarray,
    voxel_ml: float,
    *,
    min_volume_ml: float = 0.0,
    slab_depth: int = 16,
) -> list[Lesion]:
    """Finds the lesions of a whole volume; see `LesionFinder`.

    Args:
        label: [D, H, W] predicted classes.
        score: [D, H, W] anomaly score.
        tumour_ids: store ids that are tumours; without any there are no lesions.
        affine: [4, 4] from index (z, y, x, 1) to scanner (R, A, S, 1), mm.
        voxel_ml: volume of a voxel.
        min_volume_ml: smaller components are dropped.
        slab_depth: slices handled at a time; the result does not depend on it.
    """
    finder = LesionFinder(tumour_ids, affine, voxel_ml)
    for start in range(0, label.shape[0], slab_depth):
        part = slice(start, start + slab_depth)
        finder.update(label[part], score[part])
    return finder.result(min_volume_ml)
