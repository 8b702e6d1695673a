"""Splitting joint labels into right and left."""

import numpy as np
import pytest

from maxquery_jax.data.labels import RoleFlags, build_label_table
from maxquery_jax.data.left_right import LeftRight, body_midline, split_left_right
from maxquery_jax.errors import UserError

JOINT, RIGHT, LEFT, TUMOUR = 255, 1, 2, 3
RULE = LeftRight('kidney', JOINT, RIGHT, LEFT, (TUMOUR,))
SPACING = (5.0, 5.0, 5.0)
SHAPE = (12, 14, 40)  # 200 mm wide; the index grows towards the right side of the body


def volume(*boxes):
    """Boxes (id, z, y, x) in an empty label map."""
    label = np.zeros(SHAPE, np.uint8)
    for value, z, y, x in boxes:
        label[slice(*z), slice(*y), slice(*x)] = value
    return label


def split(label, midline=None):
    before = label.copy()
    issues = split_left_right(label, [RULE], SPACING, midline)
    assert not (label == JOINT).any()
    np.testing.assert_array_equal(label > 0, before > 0)  # no voxel is lost or won
    other = (before != JOINT) & (before > 0)
    np.testing.assert_array_equal(label[other], before[other])
    return issues


LEFT_BOX = (JOINT, (2, 8), (3, 8), (4, 10))
RIGHT_BOX = (JOINT, (3, 9), (3, 8), (30, 36))


def test_two_kidneys():
    label = volume(LEFT_BOX, RIGHT_BOX)
    assert not split(label)
    np.testing.assert_array_equal(label, volume((LEFT, *LEFT_BOX[1:]), (RIGHT, *RIGHT_BOX[1:])))


def test_two_kidneys_beside_the_midline():
    """Patient at the edge of the field: the pieces themselves say which is which."""
    label = volume((JOINT, (2, 8), (3, 8), (1, 6)), (JOINT, (3, 9), (3, 8), (12, 17)))
    assert not split(label, midline=25.0)
    assert (label[..., :6][label[..., :6] > 0] == LEFT).all()
    assert (label[..., 12:][label[..., 12:] > 0] == RIGHT).all()


def test_tumour_joins_the_pieces_of_its_kidney():
    """The far pole of the left kidney is cut off by a tumour that crosses the middle."""
    label = volume(
        (JOINT, (2, 8), (3, 8), (2, 8)), (TUMOUR, (2, 8), (3, 8), (8, 20)),
        (JOINT, (2, 8), (3, 8), (20, 22)), (JOINT, (2, 8), (3, 8), (32, 38)),
    )  # fmt: skip
    assert not split(label)
    assert (label[2:8, 3:8, 20:22] == LEFT).all() and (label[2:8, 3:8, 32:38] == RIGHT).all()
    assert (label == TUMOUR).sum() == 6 * 5 * 12


def test_without_the_relation_that_piece_goes_to_the_wrong_side():
    label = volume(
        (JOINT, (2, 8), (3, 8), (2, 8)), (TUMOUR, (2, 8), (3, 8), (8, 20)),
        (JOINT, (2, 8), (3, 8), (20, 22)), (JOINT, (2, 8), (3, 8), (32, 38)),
    )  # fmt: skip
    split_left_right(label, [LeftRight('kidney', JOINT, RIGHT, LEFT)], SPACING, 19.5)
    assert (label[2:8, 3:8, 20:22] == RIGHT).all()


def test_crumbs_follow_their_side():
    label = volume(LEFT_BOX, RIGHT_BOX, (JOINT, (0, 1), (0, 1), (16, 17)),
                   (JOINT, (11, 12), (0, 1), (24, 25)))  # fmt: skip
    assert not split(label)
    assert label[0, 0, 16] == LEFT and label[11, 0, 24] == RIGHT


@pytest.mark.parametrize(
    ('box', 'midline', 'side'),
    [(LEFT_BOX, None, LEFT), (RIGHT_BOX, None, RIGHT), (RIGHT_BOX, 39.0, LEFT)],
)
def test_one_kidney_goes_by_the_midline(box, midline, side):
    label = volume(box)
    (issue,) = split(label, midline)
    assert (label[label > 0] == side).all()
    assert (issue.check, issue.severity) == ('left_right', 'warning')
    assert ('left' if side == LEFT else 'right') in issue.value


def test_one_kidney_in_two_pieces_is_one_side():
    label = volume((JOINT, (1, 4), (3, 8), (4, 9)), (JOINT, (6, 10), (3, 8), (5, 11)))
    (issue,) = split(label)
    assert (label[label > 0] == LEFT).all() and 'only the left' in issue.value


