"""Queries beside the labels of a store, worked out by hand."""

import pytest
from ml_collections import ConfigDict

from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.errors import UserError
from maxquery_jax.train.query_table import build_query_table, query_hosts, query_names

LABELS = [
    {'id': i, 'name': name, 'role': role}
    for i, (name, role) in enumerate(
        [
            ('background', 'background'),
            ('right_kidney', 'organ'),
            ('left_kidney', 'organ'),
            ('liver', 'organ'),
            ('hepatic_vessel', 'organ'),
            ('kidney_tumor', 'tumour'),
            ('liver_tumor', 'tumour'),
            ('hepatic_vessel_tumor', 'ood'),
            ('lung_tumor', 'ood'),
        ]
    )
]


def names(organs=(), tumours=()):
    return ConfigDict({'organs': organs, 'tumours': tumours})


def test_table_eight_by_default():
    organs, tumours = query_names(names())
    assert (len(organs), len(tumours)) == (25, 20)
    assert [*organs, *tumours] == [concept.name for concept in TAXONOMY]


def test_classes_labels_and_parents_by_hand():
    cfg = names(
        ('spleen', 'liver', 'left_kidney', 'right_kidney', 'hepatic_vessel'),
        ('liver_tumour', 'lung_tumour', 'kidney_tumour', 'hepatic_vessel_tumour'),
    )
    table = build_query_table(cfg, LABELS, {})
    assert table.num_fundamental == 5
    #                      spleen liver left right vessel | liver lung kidney vessel
    assert table.classes == (-1, 3, 2, 1, 4, 6, -1, 5, -1)
    assert table.labels == (-1, 3, 2, 1, 4, 6, 8, 5, 7)
    # background, right, left, liver, vessel, kidney tumour, liver tumour
    assert table.parents == ((), (), (), (), (), (1, 2), (3,))
    assert query_hosts(table.names, 5) == ((1,), (), (3, 2), (4,))


def test_the_manifest_says_where_tumours_lie():
    table = build_query_table(names(), LABELS, {'kidney_tumor': 'left_kidney'})
    assert table.parents[5] == (2,) and table.parents[6] == (3,)


def test_a_tumour_beside_the_vessels_is_no_part_of_them():
    labels = [*LABELS[:7], {**LABELS[7], 'role': 'tumour'}, LABELS[8]]
    table = build_query_table(names(), labels, {})
    assert table.parents[7] == () and table.classes[25 + 14] == 7


def test_a_class_without_a_query_is_refused():
    with pytest.raises(UserError, match="'hepatic_vessel' of the store has no query"):
        build_query_table(names(('liver', 'right_kidney', 'left_kidney')), LABELS, {})
    strange = [*LABELS[:2], {'id': 2, 'name': 'tail', 'role': 'organ'}]
    with pytest.raises(UserError, match=r"'tail' of the store has no query; .*--taxonomy=zept"):
        build_query_table(names(), strange, {})


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'organs': ('liver', 'lever')}, "organs: 'lever' is no organ .* did you mean 'liver'"),
        ({'organs': ('liver_tumour',)}, "organs: 'liver_tumour' is no organ"),
        ({'tumours': ('liver',)}, "tumours: 'liver' is no tumour"),
        ({'organs': ('liver', 'liver')}, 'twice'),
    ],
)
def test_wrong_names(fields, message):
    with pytest.raises(UserError, match=message):
        query_names(names(**fields))
