"""Label tables and the mapping of raw ids."""

import numpy as np
import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report.labels import LabelTable, map_labels, parse_label_map


def _table():
    return LabelTable.from_json(helper.LABELS, 'x.json')


def test_roles():
    table = _table()
    assert table.known_ids == (1, 2, 3)
    assert table.ids('ood') == (4,)
    assert table.class_groups == (0, 1, 2, 2, 0)
    assert table.to_json() == helper.LABELS
    np.testing.assert_array_equal(
        table.mask(np.arange(5, dtype=np.uint8), 'organ', 'ood'), [False, True, False, False, True]
    )


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (None, 'must be a list'),
        ([{'id': 0}], 'must be a list'),
        (helper.LABELS[1:], 'count up from 0'),
        (helper.LABELS[:1], 'count up from 0'),
        ([{**helper.LABELS[0], 'role': 'organ'}, helper.LABELS[1]], 'must be background'),
        ([helper.LABELS[0], {**helper.LABELS[1], 'role': 'bone'}], 'roles among'),
        ([helper.LABELS[0], {**helper.LABELS[1], 'name': 'background'}], 'names distinct'),
    ],
)
def test_bad_tables(labels, message):
    with pytest.raises(UserError, match=message) as caught:
        LabelTable.from_json(labels, 'x.json')
    assert str(caught.value).startswith('x.json')


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.uint16])
@pytest.mark.parametrize('extra', [{}, {-3: 2}, {9_000_000: 1}])
def test_mapping_equals_a_lookup_per_voxel(dtype, extra):
    label_map = parse_label_map(helper.LABEL_MAP | extra, _table(), 'x.json')
    keys = [key for key in label_map if np.iinfo(dtype).min <= key <= np.iinfo(dtype).max]
    raw = np.random.default_rng(0).choice(keys, (5, 6, 7)).astype(dtype)
    result = map_labels(raw, label_map, 'x.nii.gz')
    expected = [label_map[int(value)] for value in raw.ravel()]
    np.testing.assert_array_equal(result.ravel(), expected)
    assert result.dtype == np.uint8


def test_unknown_ids_are_counted_not_wrapped():
    raw = np.array([0, 1, 256, 256, 257], np.int16)  # 256 and 257 would wrap to 0 and 1
    with pytest.raises(UserError, match=r'3 voxels have label ids \[256, 257\]'):
        map_labels(raw, {0: 0, 1: 1}, 'x.nii.gz')
    with pytest.raises(UserError, match=r'label ids \[-1\]'):
        map_labels(np.array([-1, 0], np.int8), {0: 0, 1: 1}, 'x.nii.gz')


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ([1, 2], 'raw id to class id'),
        ({'liver': 1}, 'raw id to class id'),
        ({'1': 7}, 'class 7, classes are 0 to 4'),
    ],
)
def test_bad_label_maps(data, message):
    with pytest.raises(UserError, match=message):
        parse_label_map(data, _table(), 'x.json')
