"""Lists the cases of a data set by the templates of its specification."""

import csv
import dataclasses
import os
import pathlib
import re

from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.spec import CASE, NII, DatasetSpec, FileGroup, SplitTable
from maxquery_jax.data.findings import Issue
from maxquery_jax.data.labels import default_role
from maxquery_jax.data.masks import named_masks, order_masks
from maxquery_jax.data.raw import RawCase, RawDataset, describe_labels
from maxquery_jax.errors import UserError


def read_spec(spec: DatasetSpec, source: str | os.PathLike) -> RawDataset:
    """Lists the cases of a data set.

    Args:
        spec: its specification.
        source: its folder.

    Raises:
        UserError: the folder does not look as the specification says.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f'{source}: is not a folder')
    raw = (
        _read_json(spec, source) if spec.layout.kind == 'dataset_json' else _Lister(spec, source)()
    )
    by_name = {name: raw_id for raw_id, name in spec.labels.items()}
    notes = (*raw.notes, *filter(None, [spec.note]))
    return dataclasses.replace(
        raw,
        name=spec.name,
        channels=spec.channels,
        raw_labels={0: 'background', **spec.labels},
        roles={**(raw.roles or {}), **spec.roles} or None,
        annotated=raw.annotated or spec.annotated_names,
        contains=spec.contains,
        left_right={by_name[joint]: sides for joint, sides in spec.left_right.items()},
        to_taxonomy=spec.to_taxonomy,
        notes=notes,
    )


def _read_json(spec: DatasetSpec, source: pathlib.Path) -> RawDataset:
    raw = read_decathlon(source)
    expected = {raw_id: name.lower() for raw_id, name in spec.layout.json_labels.items()}
    found = {raw_id: name.lower() for raw_id, name in raw.raw_labels.items() if raw_id}
    if expected and found != expected:
        raise UserError(
            f'{source / "dataset.json"}: its labels {found} are not those of {spec.name} '
            f'({expected}); give the folder of that task, or use --dataset=decathlon'
        )
    if not expected and set(found) != set(spec.labels):
        raise UserError(
            f'{source / "dataset.json"}: names the ids {sorted(found)}, the specification '
            f'{sorted(spec.labels)}; make them agree'
        )
    if len(raw.channels) != len(spec.channels):
        raise UserError(
            f'{source / "dataset.json"}: {len(raw.channels)} channels, the specification has '
            f'{len(spec.channels)}; make them agree'
        )
    return dataclasses.replace(raw, roles=None, annotated=None)


class _Lister:
    """Finds the files of every group."""

    def __init__(self, spec: DatasetSpec, source: pathlib.Path):
        self._spec, self._source = spec, source
        self._layout = spec.layout
        self._cases: dict[str, RawCase] = {}
        self._split_of: dict[str, str | None] = {}
        self._problems: list[tuple[str, str, Issue]] = []
        self._notes: list[str] = []
        self._unlabelled: list[str] = []

    def __call__(self) -> RawDataset:
        root = self._find_root()
        for group in self._layout.groups:
            self._list_group(root, group)
        if not self._cases:
            group = self._layout.groups[0]
            raise UserError(
                f'{self._source}: holds images, but no case of {self._spec.name} (labels: '
                f'{group.label}, cases: {group.cases}); see --describe={self._spec.name}'
            )
        if self._layout.split_table is not None:
            self._read_split_table(root, self._layout.split_table)
        if self._unlabelled:
            self._notes.append(
                f'{len(self._unlabelled)} cases have no label and are left out: '
                f'{describe_labels(self._unlabelled, 3)}'
            )
        splits, test = self._divide()
        masks, annotated = self._find_masks()
        return RawDataset(
            name=self._spec.name,
            source=self._source,
            channels=self._spec.channels,
            cases=tuple(self._cases[case_id] for case_id in sorted(self._cases)),
            raw_labels={},
            annotated=annotated,
            splits=splits,
            test=test,
            is_split_binding=False,
            masks=masks,
            problems=tuple(self._problems),
            notes=tuple(self._notes),
        )

    def _find_root(self) -> str:
        """The first sub-folder in which anything matches."""
        is_folder = self._layout.image_kind == 'dicom'
        for root in self._layout.roots:
            for group in self._layout.groups:
                if _match(self._source / root, group.images[0], is_folder):
                    return root
        example = self._layout.groups[0].images[0]
        raise UserError(
            f'{self._source}: holds no {example}; this is not {self._spec.name} as it is '
            f'distributed, see --describe={self._spec.name}'
        )

    def _list_group(self, root: str, group: FileGroup) -> None:
        folder = self._source / root
        is_dicom = self._layout.image_kind == 'dicom'
        found = [_match(folder, template, is_dicom) for template in group.images]
        label_of = _match(folder, group.label, self._layout.label_kind != 'file')
        wanted = re.compile(group.cases)
        for case in sorted(set().union(*found)):
            if wanted.fullmatch(case):
                self._add(root, group, case, found, label_of.pop(case, None))
        for case in sorted(case for case in label_of if wanted.fullmatch(case)):
            if not any(case in files for files in found):
                self._missing(self._id(case), _join(root, label_of[case]), 'label without an image')

    def _id(self, case: str) -> str:
        return self._layout.case_id.replace(CASE, case)

    def _add(
        self,
        root: str,
        group: FileGroup,
        case: str,
        found: list[dict[str, str]],
        label: str | None,
    ) -> None:
        case_id = self._id(case)
        absent = [
            template for template, files in zip(group.images, found, strict=True)
            if case not in files
        ]  # fmt: skip
        for template in absent:
            name = template.replace(CASE, case).replace(NII, '.nii.gz')
            self._missing(case_id, _join(root, name), 'does not exist')
        if absent:
            return
        if label is None and not group.needs_label:
            self._unlabelled.append(case_id)
            return
        if case_id in self._cases:
            raise UserError(f'{self._source}: two sets of files are case {case_id!r}; keep one')
        images = tuple(_join(root, files[case]) for files in found)
        self._cases[case_id] = RawCase(
            case_id, images, None if label is None else _join(root, label)
        )
        self._split_of[case_id] = group.split

    def _missing(self, case_id: str, path: str, value: str) -> None:
        issue = Issue('missing_file', 'error', value, 'add the file, or drop the case')
        self._problems.append((case_id, path, issue))

    def _read_split_table(self, root: str, table: SplitTable) -> None:
        path = self._source / root / table.file
        try:
            with path.open(newline='', encoding='utf-8-sig') as file:
                rows = list(csv.DictReader(file, delimiter=table.delimiter))
        except FileNotFoundError:
            self._notes.append(f'no {table.file}: the cases are divided here')
            return
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f'{path}: cannot be read ({error}); restore it') from error
        if rows and not {table.case, table.split} <= set(rows[0]):
            raise UserError(f'{path}: has no columns {table.case} and {table.split}; restore it')
        for row in rows:
            case_id, split = self._id(row[table.case] or ''), row[table.split]
            if case_id in self._cases:
                if split not in ('train', 'val', 'test'):
                    raise UserError(f'{path}: case {case_id!r} has split {split!r}; restore it')
                self._split_of[case_id] = split

    def _divide(self) -> tuple[dict[str, tuple[str, ...]] | None, tuple[str, ...]]:
        """The data set's own splits if they are complete, and its own test cases."""
        stated = {split: [] for split in ('train', 'val', 'test')}
        for case_id, split in sorted(self._split_of.items()):
            if split is not None:
                stated[split].append(case_id)
        test = tuple(stated['test'])
        if not stated['train'] or not stated['val']:
            return None, test
        return {split: tuple(ids) for split, ids in stated.items()}, test

    def _find_masks(self) -> tuple[dict[str, int] | None, tuple[str, ...] | None]:
        """Ids of the masks in painting order, and which of them the cases have."""
        if self._layout.label_kind != 'masks':
            return None, None
        ids = {name: raw_id for raw_id, name in self._spec.labels.items()}
        roles = {name: self._spec.roles.get(name, default_role(name)) for name in ids}
        order = order_masks(ids, [name for name, role in roles.items() if role != 'organ'])
        labels = [case.label for case in self._cases.values() if case.label is not None]
        counts = named_masks([self._source / label for label in labels], ids)
        partial = [name for name, count in counts.items() if 0 < count < len(labels)]
        if partial:
            self._notes.append(
                f'{len(partial)} masks are absent in some cases, where they count as empty: '
                f'{describe_labels(partial)}'
            )
        present = {name for name, count in counts.items() if count}
        if not present:
            example = self._source / labels[0] if labels else self._source
            raise UserError(f'{example}: holds no mask of a known name, such as {next(iter(ids))}')
        sides = self._spec.left_right
        return order, tuple(
            side
            for name in ids
            if name in present and (self._spec.annotated is None or name in self._spec.annotated)
            for side in sides.get(name, (name,))
        )


def _join(root: str, path: str) -> str:
    return f'{root}/{path}' if root else path


def _match(folder: pathlib.Path, template: str, is_folder: bool) -> dict[str, str]:
    """Case to relative path of everything that a template matches.

    Raises:
        UserError: two paths are the same case.
    """
    pattern, is_seen = '', False
    for part in re.split(r'(\{case\}|\{nii\}|\*\*/|\*)', template):
        if part == CASE:
            pattern += '(?P=case)' if is_seen else '(?P<case>[^/]+)'
            is_seen = True
        else:
            known = {NII: r'(?:\.nii\.gz|\.nii)', '**/': '(?:.+/)?', '*': '[^/]*'}
            pattern += known.get(part, re.escape(part))
    wanted = re.compile(pattern)
    found: dict[str, str] = {}
    for path in sorted(folder.glob(template.replace(CASE, '*').replace(NII, '.nii*'))):
        relative = path.relative_to(folder).as_posix()
        match = wanted.fullmatch(relative)
        if match is None or path.is_dir() != is_folder or path.name.startswith('.'):
            continue
        case = match['case']
        if case in found:
            raise UserError(
                f'{folder}: {found[case]} and {relative} are both case {case!r}; keep one'
            )
        found[case] = relative
    return found
