"""Test session set-up: virtual devices, strict array promotion, parsed absl flags."""

import faulthandler
import hashlib
import importlib.metadata
import os
import pathlib
import sys
import tempfile
import uuid

# Most of a test's time is the compilation of code that runs once: LLVM need not optimise it, and
# without XLA's newer emitters it compiles in half the time. Subprocesses inherit this.
_FLAGS = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # an unknown flag ends the process
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('XLA_FLAGS', ' '.join(_FLAGS))

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read an absl flag


# Seconds a test may take. Then the stacks of all threads are printed and the process ends, also if
# a library holds the interpreter; xdist names the test and goes on in another process.
LIMIT_S = float(os.environ.get('MAXQUERY_TEST_LIMIT_S', 1200))
if os.environ.get('MAXQUERY_TEST_LARGE'):
    LIMIT_S *= 8
_SESSION = os.environ.get('PYTEST_XDIST_TESTRUNUID', uuid.uuid4().hex)
_STDERR = pytest.StashKey[int]()
_ENDED_PROCESS = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the standard error, which pytest redirects while a test runs."""
    config.stash[_STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Ends a test that hangs, its fixtures included."""
    running = _running(item)
    item.stash[_ENDED_PROCESS] = running.exists()
    running.touch()
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        running.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test that ended its process before: xdist gives it to the next, again and again."""
    if item.stash[_ENDED_PROCESS]:
        pytest.fail(f'it took over {LIMIT_S} s, or crashed; stacks are in the log', pytrace=False)


def _running(item: pytest.Item) -> pathlib.Path:
    """A file that is there while a test runs, seen by all processes of a session."""
    name = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    return pathlib.Path(tempfile.gettempdir(), f'pytest-{_SESSION}-{name}')


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
