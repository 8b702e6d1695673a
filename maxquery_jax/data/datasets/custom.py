"""A specification from a JSON file: one's own data, or a public data set laid out otherwise.

`TEMPLATE` shows every key. `like` takes all that is left out from a data set of the catalogue, so
that TotalSegmentator's label maps need only `{"like": "totalsegmentator", "layout": ...}`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.datasets.spec import DatasetSpec, FileGroup, Layout, SplitTable
from maxquery_jax.data.raw import read_json
from maxquery_jax.errors import UserError

_WHAT = 'launch.prepare --spec_template prints an example'

TEMPLATE: Mapping[str, Any] = {
    'name': 'my_kidneys',
    'title': 'Kidneys of our clinic',
    'channels': ['CT'],
    'layout': {
        'kind': 'files',
        'groups': [
            {
                'images': ['images/{case}_ct{nii}'],
                'label': 'labels/{case}_seg{nii}',
                'cases': '.+',
                'split': None,
                'needs_label': True,
            }
        ],
        'roots': [''],
        'case_id': '{case}',
        'image_kind': 'file',
        'label_kind': 'file',
    },
    'labels': {'1': 'liver', '2': 'kidney', '3': 'kidney_tumour', '4': 'bone'},
    'contains': {'kidney_tumour': 'kidney'},
    'left_right': {'kidney': ['right_kidney', 'left_kidney']},
    'to_taxonomy': {'bone': None},
    'roles': {'kidney_tumour': 'tumour'},
    'annotated': None,
    'folds': 5,
    'licence': '',
    'citation': '',
    'url': '',
    'note': '',
}


def template_text() -> str:
    """The template as JSON."""
    return json.dumps(TEMPLATE, indent=1)


def load_spec(path: str | os.PathLike) -> DatasetSpec:
    """Reads a specification.

    Raises:
        UserError: the file or a key is missing or malformed, naming both.
    """
    path = pathlib.Path(path)
    data = read_json(path, _WHAT)
    try:
        return _build(data)
    except UserError as error:
        raise UserError(f'{path}: {error}; {_WHAT}') from error


def _build(data: Mapping[str, Any]) -> DatasetSpec:
    known = {field.name for field in dataclasses.fields(DatasetSpec)} | {'like'}
    _check_keys(data, known, 'the specification')
    fields = {name: _CONVERT[name](name, value) for name, value in data.items() if name != 'like'}
    like = data.get('like')
    if like is None:
        missing = [name for name in ('name', 'layout', 'labels') if name not in fields]
        if missing:
            raise UserError(f'key {missing[0]!r} is missing')
        spec = DatasetSpec(**{'title': fields['name'], 'layout_source': 'a --spec file', **fields})
    elif like not in DATASETS:
        raise UserError(f"'like' names {like!r}; data sets: {', '.join(DATASETS)}")
    else:
        spec = dataclasses.replace(DATASETS[like], **{'layout_source': 'a --spec file', **fields})
    return spec


def _check_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    strange = sorted(set(data) - known)
    if strange:
        raise UserError(f'{where} has no key {strange[0]!r}; keys: {", ".join(sorted(known))}')


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f'key {key!r} must be a text, not {value!r}')
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f'key {key!r} must be a list of texts, not {value!r}')
    return tuple(value)


def _optional(convert: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda key, value: None if value is None else convert(key, value)


def _number(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f'key {key!r} must be a whole number, not {value!r}')
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f'key {key!r} must be true or false, not {value!r}')
    return value


def _object(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'key {key!r} must be an object, not {value!r}')
    return value


def _mapping(key: str, value: Any) -> dict[str, Any]:
    return {name: _optional(_text)(key, item) for name, item in _object(key, value).items()}


def _relation(key: str, value: Any) -> dict[str, str]:
    return {name: _text(key, item) for name, item in _object(key, value).items()}


def _ids(key: str, value: Any) -> dict[int, str]:
    """`{"1": "liver"}`; a background with id 0 may be named."""
    labels = _relation(key, value)
    wrong = [raw for raw in labels if not raw.isdecimal()]
    if wrong:
        raise UserError(f'key {key!r}: {wrong[0]!r} is no id')
    return {int(raw): name for raw, name in labels.items() if int(raw)}


def _sides(key: str, value: Any) -> dict[str, tuple[str, str]]:
    sides = {}
    for name, item in _object(key, value).items():
        pair = _texts(key, item)
        if len(pair) != 2:
            raise UserError(f'key {key!r}: {name!r} needs the names of right and left')
        sides[name] = pair[0], pair[1]
    return sides


def _group(key: str, value: Any) -> FileGroup:
    data = _object(key, value)
    convert = {
        'images': _texts,
        'label': _text,
        'cases': _text,
        'split': _optional(_text),
        'needs_label': _flag,
    }
    _check_keys(data, set(convert), 'a group')
    missing = [name for name in ('images', 'label') if name not in data]
    if missing:
        raise UserError(f'a group needs the key {missing[0]!r}')
    return FileGroup(**{name: convert[name](name, item) for name, item in data.items()})


def _groups(key: str, value: Any) -> tuple[FileGroup, ...]:
    if not isinstance(value, list):
        raise UserError(f'key {key!r} must be a list')
    return tuple(_group(key, item) for item in value)


def _split_table(key: str, value: Any) -> SplitTable:
    data = _relation(key, value)
    known = {field.name for field in dataclasses.fields(SplitTable)}
    _check_keys(data, known, 'split_table')
    missing = sorted({'file', 'case', 'split'} - set(data))
    if missing:
        raise UserError(f'split_table needs the key {missing[0]!r}')
    return SplitTable(**data)


def _layout(key: str, value: Any) -> Layout:
    data = _object(key, value)
    convert: dict[str, Callable[[str, Any], Any]] = {
        'kind': _text,
        'groups': _groups,
        'roots': _texts,
        'case_id': _text,
        'image_kind': _text,
        'label_kind': _text,
        'split_table': _optional(_split_table),
        'json_labels': _ids,
    }
    _check_keys(data, set(convert), 'layout')
    return Layout(**{name: convert[name](name, item) for name, item in data.items()})


_CONVERT: Mapping[str, Callable[[str, Any], Any]] = {
    'name': _text,
    'title': _text,
    'layout': _layout,
    'labels': _ids,
    'to_taxonomy': _mapping,
    'annotated': _optional(_texts),
    'contains': _relation,
    'left_right': _sides,
    'roles': _relation,
    'channels': _texts,
    'folds': _number,
    'licence': _text,
    'citation': _text,
    'url': _text,
    'layout_source': _text,
    'note': _text,
}
