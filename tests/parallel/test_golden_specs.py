"""How every parameter of the paper-scale systems is split, against the listing in tests/golden."""

import math

import pytest

from tests.golden.make_specs import CASES, FOLDER, FSDP, listing


@pytest.mark.parametrize('name', CASES)
def test_every_parameter_is_where_the_listing_says(name):
    found = listing(*CASES[name]).splitlines()
    expected = (FOLDER / f'{name}.txt').read_text().splitlines()
    difference = sorted(set(found) ^ set(expected))
    assert not difference, 'run python -m tests.golden.make_specs and review: ' + difference[0]


@pytest.mark.parametrize('name', CASES)
def test_fsdp_divides_every_parameter(name):
    for line in (FOLDER / f'{name}.txt').read_text().splitlines():
        path, shape, _, spec, *padded = line.split()
        sides = [int(side) for side in shape.split('x')]
        if padded:
            length = int(padded[0].removeprefix('stored:'))
            assert 0 < length - math.prod(sides) < FSDP, path
            sides = [length]
        assert sides[spec.split(',').index('fsdp')] % FSDP == 0, path
