"""Roles of labels, and the map from a data set's own ids to the contiguous ids of a store.

A store's ids are 0 background, then organs, then known tumours, then the unknown (OOD) classes,
which no training case contains. Several labels may become one class; ignored ones become
background.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from maxquery_jax.data.findings import Issue
from maxquery_jax.data.left_right import LeftRight, split_left_right
from maxquery_jax.errors import UserError

ROLES = ('organ', 'tumour', 'ood', 'ignore')
MAX_RAW_ID = 65535
_MAX_CLASSES = 256
_TUMOUR = re.compile(r'cancer|carcinoma|tumor|tumour|lesion|mass|cyst|metasta|neoplasm', re.I)
_REST = '*'


@dataclasses.dataclass(frozen=True)
class RoleFlags:
    """Roles as given on the command line; names not mentioned keep their default.

    Each field lists label names. `name=a+b` makes one class of several labels; `*` stands for
    every label not named in any of the fields.
    """

    organ: tuple[str, ...] = ()
    tumour: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Names, roles and ids of a data set's classes.

    Attributes:
        labels: records `{id, name, role}` by id, background first.
        label_map: raw id to store id, for every id the data set names; for a label that is split
            into right and left, the id of the right side.
        ignored: names of labels that count as background.
        ids: name of each label of the data set, both sides of a split one, to its store id.
        left_right: labels to split; `joint` are temporary ids between `convert` and `split`.
        joint_ids: raw id of a label to split to its temporary id.
        contains: name of a tumour class to the organ class it lies in, both sides joined by `+`.
        masks: name of a mask to raw id, where labels are folders of masks; in painting order.
    """

    labels: tuple[Mapping[str, object], ...]
    label_map: Mapping[int, int]
    ignored: tuple[str, ...] = ()
    ids: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_right: tuple[LeftRight, ...] = ()
    joint_ids: Mapping[int, int] = dataclasses.field(default_factory=dict)
    contains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, int] | None = None

    def ids_of(self, role: str) -> tuple[int, ...]:
        """Store ids of a role."""
        return tuple(i for i, label in enumerate(self.labels) if label['role'] == role)

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """The part of raw voxel counts whose ids the data set does not name."""
        return {raw: n for raw, n in counts.items() if raw not in self.label_map}

    def store_counts(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Voxels per store id, from voxels per raw id; unknown ids count as background."""
        totals: dict[int, int] = {}
        for raw, n in counts.items():
            store_id = self.label_map.get(raw, 0)
            totals[store_id] = totals.get(store_id, 0) + n
        return totals

    def convert(self, label: np.ndarray) -> np.ndarray:
        """Raw ids [...] of any integer type to uint8 store ids; unknown ids become 0.

        Where there are labels to split, `split` has to follow.
        """
        table = np.zeros(MAX_RAW_ID + 2, np.uint8)  # the last entry is for ids out of range
        for raw, store_id in {**self.label_map, **self.joint_ids}.items():
            table[raw] = store_id
        out = np.empty(label.shape, np.uint8)
        for plane, target in zip(label, out, strict=True):
            target[:] = table[_indices(plane)]
        return out

    def split(
        self, label: np.ndarray, spacing_mm: Sequence[float], midline: float | None
    ) -> list[Issue]:
        """Splits the joint labels of a converted canonical array in place.

        Arguments and result are those of `left_right.split_left_right`.
        """
        return split_left_right(label, self.left_right, spacing_mm, midline)


def count_ids(label: np.ndarray) -> dict[int, int]:
    """Voxels per raw id of an integer array [D, H, W]."""
    counts = np.zeros(MAX_RAW_ID + 2, np.int64)
    strangers: dict[int, int] = {}
    for plane in label:
        part = np.bincount(_indices(plane).ravel())
        counts[: len(part)] += part
        if len(part) == len(counts):
            outside = plane[(plane < 0) | (plane > MAX_RAW_ID)]
            for raw, n in zip(*np.unique(outside, return_counts=True), strict=True):
                strangers[int(raw)] = strangers.get(int(raw), 0) + int(n)
    known = {int(raw): int(counts[raw]) for raw in np.flatnonzero(counts[:-1])}
    return {**known, **strangers}


def _indices(plane: np.ndarray) -> np.ndarray:
    if plane.dtype in (np.uint8, np.uint16):
        return plane
    wide = plane.astype(np.int64)
    return np.where((wide < 0) | (wide > MAX_RAW_ID), MAX_RAW_ID + 1, wide)


def default_role(name: str) -> str:
    """Role of a label by its name: tumour, lesion, mass, cyst, ... or else organ."""
    if name.lower() == 'ignore':
        return 'ignore'
    return 'tumour' if _TUMOUR.search(name) else 'organ'


def build_label_table(
    raw_labels: Mapping[int, str],
    flags: RoleFlags | None = None,
    roles: Mapping[str, str] | None = None,
    *,
    left_right: Mapping[int, tuple[str, str]] | None = None,
    contains: Mapping[str, str] | None = None,
    masks: Mapping[str, int] | None = None,
) -> LabelTable:
    """Decides role and store id of every label.

    Args:
        raw_labels: raw id to name; 0 is background.
        flags: roles from the command line; they win.
        roles: roles from the data set itself, name to role; they win over the name's default.
        left_right: raw id to split to the names of its right and left side.
        contains: name of a tumour's label to that of the organ it lies in.
        masks: name of a mask to raw id, in painting order.

    Raises:
        UserError: unknown or repeated names, or too many classes.
    """
    sources = list_sources(raw_labels, left_right or {})
    classes = _assign_roles(sources, flags or RoleFlags(), roles or {})
    table = number_classes(raw_labels, sources, classes)
    return complete_table(table, raw_labels, left_right or {}, contains or {}, masks)


def list_sources(
    raw_labels: Mapping[int, str], left_right: Mapping[int, tuple[str, str]]
) -> dict[str, int]:
    """Name of every label, split ones as their two sides, to its raw id; by id, no background.

    Raises:
        UserError: ids out of range or repeated names.
    """
    _check_raw(raw_labels)
    pairs = [
        (name, raw)
        for raw, joint in sorted(raw_labels.items())
        if raw != 0
        for name in left_right.get(raw, (joint,))
    ]
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f'labels: {repeated[0]!r} names two labels; give each its own name')
    return dict(pairs)


def _assign_roles(
    sources: Mapping[str, int], flags: RoleFlags, roles: Mapping[str, str]
) -> dict[str, tuple[str, list[str]]]:
    """Class name to its role and the labels that make it up."""
    names = list(sources)
    classes: dict[str, tuple[str, list[str]]] = {}  # class name: role, members
    taken: dict[str, str] = {}
    rest: str | None = None
    for role in ROLES:
        for entry in getattr(flags, role):
            if entry == _REST:
                if rest:
                    raise UserError(f"'*' is given to both {rest} and {role}; give it once")
                rest = role
                continue
            class_name, members = _parse_entry(entry, names, role)
            for member in members:
                if member in taken:
                    raise UserError(f'label {member!r} is given to {taken[member]} and to {role}')
                taken[member] = role
            if class_name in classes:
                raise UserError(f'class {class_name!r} is given twice')
            classes[class_name] = role, members
    for name in names:
        if name not in taken:
            if name in classes:
                raise UserError(f'class {name!r} has the name of another label; rename the class')
            own = roles.get(name) or default_role(name)
            if own not in ROLES:
                raise UserError(f'label {name!r} has role {own!r}; roles are {", ".join(ROLES)}')
            classes[name] = rest or own, [name]
    return classes


def _check_raw(raw_labels: Mapping[int, str]) -> None:
    if 0 not in raw_labels:
        raise UserError('labels: id 0 is missing; it must be the background')
    wrong = [raw for raw in raw_labels if not 0 <= raw <= MAX_RAW_ID]
    if wrong:
        raise UserError(f'labels: id {wrong[0]} is not between 0 and {MAX_RAW_ID}')
    names = list(raw_labels.values())
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f'labels: {repeated[0]!r} names two ids; give each its own name')


def _parse_entry(entry: str, names: Sequence[str], role: str) -> tuple[str, list[str]]:
    class_name, _, members = entry.rpartition('=')
    parts = [part.strip() for part in members.split('+')]
    if not class_name and members in names:  # a name that contains a plus sign
        parts = [members]
    if not class_name and len(parts) > 1:
        raise UserError(f'--{role}={entry}: name the joint class, as in both={entry}')
    for part in parts:
        if part not in names:
            close = difflib.get_close_matches(part, names, 1)
            hint = f'did you mean {close[0]!r}?' if close else f'labels: {_shorten(names)}'
            raise UserError(f'--{role}: the data set has no label {part!r}; {hint}')
    return class_name.strip() or parts[0], parts


def _shorten(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def number_classes(
    raw_labels: Mapping[int, str],
    sources: Mapping[str, int],
    classes: Mapping[str, tuple[str, Sequence[str]]],
    *,
    keep_order: bool = False,
) -> LabelTable:
    """Numbers classes by role, and within a role by their lowest raw id.

    Args:
        raw_labels: raw id to name.
        sources: label to raw id, of `list_sources`.
        classes: class name to its role and labels; a class may have no label.
        keep_order: within a role keep the order of `classes`.

    Raises:
        UserError: more classes than a store holds.
    """
    first_raw = {
        name: min((sources[member] for member in members), default=0)
        for name, (_, members) in classes.items()
    }
    ordered = list(classes) if keep_order else sorted(classes, key=first_raw.__getitem__)
    labels = [{'id': 0, 'name': raw_labels[0], 'role': 'background'}]
    ids: dict[str, int] = {}
    ignored = []
    for role in ROLES:
        for name in ordered:
            class_role, members = classes[name]
            if class_role != role:
                continue
            if role == 'ignore':
                ignored.extend(members)
            else:
                labels.append({'id': len(labels), 'name': name, 'role': role})
            store_id = 0 if role == 'ignore' else len(labels) - 1
            ids.update((member, store_id) for member in members)
    label_map = {0: 0}
    for name, raw in sources.items():  # a right side comes before its left side
        label_map.setdefault(raw, ids[name])
    if len(labels) > _MAX_CLASSES:
        raise UserError(
            f'{len(labels)} classes; a store holds {_MAX_CLASSES}: merge or ignore some'
        )
    return LabelTable(tuple(labels), dict(sorted(label_map.items())), tuple(ignored), ids)


def complete_table(
    table: LabelTable,
    raw_labels: Mapping[int, str],
    left_right: Mapping[int, tuple[str, str]],
    contains: Mapping[str, str],
    masks: Mapping[str, int] | None,
) -> LabelTable:
    """Adds how to split labels, what lies in what, and how to read folders of masks.

    Arguments are those of `build_label_table`.

    Raises:
        UserError: `contains` names labels that do not exist, or no temporary id is left.
    """
    sides = {joint: left_right.get(raw, (joint,)) for raw, joint in raw_labels.items()}
    strangers = {*contains, *contains.values()} - set(sides)
    if strangers:
        raise UserError(f'contains: {sorted(strangers)[0]!r} is no label of the data set')
    rules = []
    for number, (raw, (right, left)) in enumerate(left_right.items()):
        inside = [table.ids[name] for name, organ in contains.items() if organ == raw_labels[raw]]
        joint = _MAX_CLASSES - 1 - number
        if joint < len(table.labels):
            raise UserError(f'{len(table.labels)} classes leave no id to split; merge some')
        if table.ids[right] != table.ids[left]:
            inner = tuple(sorted(set(inside) - {0}))
            rules.append(
                (raw, LeftRight(raw_labels[raw], joint, table.ids[right], table.ids[left], inner))
            )
    relations: dict[int, set[int]] = {}
    for tumour, organ in contains.items():
        organs = {table.ids[side] for side in sides[organ]} - {0, table.ids[tumour]}
        if table.ids[tumour] and organs:
            relations.setdefault(table.ids[tumour], set()).update(organs)
    names = [str(label['name']) for label in table.labels]
    return dataclasses.replace(
        table,
        left_right=tuple(rule for _, rule in rules),
        joint_ids={raw: rule.joint for raw, rule in rules},
        contains={
            names[tumour]: '+'.join(names[organ] for organ in sorted(organs))
            for tumour, organs in sorted(relations.items())
        },
        masks=masks,
    )
