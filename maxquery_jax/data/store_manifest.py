"""The manifest of a patch store: what was prepared, from which files, and how to read it.

`manifest.json` is the last file that `prepare` writes, so its presence means a complete store.
It is plain JSON; `Manifest` is its checked form.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from maxquery_jax.errors import UserError

FORMAT = 'maxquery_jax/store'
VERSION = 1
ROLES = ('background', 'organ', 'tumour', 'ood')  # also the order of the ids
SPLITS = ('train', 'val', 'test')

_GROUP_OF_ROLE = {'background': 0, 'organ': 1, 'tumour': 2}
_INTENSITY_KEYS = ('lower', 'upper', 'shift', 'scale')
_LATER = ('contains', 'left_right', 'masks')  # absent in stores of the first release
_CASE_KEYS = ('shape', 'native', 'source', 'sha256', 'voxels')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a patch store; mappings and records hold plain JSON values.

    Attributes:
        dataset: name of the data set's specification.
        spacing_mm: (z, y, x) voxel size of every case in mm.
        channels: names of the P input channels (contrast phases).
        intensity: `lower`, `upper`, `shift`, `scale` (P floats each, HU) and `method`; see
            `augment.intensity.normalise_intensity`.
        labels: records `{id, name, role}`, ids contiguous from 0: background, organs, known
            tumours, then OOD classes.
        label_map: raw label id (as a string) to store id; without the ids in `left_right`.
        annotated: names of the labels that this data set annotates.
        splits: split name to case ids; `train`, `val` and `test` are always there.
        cases: case id to `{shape, native, source, sha256, voxels}`; `shape` is [D, H, W] and
            `voxels` maps a store id (string) to its voxel count, empty for an unlabelled case.
        source: folder the raw data came from.
        fingerprint: statistics of the raw data.
        contains: name of a tumour to that of the organ it lies in, or to those of both sides
            joined by `+`; the label holds the tumour there (`ops.targets.class_targets`).
        left_right: labels of the raw files that were split into right and left: records `{raw,
            name, joint, right, left, inside}`, see `left_right.LeftRight`.
        masks: name of a mask to raw id in painting order, where labels are folders of masks.
    """

    dataset: str
    spacing_mm: tuple[float, ...]
    channels: tuple[str, ...]
    intensity: Mapping[str, Any]
    labels: tuple[Mapping[str, Any], ...]
    label_map: Mapping[str, int]
    annotated: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    cases: Mapping[str, Mapping[str, Any]]
    source: str
    fingerprint: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    contains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_right: tuple[Mapping[str, Any], ...] = ()
    masks: Mapping[str, int] | None = None
    format: str = FORMAT
    version: int = VERSION

    def __post_init__(self):
        for name in ('spacing_mm', 'channels', 'labels', 'annotated', 'left_right'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        splits = {name: tuple(ids) for name, ids in self.splits.items()}
        object.__setattr__(self, 'splits', splits)

    @property
    def known_labels(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the K classes a model predicts: everything but OOD."""
        return tuple(label for label in self.labels if label['role'] != 'ood')

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.known_labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K known classes, by id."""
        return tuple(label['name'] for label in self.known_labels)

    @property
    def class_groups(self) -> tuple[int, ...]:
        """Per known class 0 background, 1 organ or 2 tumour (MaxQuery Eq. 6)."""
        return tuple(_GROUP_OF_ROLE[label['role']] for label in self.known_labels)

    @property
    def ood_ids(self) -> tuple[int, ...]:
        """Store ids of the classes that never occur in train or val."""
        return tuple(label['id'] for label in self.labels if label['role'] == 'ood')

    @property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """Per known class the ids of the organ it lies in, both of a paired one; else ()."""
        ids = {label['name']: label['id'] for label in self.labels}
        return tuple(
            tuple(ids[organ] for organ in self.contains.get(name, '').split('+') if organ)
            for name in self.class_names
        )

    @property
    def has_label_rules(self) -> bool:
        """Whether `label_map` alone does not say how the raw labels became store ids."""
        return bool(self.left_right) or self.masks is not None

    def ids_with_roles(self, roles: Iterable[str]) -> tuple[int, ...]:
        """Store ids whose role is one of `roles`."""
        wanted = set(roles)
        return tuple(label['id'] for label in self.labels if label['role'] in wanted)

    @property
    def split_sha256(self) -> dict[str, str]:
        """Per split a hash of its case ids and of the source files behind them."""
        return {name: self._hash_split(ids) for name, ids in self.splits.items()}

    def _hash_split(self, ids: Iterable[str]) -> str:
        content = [[i, sorted(self.cases[i]['sha256'].items())] for i in sorted(ids)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON object, with the hashes of its splits."""
        data = dataclasses.asdict(self)
        data['splits'] = {name: list(ids) for name, ids in self.splits.items()}
        data['split_sha256'] = self.split_sha256
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str | bytes, where: str = 'manifest.json'):
        """Checks and converts what `to_json` wrote.

        Args:
            data: the JSON object, or its text.
            where: the store's location, for messages.

        Raises:
            UserError: if the data is not a manifest of this version or contradicts itself.
        """
        if isinstance(data, str | bytes):
            try:
                data = json.loads(data)
            except ValueError as error:
                raise UserError(
                    f'store {where}: manifest.json is not JSON ({error}); prepare it again'
                ) from error
        if not isinstance(data, Mapping) or data.get('format') != FORMAT:
            raise UserError(
                f'store {where}: manifest.json is not that of a patch store (format {FORMAT!r}); '
                'give the folder that launch.prepare wrote'
            )
        if data.get('version') != VERSION:
            raise UserError(
                f'store {where}: format version {data.get("version")!r}, this program reads '
                f'{VERSION}; prepare the store again'
            )
        names = [field.name for field in dataclasses.fields(cls)]
        names = [name for name in names if name in data or name not in _LATER]
        missing = [name for name in (*names, 'split_sha256') if name not in data]
        if missing:
            raise UserError(
                f'store {where}: manifest.json lacks {", ".join(missing)}; prepare it again'
            )
        try:
            manifest = cls(**{name: data[name] for name in names})
            manifest.validate(where)
            changed = [k for k, v in manifest.split_sha256.items() if data['split_sha256'][k] != v]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(
                f'store {where}: manifest.json is malformed ({type(error).__name__}: {error}); '
                'prepare the store again'
            ) from error
        if changed:
            raise UserError(
                f'store {where}: split {changed[0]!r} does not match its hash, manifest.json was '
                'edited; prepare the store again with the splits you want'
            )
        return manifest

    def validate(self, where: str = 'manifest.json') -> None:
        """Checks that the parts agree with each other.

        Raises:
            UserError: naming the store, the first fault and its fix.
        """
        for problem in (
            _check_labels(self),
            _check_intensity(self),
            _check_cases(self),
            _check_splits(self),
        ):
            if problem:
                raise UserError(f'store {where}: {problem}; prepare the store again')


def _check_labels(manifest: Manifest) -> str | None:
    labels = manifest.labels
    if [label['id'] for label in labels] != list(range(len(labels))) or not labels:
        return 'label ids must count up from 0 in the order of `labels`'
    unknown = [label['role'] for label in labels if label['role'] not in ROLES]
    if unknown:
        return f'label role {unknown[0]!r} is none of {", ".join(ROLES)}'
    ranks = [ROLES.index(label['role']) for label in labels]
    if ranks[0] != 0 or ranks.count(0) != 1 or ranks != sorted(ranks):
        return 'labels must be one background, then organs, tumours and OOD classes'
    names = [label['name'] for label in labels]
    if len(set(names)) != len(names):
        return 'two labels share a name'
    if not set(manifest.label_map.values()) <= set(range(len(labels))):
        return '`label_map` points at a label id that does not exist'
    strangers = set(manifest.annotated) - set(names)
    if strangers:
        return f'`annotated` names {sorted(strangers)[0]!r}, which is not a label'
    for tumour, organ in manifest.contains.items():
        strangers = {tumour, *organ.split('+')} - set(names)
        if strangers:
            return f'`contains` names {sorted(strangers)[0]!r}, which is not a label'
    sides = {rule[side] for rule in manifest.left_right for side in ('right', 'left')}
    if not sides <= set(range(len(labels))):
        return '`left_right` points at a label id that does not exist'
    return None


def _check_intensity(manifest: Manifest) -> str | None:
    spacing = manifest.spacing_mm
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        return f'spacing_mm {list(spacing)} is not three positive numbers'
    if not manifest.channels:
        return '`channels` is empty'
    for key in _INTENSITY_KEYS:
        values = manifest.intensity[key]
        if len(values) != len(manifest.channels) or not all(map(math.isfinite, values)):
            return f'intensity.{key} must hold one number per channel'
    if not all(s > 0 for s in manifest.intensity['scale']):
        return 'intensity.scale must be positive'
    bounds = zip(manifest.intensity['lower'], manifest.intensity['upper'], strict=True)
    if not all(lower < upper for lower, upper in bounds):
        return 'intensity.lower must be below intensity.upper'
    return None


def _check_cases(manifest: Manifest) -> str | None:
    ids = {str(label['id']) for label in manifest.labels}
    for case_id, case in manifest.cases.items():
        missing = [key for key in _CASE_KEYS if key not in case]
        if missing:
            return f'case {case_id!r} lacks {", ".join(missing)}'
        if len(case['shape']) != 3 or not all(int(n) == n and n > 0 for n in case['shape']):
            return f'case {case_id!r} has shape {list(case["shape"])}'
        if not set(case['voxels']) <= ids:
            return f'case {case_id!r} counts voxels of a label id that does not exist'
    return None


def _check_splits(manifest: Manifest) -> str | None:
    lacking = [name for name in SPLITS if name not in manifest.splits]
    if lacking:
        return f'split {lacking[0]!r} is missing (it may be empty)'
    owner: dict[str, str] = {}
    for split, ids in manifest.splits.items():
        for case_id in ids:
            if case_id not in manifest.cases:
                return f'split {split!r} names the unknown case {case_id!r}'
            if case_id in owner:
                return f'case {case_id!r} is in split {owner[case_id]!r} and in {split!r}'
            owner[case_id] = split
    for split in ('train', 'val'):
        for case_id in manifest.splits[split]:
            voxels = manifest.cases[case_id]['voxels']
            if not voxels:
                return f'case {case_id!r} of split {split!r} has no label'
            if any(voxels.get(str(i), 0) for i in manifest.ood_ids):
                return f'case {case_id!r} of split {split!r} contains an OOD class'
    return None
