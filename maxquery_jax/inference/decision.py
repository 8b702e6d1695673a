"""Which classes a model predicts, and how a voxel's averaged logits become one of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.data.taxonomy import find_concept, hosts_of

_TIE = 1e-3  # of a logit, below which two count as equal

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
    wrong, and such a query may copy a seen one with larger logits. Of unseen tumours whose logits
    are equal, as those of queries are that Eq. 11 leaves as they began, it is the one whose organ
    has the largest logit.

    Attributes:
        organ_ids: channels of organs, which are their class ids.
        tumour_ids: channels of tumours that training showed.
        unseen_ids: channels of zero-shot classes.
        unseen_hosts: for each of them the channels of the organs that it grows in; or nothing,
            which leaves such ties to the order.
    """

    organ_ids: tuple[int, ...]
    tumour_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...] = ()
    unseen_hosts: tuple[tuple[int, ...], ...] = ()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """See `Decision`."""
        label = np.zeros(logits.shape[:-1], np.uint8)
        for ids in (self.organ_ids, self.unseen_ids, self.tumour_ids):  # the last one wins
            if ids:
                own = logits[..., ids]
                found = own.max(-1) > 0
                own, hosts = own[found], self.unseen_hosts if ids == self.unseen_ids else ()
                if hosts:
                    tied = own >= (1 - _TIE) * own.max(-1, keepdims=True)
                    own = np.where(tied, _largest_of(logits[found], hosts), -np.inf)
                label[found] = np.array(ids, np.uint8)[own.argmax(-1)]
        return label


def _largest_of(logits: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Largest of each group's channels, [n, C] to [n, G]; finite and below all for no channel."""
    lowest = np.full(len(logits), np.finfo(logits.dtype).min, logits.dtype)
    return np.stack([logits[:, list(g)].max(-1) if g else lowest for g in groups], axis=-1)


def nested_decision(labels: Sequence[Mapping[str, Any]]) -> NestedDecision:
    """The decision between predicted labels, records `{id, name, role}`."""
    ids: dict[str, list[int]] = {'background': [], 'organ': [], 'tumour': [], 'ood': []}
    for label in labels:
        ids[label['role']].append(label['id'])
    organs = {find_concept(x['name']): x['id'] for x in labels if x['role'] == 'organ'}
    return NestedDecision(
        organ_ids=tuple(ids['organ']),
        tumour_ids=tuple(ids['tumour']),
        unseen_ids=tuple(ids['ood']),
        unseen_hosts=tuple(
            tuple(organs[host] for host in hosts_of(x['name']) if host in organs)
            for x in labels
            if x['role'] == 'ood'
        ),
    )


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
