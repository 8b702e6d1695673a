"""ZePT Table 8 and the fixed label table."""

import pytest

from maxquery_jax.data.datasets.phantom.tissues import ORGANS
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.taxonomy import CONCEPTS, TAXONOMY, build_taxonomy_table, find_concept
from maxquery_jax.errors import UserError

# Typed from the paper's Table 8: label index of its tumours, and the two that are seen.
TUMOURS = {
    26: 'Spleen Tumor', 27: 'Kidney Tumor', 28: 'Kidney Cyst', 29: 'Gall Bladder Tumor',
    30: 'Esophagus Tumor', 31: 'Liver Tumor', 32: 'Stomach Tumor', 33: 'Aortic Tumor',
    34: 'Postcava Tumor Thrombus', 35: 'Portal Vein Tumor Thrombus', 36: 'Pancreas Tumor',
    37: 'Adrenal Tumor', 38: 'Adrenal Cyst', 39: 'Duodenal Tumor', 40: 'Hepatic Vessel Tumor',
    41: 'Lung Tumor', 42: 'Lung Cyst', 43: 'Colon Tumor', 44: 'Small Intestinal Neoplasm',
    45: 'Rectal Tumor',
}  # fmt: skip
RAW = {0: 'background', 1: 'Kidney', 2: 'kidney tumor', 3: 'Small Bowel', 7: 'bone'}
SIDES = {1: ('right kidney', 'left kidney')}


def test_table_8():
    assert len(TAXONOMY) == 45 and len(CONCEPTS) == 45
    assert [concept.name for concept in TAXONOMY[:25]] == list(ORGANS)  # docs/phantom.md
    for index, name in TUMOURS.items():
        concept = TAXONOMY[index - 1]
        assert concept.name == name.lower().replace(' ', '_').replace('tumor', 'tumour')
        assert concept.kind == 'tumour' and find_concept(name) == concept.name
        assert concept.seen == (index in (27, 31))
        assert concept.organ is not None
        assert all(CONCEPTS[organ].kind == 'organ' for organ in concept.organ.split('+'))
    assert all(concept.organ is None and concept.seen for concept in TAXONOMY[:25])


def test_every_data_set_gets_the_same_table():
    first = build_taxonomy_table({0: 'background', 1: 'liver', 2: 'liver tumour'})
    second = build_taxonomy_table({0: 'background', 9: 'spleen'})
    assert first.labels == second.labels
    roles = [label['role'] for label in first.labels]
    assert roles == ['background'] + ['organ'] * 25 + ['tumour'] * 2 + ['ood'] * 18
    assert [label['name'] for label in first.labels[26:28]] == ['kidney_tumour', 'liver_tumour']
    assert [label['id'] for label in first.labels] == list(range(46))
    assert first.label_map == {0: 0, 1: 6, 2: 27} and second.label_map == {0: 0, 9: 1}


def test_names_are_understood():
    for name, concept in {
        'Gallbladder': 'gall_bladder', 'kidney_right': 'right_kidney', 'Left Lung': 'left_lung',
        'small-bowel': 'intestine', 'pancreatic tumor': 'pancreas_tumour', 'tumour': None,
        'inferior vena cava': 'postcava', 'heart': None,
    }.items():  # fmt: skip
        assert find_concept(name) == concept


def test_sides_relations_and_what_is_left_out():
    table = build_taxonomy_table(
        RAW, to_taxonomy={'bone': None}, left_right=SIDES, contains={'kidney tumor': 'Kidney'}
    )
    assert table.label_map == {0: 0, 1: 2, 2: 26, 3: 19, 7: 0}
    assert table.ids['left kidney'] == 3 and table.ignored == ('bone',)
    assert table.contains == {'kidney_tumour': 'right_kidney+left_kidney'}
    (rule,) = table.left_right
    assert (rule.right, rule.left, rule.inside) == (2, 3, (26,)) and rule.joint >= 46


def test_flags():
    labels = {0: 'background', 1: 'pancreas', 2: 'pancreas tumour', 3: 'heart', 4: 'bone'}
    table = build_taxonomy_table(labels, RoleFlags(ignore=('*',), tumour=('pancreas_tumour',)))
    assert set(table.ignored) == {'heart', 'bone'}
    assert table.labels[table.label_map[2]]['role'] == 'tumour'
    assert len(table.ids_of('tumour')) == 3 and len(table.labels) == 46
    table = build_taxonomy_table({0: 'background', 1: 'liver'}, RoleFlags(ood=('liver_tumour',)))
    assert len(table.ids_of('tumour')) == 1


@pytest.mark.parametrize(
    ('flags', 'stated', 'words'),
    [
        (RoleFlags(), {}, "'bone' is not in the taxonomy.*--ignore=bone"),
        (RoleFlags(), {'bone': 'bladdr'}, "'bladdr'; did you mean bladder"),
        (RoleFlags(ignore=('bome',)), {}, "no label 'bome'"),
        (RoleFlags(organ=('bone',)), {}, '--taxonomy has fixed classes'),
        (RoleFlags(ignore=('bone',), tumour=('liver',)), {}, '--tumour=liver'),
        (RoleFlags(ood=('kidney_cyst',), tumour=('kidney_cyst',)), {}, '--tumour and to --ood'),
    ],
)
def test_mistakes_are_named(flags, stated, words):
    with pytest.raises(UserError, match=words):
        build_taxonomy_table(RAW, flags, to_taxonomy=stated, left_right=SIDES)
