"""Parts of a list: disjoint, complete and even, whatever their number and the list's order."""

import random

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.parallel.parts import WHOLE, Part

NAMES = [f'case_{i}' for i in range(11)]


@pytest.mark.parametrize('count', [1, 2, 3, 11, 15])
def test_parts_are_disjoint_complete_and_even(count):
    dealt = []
    for index in range(1, count + 1):
        shuffled = random.Random(index).sample(NAMES, len(NAMES))  # each host lists them otherwise
        dealt.append(Part(index, count).take(shuffled, str))
    assert sorted(name for part in dealt for name in part) == sorted(NAMES)
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_the_form_is_i_of_n():
    assert Part.parse('2/3') == Part(2, 3) and str(Part(2, 3)) == '2/3'
    assert Part.parse('1/1') == WHOLE
    for text in ('0/3', '4/3', '3', '1/2/3', 'a/b', '', '-1/-1', '1/0'):
        with pytest.raises(UserError, match=r'--part must look like 1/4'):
            Part.parse(text)
