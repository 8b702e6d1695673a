"""Roles and ids of labels."""

import numpy as np
import pytest

from maxquery_jax.data.labels import RoleFlags, build_label_table, count_ids, default_role
from maxquery_jax.errors import UserError

RAW = {0: 'background', 1: 'right_lung', 2: 'left_lung', 3: 'cord', 4: 'GTV tumour', 7: 'cyst'}


def names(table, role):
    return [table.labels[i]['name'] for i in table.ids_of(role)]


def test_defaults_go_by_name():
    table = build_label_table(RAW)
    assert names(table, 'organ') == ['right_lung', 'left_lung', 'cord']
    assert names(table, 'tumour') == ['GTV tumour', 'cyst']
    assert table.label_map == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 7: 5}


@pytest.mark.parametrize(
    ('name', 'role'),
    [
        ('liver', 'organ'),
        ('Pancreatic Cancer', 'tumour'),
        ('hepatic_tumor', 'tumour'),
        ('kidney_cyst_left', 'tumour'),
        ('Lung mass', 'tumour'),
        ('lesion 2', 'tumour'),
        ('gallbladder', 'organ'),
        ('ignore', 'ignore'),
    ],
)
def test_role_by_name(name, role):
    assert default_role(name) == role


def test_flags_merge_reorder_and_ignore():
    flags = RoleFlags(organ=('lung=right_lung+left_lung',), ood=('cyst',), ignore=('cord',))
    table = build_label_table(RAW, flags)
    assert [(label['name'], label['role']) for label in table.labels] == [
        ('background', 'background'),
        ('lung', 'organ'),
        ('GTV tumour', 'tumour'),
        ('cyst', 'ood'),
    ]
    assert table.label_map == {0: 0, 1: 1, 2: 1, 3: 0, 4: 2, 7: 3}
    assert table.ignored == ('cord',)
    raw = np.array([[[0, 1, 2, 3, 4, 7]]])
    np.testing.assert_array_equal(table.convert(raw), [[[0, 1, 1, 0, 2, 3]]])
    assert table.store_counts({1: 5, 2: 6, 9: 4}) == {1: 11, 0: 4}


def test_flags_win_over_the_data_set_and_it_over_the_name():
    roles = {'cyst': 'ood', 'cord': 'ignore'}
    table = build_label_table(RAW, RoleFlags(tumour=('cord',)), roles)
    assert names(table, 'ood') == ['cyst'] and names(table, 'tumour') == ['cord', 'GTV tumour']


def test_the_rest():
    table = build_label_table(RAW, RoleFlags(tumour=('cyst',), ignore=('*',)))
    assert [label['name'] for label in table.labels] == ['background', 'cyst']
    assert set(table.ignored) == {'right_lung', 'left_lung', 'cord', 'GTV tumour'}


@pytest.mark.parametrize(
    ('raw', 'flags', 'words'),
    [
        (RAW, RoleFlags(organ=('corp',)), "no label 'corp'; did you mean 'cord'"),
        (RAW, RoleFlags(organ=('cord',), tumour=('cord',)), 'to organ and to tumour'),
        (RAW, RoleFlags(organ=('right_lung+left_lung',)), 'name the joint class'),
        (RAW, RoleFlags(organ=('*',), ood=('*',)), 'organ and ood'),
        (RAW, RoleFlags(organ=('cord=right_lung',)), 'name of another label'),
        ({1: 'liver'}, RoleFlags(), 'id 0'),
        ({0: 'background', 70000: 'a'}, RoleFlags(), '70000'),
        ({0: 'background', 1: 'a', 2: 'a'}, RoleFlags(), "'a' names two ids"),
        ({0: 'background', **{i: f'l{i}' for i in range(1, 300)}}, RoleFlags(), '300 classes'),
    ],
)
def test_mistakes_are_named(raw, flags, words):
    with pytest.raises(UserError) as caught:
        build_label_table(raw, flags)
    assert words in str(caught.value)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32'])
def test_counts_and_conversion_of_every_type(dtype):
    table = build_label_table(RAW)
    info = np.iinfo(dtype)
    values = [0, 1, 7, 7, 99, info.max] + ([-3, info.min] if info.min else [])
    raw = np.array(values, dtype).reshape(1, 1, -1).repeat(3, 0)
    counts = count_ids(raw)
    unique, numbers = np.unique(raw, return_counts=True)
    assert counts == dict(zip(unique.tolist(), numbers.tolist(), strict=True))
    unknown = {99: 3, int(info.max): 3} | ({-3: 3, int(info.min): 3} if info.min else {})
    assert table.unknown(counts) == unknown
    expected = [0, 1, 5, 5] + [0] * (len(values) - 4)
    np.testing.assert_array_equal(table.convert(raw), [[expected]] * 3)


def test_300_does_not_become_44():
    table = build_label_table({0: 'background', 44: 'spleen'})
    raw = np.full((2, 2, 2), 300)
    assert table.unknown(count_ids(raw)) == {300: 8}
    assert table.convert(raw).max() == 0
