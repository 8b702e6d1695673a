"""The check of a data set: every bad file in one run, with its case, file, reason and fix."""

import dataclasses
import json
import re

import nifti_helper as helper
import numpy as np
import pytest
from bad_input_table import AFFINE, IMAGE, SHAPE, TABLE, Damage, label_of

from maxquery_jax.data.check import (
    ReadOptions,
    check_dataset,
    count_errors,
    format_table,
    write_rows,
)
from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.errors import UserError

KEYS = ['case', 'file', 'check', 'severity', 'value', 'fix']


# Those of the table whose fault lies in the files of one case.
BAD_CASES = {
    bad.name: bad
    for bad in TABLE
    if isinstance(bad.make, Damage) and bad.check and 'check' in bad.verbs and not bad.make.options
}


@pytest.fixture(scope='module')
def bad_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bad')
    cases = {name: helper.blob_case(i, SHAPE) for i, name in enumerate(['fine', *BAD_CASES], 9)}
    helper.decathlon(folder, cases)
    for name, bad in BAD_CASES.items():
        bad.make.apply(folder, name)
    return folder


@pytest.fixture(scope='module')
def bad_rows(bad_folder):
    return check_dataset('decathlon', bad_folder)


@pytest.mark.parametrize('name', BAD_CASES)
def test_every_bad_file_is_listed(name, bad_rows):
    bad = BAD_CASES[name]
    file = bad.file.replace('/a.', f'/{name}.')
    (row,) = [row for row in bad_rows if (row.case, row.check, row.file) == (name, bad.check, file)]
    assert row.severity == ('error' if bad.code else 'warning')
    assert re.search(bad.words.replace('case a', 'case .*'), row.value) and row.fix


def test_nothing_else_is_reported(bad_rows):
    assert 'fine' not in {row.case for row in bad_rows} and len(BAD_CASES) > 40
    # Several share their voxels, and a wrong image may not fit its label.
    side_effects = {'duplicate', 'affine_mismatch', 'shape_mismatch'}
    for row in bad_rows:
        assert row.check in {BAD_CASES[row.case].check} | side_effects, row
    assert {row.check for row in bad_rows} <= set(CHECKS)


def test_workers_find_the_same(bad_folder, bad_rows):
    assert check_dataset('decathlon', bad_folder, workers=2) == bad_rows


def test_json_has_exactly_the_documented_keys(bad_rows, tmp_path):
    path = tmp_path / 'new' / 'findings.json'
    write_rows(path, bad_rows)
    rows = json.loads(path.read_text())
    assert len(rows) == len(bad_rows) and all(list(row) == KEYS for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert rows[0] == dataclasses.asdict(bad_rows[0])
    assert [p.name for p in path.parent.iterdir()] == ['findings.json']
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='cannot be written'):
        write_rows(tmp_path / 'file' / 'x.json', bad_rows)


def test_table_lists_errors_first(bad_rows):
    lines = format_table(bad_rows).splitlines()
    assert len(lines) == len(bad_rows) + 1
    kinds = [line.split()[0] for line in lines[1:]]
    assert kinds == sorted(kinds) and kinds.count('error') == count_errors(bad_rows)
    assert format_table([]) == ''


def test_errors_are_accepted_by_name(bad_folder):
    errors = {bad.check for bad in BAD_CASES.values() if bad.code}
    read = ReadOptions(allow=frozenset(errors | {'affine_mismatch', 'duplicate'}))
    rows = check_dataset('decathlon', bad_folder, read=read)
    assert count_errors(rows) == 0
    fixes = {(row.case, row.check): row.fix for row in rows}
    assert fixes['truncated_gz', 'truncated'] == 'the case is left out'
    assert fixes['shape_mismatch', 'shape_mismatch'] == 'the case is left out'
    assert fixes['label_300', 'label_unknown'] == 'accepted by --allow=label_unknown'
    with pytest.raises(UserError, match="no check is called 'cut'"):
        check_dataset('decathlon', bad_folder, read=ReadOptions(allow=frozenset({'cut'})))


