"""Reads the label map of a prepared case again, as store ids on the file's own grid.

For evaluation in the geometry of the input: the raw files hold the data set's own ids, masks or
joint labels, and a store only the resampled classes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from maxquery_jax.data import volumes
from maxquery_jax.data.labels import LabelTable, count_ids
from maxquery_jax.data.left_right import LeftRight
from maxquery_jax.data.nifti import Volume, from_canonical, to_canonical
from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TruthRules:
    """How the label map of one case becomes store ids.

    Attributes:
        table: raw ids, joint labels and masks.
        midline: by which labels were split into right and left when the case was prepared.
        like: the case's first image, on whose grid .png slices lie.
    """

    table: LabelTable
    midline: float | None = None
    like: pathlib.Path | None = None

    @classmethod
    def of(cls, manifest: Manifest, case_id: str) -> 'TruthRules':
        """The rules that `prepare` followed.

        A case that is not in the store has no midline and no image: where a joint label needs
        them, it is split in the middle of the volume.
        """
        case = manifest.cases.get(case_id)
        rules = {
            int(rule['raw']): LeftRight(
                rule['name'], rule['joint'], rule['right'], rule['left'], tuple(rule['inside'])
            )
            for rule in manifest.left_right
        }
        label_map = {int(raw): store_id for raw, store_id in manifest.label_map.items()}
        table = LabelTable(
            labels=manifest.labels,
            label_map={**label_map, **{raw: rule.right for raw, rule in rules.items()}},
            left_right=tuple(rules.values()),
            joint_ids={raw: rule.joint for raw, rule in rules.items()},
            masks=manifest.masks,
        )
        if case is None:
            return cls(table)
        like = pathlib.Path(manifest.source) / case['source']['image'][0]
        return cls(table, case.get('midline'), like)


def read_truth(path: str | os.PathLike, rules: TruthRules) -> tuple[np.ndarray, Volume]:
    """Store ids of a label file or folder.

    Args:
        path: of the label map, the folder of masks or the folder of slices.
        rules: of its case.

    Returns:
        uint8 [i, j, k] along the file's own axes, and the volume as it was read.

    Raises:
        UserError: it cannot be read or holds ids that the data set does not name.
    """
    masks: Mapping[str, int] | None = rules.table.masks
    volume = volumes.read_label(path, masks=masks, like=rules.like)
    raw, place = to_canonical(volume)
    unknown = rules.table.unknown(count_ids(raw))
    if unknown:
        raise UserError(
            f'{path}: {sum(unknown.values())} voxels have label ids {sorted(unknown)[:5]}, which '
            'the store was not prepared with; prepare it again'
        )
    label = rules.table.convert(raw)
    rules.table.split(label, place.spacing_mm, rules.midline)
    return np.ascontiguousarray(from_canonical(label, place)), volume
