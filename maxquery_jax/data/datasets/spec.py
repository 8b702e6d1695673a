"""What there is to know about a data set, as data: its files, its labels and where it comes from.

A specification says how the data set lies on disk as it is distributed, which id is which label,
which tumour lies in which organ, which labels join both sides, and what each label is in the
taxonomy. `catalogue` holds those of public data sets; `custom` reads one from a JSON file.
"""

import dataclasses
import re
from collections.abc import Mapping

from maxquery_jax.errors import UserError

KINDS = ('files', 'dataset_json')
IMAGE_KINDS = ('file', 'dicom')
LABEL_KINDS = ('file', 'masks', 'slices')
SPLITS = ('train', 'val', 'test')
CASE, NII = '{case}', '{nii}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileGroup:
    """Cases whose files are named alike.

    Templates are paths relative to the data set's folder. `{case}` stands for the case, `{nii}` for
    `.nii.gz` or `.nii`, `*` for anything but a slash and a leading `**/` for any folders.

    Attributes:
        images: one template per channel; of a folder where the images are DICOM.
        label: template of the label map, of the folder of masks, or of the folder of slices.
        cases: regular expression that `{case}` must match as a whole.
        split: 'train', 'val' or 'test', where the data set divides its cases so.
        needs_label: whether a case without a label is an error; otherwise it is left out.
    """

    images: tuple[str, ...]
    label: str
    cases: str = '.+'
    split: str | None = None
    needs_label: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitTable:
    """A CSV file that assigns cases to splits.

    Attributes:
        file: relative path.
        case: name of the column with the case.
        split: name of the column that says train, val or test.
        delimiter: between columns.
    """

    file: str
    case: str
    split: str
    delimiter: str = ','


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of a data set are.

    Attributes:
        kind: 'files', or 'dataset_json' for Decathlon and nnU-Net folders.
        groups: of cases; 'files' only.
        roots: folders below the source that may hold it all; the first that matches is taken.
        case_id: id of a case, from `{case}`.
        image_kind: 'file', or 'dicom' for a folder of slices.
        label_kind: 'file', 'masks' for a folder with one binary mask per label, or 'slices' for a
            folder with one picture per slice.
        split_table: assignment of cases to splits.
        json_labels: names of the ids in dataset.json, to notice the wrong task.
    """

    kind: str = 'files'
    groups: tuple[FileGroup, ...] = ()
    roots: tuple[str, ...] = ('',)
    case_id: str = CASE
    image_kind: str = 'file'
    label_kind: str = 'file'
    split_table: SplitTable | None = None
    json_labels: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_choice('kind', self.kind, KINDS)
        _check_choice('image_kind', self.image_kind, IMAGE_KINDS)
        _check_choice('label_kind', self.label_kind, LABEL_KINDS)
        if self.kind == 'files' and not self.groups:
            raise UserError('layout: give at least one group of files')
        if CASE not in self.case_id:
            raise UserError(f'layout: case_id {self.case_id!r} has no {CASE}')
        for group in self.groups:
            _check_group(group)
        if len({len(group.images) for group in self.groups}) > 1:
            raise UserError('layout: all groups must have the same number of images (channels)')

    @property
    def summary(self) -> str:
        """The layout in a few words."""
        if self.kind == 'dataset_json':
            return 'dataset.json'
        image = self.groups[0].images[0]
        folder, _, name = image.rpartition('/')
        per_case = 'folder per case' if CASE in folder else 'files'
        if self.image_kind == 'dicom':
            per_case = 'DICOM folder per case'
        labels = {'file': '', 'masks': ', masks', 'slices': ', PNG labels'}
        return per_case + labels[self.label_kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set.

    Attributes:
        name: for `--dataset`.
        title: in full.
        layout: of its files.
        labels: id to name, without background. Where labels are masks the names are those of the
            files and the ids are ours.
        to_taxonomy: label (each side of a split one) to concept of the taxonomy, None for what is
            not in it.
        annotated: labels that are annotated everywhere; None for all.
        contains: label of a tumour to that of the organ it lies in.
        left_right: label that joins both sides to the names of right and left.
        roles: label to role, where its name says something else.
        channels: names of the image channels.
        folds: of the usual cross-validation.
        licence: of the data.
        citation: to give when using it.
        url: where it is described or had from.
        layout_source: public source of what is said here about files and ids, or 'verified on real
            files'.
        note: what a user should know.
    """

    name: str
    title: str
    layout: Layout
    labels: Mapping[int, str]
    to_taxonomy: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    annotated: tuple[str, ...] | None = None
    contains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_right: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    channels: tuple[str, ...] = ('CT',)
    folds: int = 5
    licence: str = ''
    citation: str = ''
    url: str = ''
    layout_source: str = ''
    note: str = ''

    def __post_init__(self):
        names = set(self.labels.values())
        if len(names) != len(self.labels) or 0 in self.labels:
            raise UserError(f'{self.name}: labels need ids above 0 and names of their own')
        sides = set(self.label_names)
        for field, used, known in (
            ('left_right', self.left_right, names),
            ('contains', {*self.contains, *self.contains.values()}, names),
            ('to_taxonomy', self.to_taxonomy, sides),
            ('roles', self.roles, sides),
            ('annotated', self.annotated or (), sides | names),
        ):
            strangers = sorted(set(used) - known)
            if strangers:
                raise UserError(f'{self.name}: {field} speaks of {strangers[0]!r}, no label of it')
        for group in self.layout.groups:
            if len(group.images) != len(self.channels):
                raise UserError(
                    f'{self.name}: {len(self.channels)} channels, but {len(group.images)} images'
                )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Every label, split ones as right and left."""
        return tuple(
            side
            for _, name in sorted(self.labels.items())
            for side in self.left_right.get(name, (name,))
        )

    @property
    def annotated_names(self) -> tuple[str, ...]:
        """The labels that are annotated, split ones as right and left."""
        if self.annotated is None:
            return self.label_names
        return tuple(side for name in self.annotated for side in self.left_right.get(name, (name,)))


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f'layout: {field} {value!r} is none of {", ".join(known)}')


def _check_group(group: FileGroup) -> None:
    if not group.images:
        raise UserError('layout: a group has no images')
    for template in (*group.images, group.label):
        if CASE not in template:
            raise UserError(f'layout: {template!r} has no {CASE}')
        if template.startswith('/') or '..' in template.split('/'):
            raise UserError(f'layout: {template!r} leaves the folder')
        if '**' in template.removeprefix('**/'):
            raise UserError(f'layout: {template!r}: ** may only stand at the beginning')
    if group.split is not None and group.split not in SPLITS:
        raise UserError(f'layout: split {group.split!r} is none of {", ".join(SPLITS)}')
    try:
        re.compile(group.cases)
    except re.error as error:
        raise UserError(f'layout: cases {group.cases!r} is no pattern ({error})') from error
