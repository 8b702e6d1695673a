"""Which classes a model predicts, and how a voxel's averaged logits become one of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

Decision = Callable[[np.ndarray], np.ndarray]
"""Logits [..., C], summed over tiles with positive weights, to class ids [...]."""


def largest_logit(logits: np.ndarray) -> np.ndarray:
    """Classes that exclude each other (softmax): the largest logit."""
    return logits.argmax(-1)


@dataclasses.dataclass(frozen=True)
class NestedDecision:
    """Classes that are masks of their own, an organ's holding its tumours (ZePT Sec. 3.1).

    A voxel is the seen tumour with the largest logit if that is positive (a probability above 0.5,
    the released code's threshold), else the unseen tumour with the largest if positive, else the
    organ, else background: the most specific class, as label maps have it. Only signs and order
    count, so that sums over tiles serve as well as means.

    Unspecified in the paper: which of several tumours, or of several organs, a voxel is. The
    released code lets the last one that is written win. Seen tumours come first because their
    masks alone have learnt where they end: no label ever told an unseen tumour's query where it is
    wrong, and such a query may copy a seen one with larger logits.

    Attributes:
        organ_ids: channels of organs, which are their class ids.
        tumour_ids: channels of tumours that training showed.
        unseen_ids: channels of zero-shot classes.
    """

    organ_ids: tuple[int, ...]
    tumour_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...] = ()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """See `Decision`."""
        label = np.zeros(logits.shape[:-1], np.uint8)
        for ids in (self.organ_ids, self.unseen_ids, self.tumour_ids):  # the last one wins
            if ids:
                own = logits[..., ids]
                found = own.max(-1) > 0
                label[found] = np.array(ids, np.uint8)[own[found].argmax(-1)]
        return label


def is_predicted(label: Mapping[str, Any]) -> bool:
    """Whether a model predicts the class of a record `{id, name, role}`.

    The record says so by `predicted`; without it, classes with the role `ood` are not, all others
    are. A class that is `ood` and predicted is a zero-shot class: no training label showed it.
    """
    return bool(label.get('predicted', label['role'] != 'ood'))


def mark_predicted(
    labels: Sequence[Mapping[str, Any]], ids: Collection[int]
) -> tuple[dict[str, Any], ...]:
    """Records that say which classes are predicted, where their role does not say it.

    Args:
        labels: records `{id, name, role}`.
        ids: of the classes that are predicted; the background always is.
    """
    marked = []
    for label in labels:
        plain = {key: value for key, value in label.items() if key != 'predicted'}
        predicted = label['id'] in ids or label['role'] == 'background'
        flag = {} if predicted == is_predicted(plain) else {'predicted': predicted}
        marked.append(plain | flag)
    return tuple(marked)