def test_pelvic_kidney_near_the_midline_is_an_error():
    label = volume((JOINT, (2, 8), (3, 8), (20, 23)))
    (issue,) = split(label)
    assert (issue.check, issue.severity) == ('left_right', 'error')
    assert 'side is unknown' in issue.value and '--allow=left_right' in issue.fix


def test_horseshoe_kidney_is_cut_at_its_isthmus():
    label = volume((JOINT, (2, 10), (2, 10), (4, 14)), (JOINT, (2, 10), (2, 10), (26, 36)),
                   (JOINT, (4, 6), (4, 7), (14, 26)))  # fmt: skip
    label[4:6, 4:7, 22] = 0
    label[5, 5, 22] = JOINT  # its thinnest section
    (issue,) = split(label)
    assert issue.severity == 'warning' and 'bridge' in issue.value
    left, right = np.where(label == LEFT)[2], np.where(label == RIGHT)[2]
    assert left.max() < right.min() == 22


def test_one_thick_piece_across_the_midline_is_an_error():
    label = volume((JOINT, (2, 10), (2, 10), (5, 35)))
    (issue,) = split(label)
    assert (issue.check, issue.severity) == ('left_right', 'error')
    assert '1,920 voxels' in issue.value and 'no thin place' in issue.value
    left, right = np.where(label == LEFT)[2], np.where(label == RIGHT)[2]
    assert (left.max(), right.min()) == (19, 20)


def test_nothing_to_split():
    assert not split(volume())
    assert not split(volume((TUMOUR, (2, 5), (2, 5), (2, 5))))  # a tumour, its kidney outside


def test_several_joint_labels():
    label = volume(LEFT_BOX, RIGHT_BOX)
    label[10:12, 3:8, 4:10] = label[10:12, 3:8, 30:36] = 254
    rules = [RULE, LeftRight('lung', 254, 11, 12)]
    assert not split_left_right(label, rules, SPACING)
    assert set(np.unique(label)) == {0, RIGHT, LEFT, 11, 12}
    assert (label[10:12, 3:8, 4:10] == 12).all()


def test_body_midline():
    image = np.full((20, 16, 50), -1000, np.int16)
    image[:, 4:12, 10:31] = 40
    assert body_midline(image) == 20
    assert body_midline(np.full((3, 4, 9), -1000, np.int16)) == 4


# The table.

RAW = {0: 'background', 1: 'kidney', 2: 'tumour', 5: 'liver'}
SIDES = {1: ('right_kidney', 'left_kidney')}


def table_of(**flags):
    return build_label_table(
        RAW, RoleFlags(**flags), left_right=SIDES, contains={'tumour': 'kidney'}
    )


def joint_label():
    raw = np.zeros(SHAPE, np.uint8)
    raw[2:8, 3:8, 4:10] = raw[2:8, 3:8, 30:36] = 1
    raw[3, 4, 5] = 2
    raw[10, 10, 15:20] = 5
    return raw


def test_table_splits():
    table = table_of()
    assert [label['name'] for label in table.labels] == [
        'background', 'right_kidney', 'left_kidney', 'liver', 'tumour']  # fmt: skip
    assert table.contains == {'tumour': 'right_kidney+left_kidney'}
    label = table.convert(joint_label())
    assert not table.split(label, SPACING, None)
    assert (label == 1).sum() == 180 and (label == 2).sum() == 179
    assert label[3, 4, 5] == 4 and (label == 3).sum() == 5
    assert label[4, 4, 32] == 1


@pytest.mark.parametrize(
    ('flags', 'right', 'left'),
    [
        ({'organ': ('kidneys=right_kidney+left_kidney',)}, 'kidneys', 'kidneys'),
        ({'ignore': ('right_kidney',)}, 'background', 'left_kidney'),
        ({'ignore': ('left_kidney',)}, 'right_kidney', 'background'),
        ({'organ': ('x=right_kidney+liver',)}, 'x', 'left_kidney'),
    ],
)
def test_flags_speak_of_the_sides(flags, right, left):
    table = table_of(**flags)
    names = [label['name'] for label in table.labels]
    label = table.convert(joint_label())
    table.split(label, SPACING, None)
    assert names[label[4, 4, 32]] == right and names[label[4, 4, 6]] == left
    assert names[label[10, 10, 17]] == ('x' if 'x' in names else 'liver')


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no label 'kidney'"):
        table_of(organ=('kidney',))
    with pytest.raises(UserError, match="contains: 'liverr'"):
        build_label_table(RAW, contains={'tumour': 'liverr'})
    with pytest.raises(UserError, match="'liver' names two labels"):
        build_label_table(RAW, left_right={1: ('liver', 'b')})
    many = {0: 'background', **{i: f'l{i}' for i in range(1, 256)}}
    with pytest.raises(UserError, match='leave no id'):
        build_label_table(many, left_right={1: ('l1', 'other')}, roles={'l2': 'ignore'})
