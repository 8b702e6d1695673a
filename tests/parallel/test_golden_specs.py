"""How every parameter of the paper-scale systems is split, against the listing in tests/golden."""

import pytest

from tests.golden.make_specs import CASES, FOLDER, listing


@pytest.mark.parametrize('name', CASES)
def test_every_parameter_is_where_the_listing_says(name):
    found = listing(*CASES[name]).splitlines()
    expected = (FOLDER / f'{name}.txt').read_text().splitlines()
    difference = sorted(set(found) ^ set(expected))
    assert not difference, 'run python -m tests.golden.make_specs and review: ' + difference[0]


@pytest.mark.parametrize('name', CASES)
def test_fsdp_splits_all_but_a_little(name):
    sizes = {'split': 0, 'whole': 0}
    for line in (FOLDER / f'{name}.txt').read_text().splitlines():
        _, shape, _, spec = line.split()
        size = 1
        for side in shape.split('x'):
            size *= int(side)
        sizes['split' if 'fsdp' in spec.split(',') else 'whole'] += size
    assert sizes['whole'] < 1e-3 * sizes['split']
