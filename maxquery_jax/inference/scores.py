"""Case-level OOD score: the mean anomaly over the predicted tumour (MaxQuery Sec. 4.2)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

REGIONS = ('tumour', 'organ', 'volume')


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """Anomaly of one case.

    Attributes:
        value: mean anomaly score A over the region.
        region: 'tumour', or what it fell back to: 'organ', then 'volume'.
        voxels: size of the region.
    """

    value: float
    region: str
    voxels: int

    @property
    def fallback(self) -> str | None:
        """None where the paper's rule applied, else the region used in its place."""
        return None if self.region == 'tumour' else self.region


class CaseScorer:
    """Collects the case score slab by slab.

    Unspecified in the paper: a case without any predicted tumour has no score by its rule. Such
    a case falls back to the predicted organs, and without these to the whole volume; the region
    is recorded, so that these cases can be counted or left out.
    """

    def __init__(self, class_groups: Sequence[int]):
        """Args: class_groups: K roles, 0 background, 1 organ, 2 tumour."""
        self._groups = np.asarray(class_groups)
        self._sums = np.zeros(len(class_groups), np.float64)
        self._counts = np.zeros(len(class_groups), np.int64)

    def update(self, label: np.ndarray, score: np.ndarray) -> None:
        """Adds label and score, both [d, H, W]."""
        classes = len(self._groups)
        flat = label.ravel()
        self._sums += np.bincount(flat, weights=score.ravel(), minlength=classes)[:classes]
        self._counts += np.bincount(flat, minlength=classes)[:classes]

    @property
    def voxels(self) -> np.ndarray:
        """[K] voxels per class seen so far."""
        return self._counts.copy()

    def result(self) -> CaseScore:
        """Returns the score over the first region of the fallback chain that is not empty.

        Raises:
            ValueError: if nothing was added.
        """
        chosen = {
            'tumour': self._groups == 2,
            'organ': self._groups == 1,
            'volume': np.ones(len(self._groups), bool),
        }
        for region in REGIONS:
            voxels = int(self._counts[chosen[region]].sum())
            if voxels:
                return CaseScore(float(self._sums[chosen[region]].sum()) / voxels, region, voxels)
        raise ValueError('the case score needs at least one voxel')


def case_ood_score(label: np.ndarray, score: np.ndarray, class_groups: Sequence[int]) -> CaseScore:
    """Scores a whole case at once; see `CaseScorer`.

    Args:
        label: [D, H, W] predicted classes, integer.
        score: [D, H, W] anomaly score, larger is more anomalous.
        class_groups: K roles, 0 background, 1 organ, 2 tumour.
    """
    scorer = CaseScorer(class_groups)
    for part, values in zip(label, score, strict=True):
        scorer.update(part, values)
    return scorer.result()
