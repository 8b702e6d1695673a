"""Test session set-up: virtual devices, strict array promotion, parsed absl flags."""

import os
import pathlib
import sys

import jax
import pytest
from absl import flags

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read an absl flag


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
    """Folder of real scans named by MAXQUERY_TEST_DATA; skips where it is not set."""
    root = os.environ.get('MAXQUERY_TEST_DATA')
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip('MAXQUERY_TEST_DATA does not name a folder of real scans')
    return pathlib.Path(root)


@pytest.fixture(scope='session')
def python() -> str:
    """The interpreter that runs this session, for subprocess tests."""
    return sys.executable
