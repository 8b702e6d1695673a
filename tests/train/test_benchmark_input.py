"""The input benchmark: every part measured, a peer next to it, a peer that fails."""

import os
import pathlib
import sys

import numpy as np
import pytest

from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.train.benchmark_input import benchmark_input, write_synthetic_store

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = {
    'patch_size': (8, 8, 8),
    'num_repeats': 2,
    'parts': ('read', 'augment', 'total'),
    'patches': {'read': 8, 'augment': 4, 'total': 4},
    'shape': (24, 32, 32),
}
# Takes 0.5 s for every patch, whatever the part.
PEER = """
import json, pathlib, sys
folder, patch, batch, processes = sys.argv[1:]
cases = len(list(pathlib.Path(folder).glob('*_label.npy')))
print(json.dumps({'cases': cases, 'arguments': [patch, batch, processes]}), flush=True)
for line in sys.stdin:
    if not line.strip():
        break
    part, count = line.split()
    print(json.dumps({'part': part, 'seconds': 0.5 * int(count)}), flush=True)
"""


def test_synthetic_volumes_look_like_ct(tmp_path):
    store = PatchStore(write_synthetic_store(tmp_path / 'store', (24, 32, 32)))
    image, label = store.read_image('case3'), store.read_label('case3')
    assert image.shape == (24, 32, 32, 1) and set(np.unique(label)) == {0, 1, 2}
    tissue = image[8:16, 12:20, 12:20]
    assert -300 < tissue.mean() < 300 and image.min() == -1000
    assert image[label == 2].mean() > image[label == 1].mean() > tissue.mean()


def test_ours_next_to_a_peer(tmp_path):
    script = tmp_path / 'peer.py'
    script.write_text(PEER)
    cores = os.sched_getaffinity(0)
    figures = benchmark_input(None, **TINY, num_cores=1, peer=[sys.executable, str(script)])
    assert os.sched_getaffinity(0) == cores and figures['cores'] == 1
    assert figures['peer_settings']['arguments'] == ['8,8,8', '2', '1']
    assert figures['peer_settings']['cases'] == 8
    assert set(figures['ours']) == {'read', 'augment', 'total'}
    for name in ('read', 'augment', 'total'):
        rate = figures['ours'][name]
        assert 0 < rate['min'] <= rate['median'] <= rate['max']
        assert figures['peer'][name]['median'] == pytest.approx(2.0)
        assert figures['ratio'][name] == pytest.approx(rate['median'] / 2)
    assert all(value > 0 for value in figures['ours_core_ms_per_patch'].values())


def test_a_peer_that_fails_is_one_line(tmp_path):
    script = tmp_path / 'peer.py'
    script.write_text('raise SystemExit("no module named nnunetv2")')
    with pytest.raises(UserError, match=r'peer.py ended \(no module named nnunetv2\)'):
        benchmark_input(None, **TINY, peer=[sys.executable, str(script)])


def test_nnunet_answers_every_part():
    """The shipped script, run by the interpreter that MAXQUERY_TEST_NNUNET names."""
    python = os.environ.get('MAXQUERY_TEST_NNUNET')
    if not python:
        pytest.skip('MAXQUERY_TEST_NNUNET does not name an interpreter that has nnU-Net')
    script = ROOT / 'launch' / 'peers' / 'nnunet_input.py'
    options = {**TINY, 'shape': (48, 64, 64), 'patch_size': (16, 16, 16), 'num_repeats': 1}
    figures = benchmark_input(None, **options, peer=[python, str(script)])
    assert set(figures['ratio']) == {'read', 'augment', 'total'}
    # Ours is larger than the patch by even numbers.
    theirs = np.array(figures['peer_settings']['crop_size'])
    assert np.abs(theirs - figures['crop_size']).max() <= 1
