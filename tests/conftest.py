"""Test session set-up: virtual devices, strict array promotion, parsed absl flags."""

import os
import pathlib
import sys

# Most of a test's time is LLVM optimising code that runs once. Subprocesses inherit this.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read an absl flag


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with integration tests first, so that no worker is left alone with one at the end."""
    long = {item.path for item in items if item.get_closest_marker('integration')}
    items.sort(key=lambda item: item.path not in long)


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
