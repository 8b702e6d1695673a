"""The classes of a prediction and how raw label ids map onto them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from maxquery_jax.data.store_manifest import ROLES
from maxquery_jax.data.taxonomy import find_concept, hosts_of
from maxquery_jax.errors import UserError
from maxquery_jax.inference.decision import is_predicted, mark_predicted
from maxquery_jax.metrics.state import iterate_blocks

_UNMAPPED = 255


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Names and roles of store ids; the index is the id.

    Attributes:
        names: name per id.
        roles: 'background', 'organ', 'tumour' or 'ood' per id.
        zero_shot_ids: OOD ids that the model predicts all the same, in order (ZePT).
        absent_ids: known ids that it does not predict, such as the tumours in ZePT's stage I; they
            are measured as classes that are never found.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]
    zero_shot_ids: tuple[int, ...] = ()
    absent_ids: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, labels: Any, where: object) -> Self:
        """Checks records `{id, name, role}`, with `predicted` where the role does not say it.

        Raises:
            UserError: naming `where`, if they are not such records with ids counting up from 0.
        """
        try:
            ids = [int(label['id']) for label in labels]
            names = tuple(str(label['name']) for label in labels)
            roles = tuple(str(label['role']) for label in labels)
            odd = [label for label in labels if is_predicted(label) == (label['role'] == 'ood')]
            zero_shot = tuple(int(label['id']) for label in odd if label['role'] == 'ood')
            absent = tuple(int(label['id']) for label in odd if label['role'] != 'ood')
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f'{where}: "labels" must be a list of {{"id", "name", "role"}}; predict again or '
                'give --label_map'
            ) from error
        strange = sorted(set(roles) - set(ROLES))
        if ids != list(range(len(ids))) or len(ids) < 2 or len(ids) >= _UNMAPPED:
            raise UserError(f'{where}: label ids must count up from 0, got {ids}; number them so')
        if strange or roles[0] != 'background' or len(set(names)) != len(names):
            raise UserError(
                f'{where}: label 0 must be background, names distinct and roles among '
                f'{", ".join(ROLES)}; got {list(zip(names, roles, strict=True))}'
            )
        return cls(names, roles, zero_shot, absent)

    def to_json(self) -> list[dict[str, Any]]:
        """Records as `from_json` takes them."""
        pairs = zip(self.names, self.roles, strict=True)
        records = [{'id': i, 'name': name, 'role': role} for i, (name, role) in enumerate(pairs)]
        return list(mark_predicted(records, set(self.predicted_ids) - set(self.absent_ids)))

    def ids(self, *roles: str) -> tuple[int, ...]:
        """Ids that have one of the roles."""
        return tuple(i for i, role in enumerate(self.roles) if role in roles)

    def mask(self, label: np.ndarray, *roles: str) -> np.ndarray:
        """Bool array: where a uint8 label has one of the roles."""
        table = np.zeros(_UNMAPPED + 1, bool)
        table[list(self.ids(*roles))] = True
        return table[label]

    def hosts(self, tumour: int) -> tuple[int, ...]:
        """Organs that a class grows in, by the names of ZePT Table 8; none for other names."""
        names = hosts_of(self.names[tumour])
        found = ((i, find_concept(self.names[i])) for i in self.ids('organ'))
        return tuple(i for i, name in found if name in names)

    @property
    def known_ids(self) -> tuple[int, ...]:
        """Foreground classes that a model learns."""
        return self.ids('organ', 'tumour')

    @property
    def predicted_ids(self) -> tuple[int, ...]:
        """Foreground classes that a prediction may hold and that are measured."""
        return (*self.known_ids, *self.zero_shot_ids)

    @property
    def tumour_ids(self) -> tuple[int, ...]:
        """Tumours among `predicted_ids`, known and zero-shot."""
        return (*self.ids('tumour'), *self.zero_shot_ids)

    @property
    def class_groups(self) -> tuple[int, ...]:
        """Per id 0 background, 1 organ, 2 tumour; OOD ids that are never predicted count as 0."""
        groups = {'organ': 1, 'tumour': 2}
        return tuple(
            2 if i in self.zero_shot_ids else groups.get(role, 0)
            for i, role in enumerate(self.roles)
        )


def parse_label_map(data: Any, table: LabelTable, where: object) -> dict[int, int]:
    """Checks a mapping from raw ids (strings) to store ids.

    Raises:
        UserError: naming `where`, if it is no such mapping or points outside the table.
    """
    try:
        label_map = {int(raw): int(store) for raw, store in data.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f'{where}: a label map is an object such as {{"0": 0, "7": 1}}, raw id to class id'
        ) from error
    outside = sorted(set(label_map.values()) - set(range(len(table.names))))
    if outside:
        raise UserError(
            f'{where}: the label map points at class {outside[0]}, classes are 0 to '
            f'{len(table.names) - 1}; correct it'
        )
    return {0: 0} | label_map


def map_labels(
    raw: np.ndarray,
    label_map: Mapping[int, int],
    where: object,
    fix: str = 'add them to the label map, see --label_map',
) -> np.ndarray:
    """Turns raw label ids into store ids.

    Args:
        raw: [i, j, k] integer.
        label_map: raw id to store id.
        where: file, for the message.
        fix: what the user can do about other ids.

    Returns:
        uint8 of the same shape.

    Raises:
        UserError: an id is not in the map; names it and the number of voxels.
    """
    keys = np.array(sorted(label_map))
    values = np.array([label_map[key] for key in keys.tolist()], np.uint8)
    strange = np.setdiff1d(_distinct(raw), keys)
    if strange.size:
        count = int(np.isin(raw, strange).sum())
        raise UserError(
            f'{where}: {count} voxels have label ids {strange[:5].tolist()}, known are '
            f'{keys.tolist()}; {fix}'
        )
    low, high = int(keys[0]), int(keys[-1])
    if low == 0 and high < 1 << 16:  # a table is far faster than a search per voxel
        table = np.zeros(high + 1, np.uint8)
        table[keys] = values
        return table[raw]
    return values[np.searchsorted(keys, raw)]


def _distinct(raw: np.ndarray) -> np.ndarray:
    """Sorted distinct values, block by block."""
    parts: Sequence[np.ndarray] = [np.unique(block) for (block,) in iterate_blocks(raw)]
    return np.unique(np.concatenate(parts))
