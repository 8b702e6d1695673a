"""What `--list` and `--describe` print."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.datasets.spec import CASE, NII, DatasetSpec
from maxquery_jax.data.taxonomy import role_of
from maxquery_jax.errors import UserError

_WIDTH = 66  # of the column with the labels


def format_list(generic: Mapping[str, str]) -> str:
    """A table of all data sets: name, layout, what is annotated, licence.

    Args:
        generic: names and descriptions of layouts that are no particular data set.
    """
    rows = [('name', 'layout', 'annotates', 'licence')]
    for spec in DATASETS.values():
        names = spec.annotated_names
        text = ', '.join(names)
        if len(text) > _WIDTH:
            text = f'{len(names)} labels: {textwrap.shorten(text, _WIDTH - 12, placeholder=" ...")}'
        licence = spec.licence.split(' (')[0]
        rows.append((spec.name, spec.layout.summary, text, licence))
    lines = [*_align(rows), '', *_align([(name, text) for name, text in generic.items()])]
    return '\n'.join([*lines, '', '--describe=NAME shows files, labels, sources and citation.'])


def format_spec(name: str) -> str:
    """Everything about one data set.

    Raises:
        UserError: there is no such data set.
    """
    if name not in DATASETS:
        raise UserError(f'--describe={name}: no such data set; names: {", ".join(DATASETS)}')
    spec = DATASETS[name]
    fields = [
        ('licence', spec.licence),
        ('cite', spec.citation),
        ('from', spec.url),
        ('layout', f'{spec.layout.summary}; source: {spec.layout_source}'),
        ('folds', f'{spec.folds} (--folds={spec.folds} --fold=0)'),
        *[('note', note) for note in [spec.note] if note],
    ]
    text = [f'{spec.name}: {spec.title}', '']
    for key, value in fields:
        text += textwrap.wrap(
            value, 96, initial_indent=f'{key:9}', subsequent_indent=' ' * 9
        )  # fmt: skip
    return '\n'.join([*text, '', 'files', *_tree(spec), '', 'labels', *_align(_labels(spec))])


def _labels(spec: DatasetSpec) -> list[tuple[str, ...]]:
    rows = [('id', 'name', 'in --taxonomy=zept', 'role there', 'lies in')]
    for raw_id, joint in sorted(spec.labels.items()):
        for name in spec.left_right.get(joint, (joint,)):
            concept = spec.to_taxonomy.get(name)
            role = '' if concept is None else role_of(concept)
            rows.append((str(raw_id), name, concept or '-', role, spec.contains.get(name, '')))
    return rows


def _tree(spec: DatasetSpec) -> Iterable[str]:
    """The paths that are looked for."""
    layout = spec.layout
    if layout.kind == 'dataset_json':
        yield '  dataset.json, and the files that it lists'
        return
    for group in layout.groups:
        split = f'  ({group.split})' if group.split else ''
        ends = {'file': '', 'dicom': '/  (DICOM slices)'}
        kinds = {'file': '', 'masks': '/NAME.nii.gz  (one per label)', 'slices': '/*.png'}
        for image in group.images:
            yield f'  {_show(image)}{ends[layout.image_kind]}{split}'
        optional = '' if group.needs_label else '  (cases without one are left out)'
        yield f'  {_show(group.label)}{kinds[layout.label_kind]}{optional}'
    if layout.split_table is not None:
        yield f'  {layout.split_table.file}  (splits)'
    if any(layout.roots):
        yield f'  in --source itself or below: {", ".join(filter(None, layout.roots))}'


def _show(template: str) -> str:
    return template.replace(CASE, 'CASE').replace(NII, '.nii.gz').replace('**/', '.../')


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
