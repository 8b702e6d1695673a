"""ZePT's clean-up of a label map: what is too small, too far or one too many is no finding.

The rules are those of the released code, which took them from the Universal Model. There every
class is a mask of its own and an organ's mask holds its tumours; here a voxel has one class, so
that an organ's mask is put together again from the organ and the tumours that grow in it.

Deviation: voxels that lose their class take the one that surrounds them where that is background
or the tumour's organ; the code's masks need no such rule. The splenic vein is not cut below the
pancreas, and lungs that are one component are not split.
"""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from maxquery_jax.data.taxonomy import CONCEPTS, find_concept
from maxquery_jax.errors import UserError

POSTPROCESSES = ('zept',)

_NEIGHBOURS = np.ones((3, 3, 3), bool)  # 26-connectivity
_REFERENCE_MM = 1.5  # the voxels in which the code counts
_REACH_MM = 2 * _REFERENCE_MM  # of dilation, by 5 x 5 x 5 voxels there
_LUNGS = ('right_lung', 'left_lung')
_BRANCHED = ('hepatic_vessel',)  # the code leaves it as it is
# Components that are kept at most, and the smallest, in voxels of `_REFERENCE_MM`.
_LARGEST = {
    'pancreas_tumour': (1, 100),
    'hepatic_vessel_tumour': (10, 80),
    'lung_tumour': (10, 30),
    'colon_tumour': (3, 100),
    'kidney_cyst': (20, 20),
}
_INSIDE = ('kidney_tumour', 'liver_tumour')  # kept where their organ is
_SURROUNDINGS = {'hepatic_vessel_tumour': ('hepatic_vessel', 'liver')}  # else the organ


def check_labels(labels: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if the rules know none of a model's classes."""
    if not _concept_ids(labels):
        raise UserError(
            '--postprocess=zept: the model has no class of ZePT Table 8, by whose names the rules '
            'go; leave it out'
        )


def postprocess_zept(
    label: np.ndarray, labels: Sequence[Mapping[str, Any]], spacing_mm: Sequence[float]
) -> np.ndarray:
    """Cleans a prediction by the names of its classes; others stay as they are.

    An organ keeps its largest 26-connected component, the two lungs the two largest, each with the
    side of most of its voxels. Some tumours keep their largest components above a size, and those
    of kidney and liver what lies in their dilated organ.

    The code counts voxels of 1.5 mm. On other grids the same volumes and distances count, and a
    distance is at least one voxel.

    Args:
        label: [D, H, W] uint8 on the model's grid.
        labels: records `{id, name, role}`.
        spacing_mm: (z, y, x).

    Returns:
        A new array.
    """
    ids = _concept_ids(labels)
    result = label.copy()
    nested = {}
    organs = [name for name in ids if CONCEPTS[name].kind == 'organ']
    for names in [_LUNGS, *((name,) for name in organs if name not in (*_LUNGS, *_BRANCHED))]:
        kept = _keep_organ(label, result, [ids[n] for n in names if n in ids], _growing(names, ids))
        nested |= dict.fromkeys(names, kept)
    shell = _shell(spacing_mm)
    for name in (*_LARGEST, *_INSIDE):
        own = label == ids[name] if name in ids else np.zeros(0, bool)
        if not own.any():
            continue
        hosts = [organ for organ in _organs_of(name) if organ in ids]
        if name in _LARGEST:
            count, voxels = _LARGEST[name]
            smallest = voxels * _REFERENCE_MM**3 / math.prod(spacing_mm)
            lost = own & ~_largest(own, own, count, smallest)
        elif hosts:
            region = functools.reduce(np.logical_or, (nested[organ] for organ in hosts))
            lost = own & ~_spread(region, shell)
        else:
            continue
        around = _SURROUNDINGS.get(name, hosts)
        _replace(result, lost, [ids[organ] for organ in around if organ in ids])
    return result


def _concept_ids(labels: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found = {find_concept(str(label['name'])): int(label['id']) for label in labels}
    return {name: i for name, i in found.items() if name is not None}


def _organs_of(tumour: str) -> tuple[str, ...]:
    return tuple((CONCEPTS[tumour].organ or '').split('+'))


def _growing(organs: Collection[str], ids: Mapping[str, int]) -> list[int]:
    """Classes of the tumours that grow in some organs."""
    return [
        i
        for name, i in ids.items()
        if CONCEPTS[name].kind == 'tumour' and set(organs) & set(_organs_of(name))
    ]


def _keep_organ(
    label: np.ndarray, result: np.ndarray, organ_ids: Sequence[int], tumour_ids: Sequence[int]
) -> np.ndarray:
    """Drops an organ's smaller pieces from `result`; the mask of what is left, tumours included."""
    own = np.isin(label, organ_ids)
    sides = len(organ_ids) or 1
    kept = _largest(own | np.isin(label, tumour_ids), own, sides)
    result[own & ~kept] = 0
    if sides == 2:
        _settle_sides(label, result, own & kept, organ_ids)
    return kept


def _settle_sides(
    label: np.ndarray, result: np.ndarray, own: np.ndarray, organ_ids: Sequence[int]
) -> None:
    """Two separate lungs are one side each, that of most voxels, if this makes them a pair."""
    found: Any = ndimage.label(own, _NEIGHBOURS)
    components, count = found
    votes = np.stack([np.bincount(components[label == i], minlength=count + 1) for i in organ_ids])
    sides = votes[:, 1:].argmax(axis=0)
    if count == 2 and sides[0] != sides[1]:
        result[own] = np.array(organ_ids, np.uint8)[sides[components[own] - 1]]


def _largest(mask: np.ndarray, own: np.ndarray, count: int, smallest: float = 1) -> np.ndarray:
    """Components of a mask with the most voxels of `own`, at least `smallest` of them.

    Args:
        mask: [D, H, W] bool.
        own: [D, H, W] bool, part of it.
        count: components at most.
        smallest: voxels.
    """
    found: Any = ndimage.label(mask, _NEIGHBOURS)
    components, total = found
    voxels = np.bincount(components[own], minlength=total + 1)
    best = np.argsort(-voxels, kind='stable')[:count]
    is_kept = np.zeros(total + 1, bool)
    is_kept[best] = voxels[best] >= max(smallest, 1)
    is_kept[0] = False
    return is_kept[components]


def _shell(spacing_mm: Sequence[float]) -> list[int]:
    """Size in voxels of the box that dilates an organ."""
    return [2 * max(1, round(_REACH_MM / edge)) + 1 for edge in spacing_mm]


def _spread(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """A mask dilated by a box. The code closes it by the same box first, which changes nothing."""
    return ndimage.maximum_filter(mask.view(np.uint8), box, mode='constant').astype(bool)


def _replace(result: np.ndarray, lost: np.ndarray, hosts: Sequence[int]) -> None:
    """Gives each component of `lost` the class around it: background or one of `hosts`."""
    found: Any = ndimage.label(lost, _NEIGHBOURS)
    components, _ = found
    allowed = np.array([0, *hosts], np.uint8)
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        own = components[wide] == number
        around = result[wide][ndimage.binary_dilation(own, _NEIGHBOURS) & ~lost[wide]]
        votes = [(around == i).sum() for i in allowed]
        result[wide][own] = allowed[int(np.argmax(votes))]