def test_options_of_reading(tmp_path):
    image, label = helper.blob_case(0, SHAPE)
    image = image.astype(np.float32)
    image[0, 0, 0] = np.inf
    helper.decathlon(tmp_path, {'a': (image, label)})
    for sub, array in (('imagesTr', image), ('labelsTr', label)):
        helper.write(tmp_path / sub / 'a.nii.gz', array, AFFINE, sform_code=0)
    read = ReadOptions(nan_policy='fill', assume_orientation='LPS')
    rows = check_dataset('decathlon', tmp_path, read=read)
    assert count_errors(rows) == 0
    assert {row.check for row in rows} == {'nonfinite', 'orientation_unknown'}
    for wrong in (ReadOptions(nan_policy='zero'), ReadOptions(assume_orientation='XYZ')):
        with pytest.raises(UserError, match='--'):
            check_dataset('decathlon', tmp_path, read=wrong)


def test_too_large_for_the_memory(tmp_path):
    helper.decathlon(tmp_path, {'a': helper.blob_case(0, SHAPE)})
    rows = check_dataset('decathlon', tmp_path, read=ReadOptions(max_bytes=1000))
    assert {row.check for row in rows} == {'too_large'}


def test_label_stored_along_other_axes_matches(tmp_path):
    """Image LPS, label ASR: the same voxels of the world."""
    image, label = helper.blob_case(3, SHAPE)
    helper.decathlon(tmp_path, {'a': (image, label)})
    # L P S of the image are axes 0 1 2; the label runs A (-1), S (2), R (-0).
    turned = np.flip(label, (0, 1)).transpose(1, 2, 0)
    affine = np.zeros((4, 4))
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = -AFFINE[:3, 1], AFFINE[:3, 2], -AFFINE[:3, 0]
    last = np.array([SHAPE[0] - 1, SHAPE[1] - 1, 0, 1])
    affine[:, 3] = AFFINE @ last
    helper.write(tmp_path / 'labelsTr' / 'a.nii.gz', turned, affine)
    assert check_dataset('decathlon', tmp_path) == []


# What only shows across cases.


def duplicates(folder, names, splits=None):
    """Cases with the voxels of case `a`."""
    cases = {name: helper.blob_case(0 if name in names else 5 + i, SHAPE)
             for i, name in enumerate('abcdefgh')}  # fmt: skip
    helper.decathlon(folder, cases)
    split = SplitOptions(given=splits)
    return [r for r in check_dataset('decathlon', folder, split=split) if r.check == 'duplicate']


def test_duplicate_across_splits_is_an_error(tmp_path):
    splits = {'train': list('acdef'), 'val': ['g'], 'test': ['b', 'h']}
    (row,) = duplicates(tmp_path, 'ab', splits)
    assert (row.case, row.severity) == ('b', 'error')
    assert 'case a' in row.value and 'test' in row.value and 'train' in row.value


def test_duplicate_within_a_split_is_a_warning(tmp_path):
    splits = {'train': list('abcdef'), 'val': ['g'], 'test': ['h']}
    (row,) = duplicates(tmp_path, 'ab', splits)
    assert row.severity == 'warning'


def test_duplicate_stored_otherwise_is_found(tmp_path):
    """The same scan as float32 with other axes."""
    image, label = helper.blob_case(0, SHAPE)
    helper.decathlon(tmp_path, {'a': (image, label), 'b': (image, label)})
    flipped = AFFINE.copy()
    flipped[:, 3] += flipped[:, 0] * (SHAPE[0] - 1)
    flipped[:3, 0] *= -1
    for sub, array in (('imagesTr', image.astype(np.float32)), ('labelsTr', label)):
        helper.write(tmp_path / sub / 'b.nii.gz', array[::-1], flipped)
    rows = check_dataset('decathlon', tmp_path)
    assert [row.check for row in rows] == ['duplicate']


def test_names_that_clash_or_leave_the_folder(tmp_path):
    outside = tmp_path / 'secret.nii.gz'
    folder = helper.decathlon(
        tmp_path / 'data',
        {'Case_1': helper.blob_case(0, SHAPE), 'case_1': helper.blob_case(1, SHAPE)},
        extra={'training': [
            {'image': 'imagesTr/Case_1.nii.gz', 'label': 'labelsTr/Case_1.nii.gz'},
            {'image': 'imagesTr/case_1.nii.gz', 'label': 'labelsTr/case_1.nii.gz'},
            {'image': '../secret.nii.gz', 'label': 'labelsTr/case_1.nii.gz'},
            {'image': '/etc/passwd.nii.gz', 'label': 'labelsTr/case_1.nii.gz'},
        ]},
    )  # fmt: skip
    helper.write(outside, IMAGE, AFFINE)
    rows = check_dataset('decathlon', folder)
    found = {(row.check, row.file) for row in rows if row.severity == 'error'}
    assert ('path', '../secret.nii.gz') in found and ('path', '/etc/passwd.nii.gz') in found
    clash = [row for row in rows if row.check == 'case_name']
    assert [row.case for row in clash] == ['case_1'] and "'Case_1'" in clash[0].value


@pytest.mark.parametrize('name', ['a case (1)', 'Fälle_日本', "it's", 'x' * 120, '.hidden', '%2E'])
def test_odd_names_work(name, tmp_path):
    helper.decathlon(tmp_path, {name: helper.blob_case(0, SHAPE)})
    assert check_dataset('decathlon', tmp_path) == []


@pytest.mark.parametrize('name', ['new\nline', 'x' * 210])
def test_names_that_no_store_can_hold(name, tmp_path):
    helper.decathlon(tmp_path, {name: helper.blob_case(0, SHAPE)})
    rows = check_dataset('decathlon', tmp_path)
    assert [row.check for row in rows] == ['case_name']
    assert len(format_table(rows).splitlines()) == 2


def test_ood_cases_must_not_train(tmp_path):
    cases = {name: helper.blob_case(i, SHAPE, (1, 3) if name == 'c' else (1, 2))
             for i, name in enumerate('abc')}  # fmt: skip
    helper.decathlon(tmp_path, cases)
    roles = RoleFlags(ood=('cyst',))
    splits = {'train': ['a', 'c'], 'val': [], 'test': ['b']}
    rows = check_dataset(
        'decathlon', tmp_path, roles=roles, split=SplitOptions(given=splits)
    )  # fmt: skip
    assert [(row.case, row.check, row.severity) for row in rows] == [('c', 'ood_in_train', 'error')]
    assert check_dataset('decathlon', tmp_path, roles=roles) == []
    with pytest.raises(UserError, match='splits name zzz'):
        check_dataset('decathlon', tmp_path, split=SplitOptions(given={'train': ['zzz']}))


def test_unlabelled_cases(tmp_path):
    for name in 'ab':
        helper.write(tmp_path / f'{name}_ct.nii.gz', helper.hu_volume(SHAPE, ord(name)), AFFINE)
    images = PairOptions(images=('*_ct.nii.gz',))
    assert check_dataset('pairs', tmp_path, pairs=images) == []
    helper.write(tmp_path / 'a_seg.nii.gz', label_of(1), AFFINE)
    both = PairOptions(('*_ct.nii.gz',), '*_seg.nii.gz', '1:liver')
    rows = check_dataset('pairs', tmp_path, pairs=both)
    assert [(row.case, row.check) for row in rows] == [('b', 'missing_label')]


def test_every_file_is_read_once(tmp_path, monkeypatch):
    """One pass serves the checks and the statistics."""
    helper.decathlon(tmp_path, {'a': helper.blob_case(0, SHAPE)})
    opened = []
    original = type(tmp_path).open

    def spy(path, *args, **kwargs):
        opened.append(path.name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(type(tmp_path), 'open', spy)
    assert check_dataset('decathlon', tmp_path) == []
    assert opened.count('a.nii.gz') == 2  # image and label, each once
