"""The limit of a test's subprocess fires, whatever holds its output open."""

import ast
import os
import pathlib
import sys
import time

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent
# Of a session of its own, whatever session this is.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
ENVIRONMENT |= {'MAXQUERY_TEST_LIMIT_S': '1', 'PYTHONPATH': str(ROOT)}
GRANDCHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
print('started', flush=True)
time.sleep(60)
"""


def is_running(pid):
    state = pathlib.Path(f'/proc/{pid}/stat')
    return state.exists() and state.read_text().rpartition(')')[2].split()[0] != 'Z'


def test_what_is_printed_and_the_code_come_back():
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = processes.run([sys.executable, '-c', code])
    assert (done.stdout, done.stderr, done.returncode) == ('out\n', 'err\n', 3)


def test_a_grandchild_that_keeps_the_output_open_dies_too(tmp_path):
    command = [sys.executable, '-c', GRANDCHILD, str(tmp_path / 'pid')]
    begun = time.monotonic()
    with pytest.raises(AssertionError, match=r'took over 2.0 s; it printed:\nstarted'):
        processes.run(command, limit_s=2.0)
    assert time.monotonic() - begun < 20
    pid = (tmp_path / 'pid').read_text()
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(pid)


def test_waiting_ends_with_the_process_and_with_the_limit(tmp_path):
    with processes.started([sys.executable, '-c', ''], tmp_path / 'out') as process:
        assert not processes.wait_until(lambda: False, process, 20)
    sleeping = [sys.executable, '-c', 'import time; time.sleep(60)']
    with processes.started(sleeping, tmp_path / 'out') as process:
        assert processes.wait_until(lambda: True, process, 20)
        with pytest.raises(AssertionError, match='did not get there within 0.1 s'):
            processes.wait_until(lambda: False, process, 0.1)
    assert process.returncode < 0


@pytest.mark.parametrize('hang', ['time.sleep(60)', 'getattr(c.CDLL(None), "sleep")(60)'])
def test_a_test_that_hangs_is_named_and_ended(tmp_path, hang):
    """The second one holds the interpreter: no Python code could end it."""
    (tmp_path / 'conftest.py').write_text((ROOT / 'tests/conftest.py').read_text())
    text = f'import ctypes as c, time\nc.CDLL = c.PyDLL\ndef test_it():\n    {hang}\n'
    (tmp_path / 'test_stuck.py').write_text(text)
    done = processes.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(tmp_path)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        limit_s=60,
    )
    assert done.returncode == 1, done.stdout
    assert 'Timeout' in done.stderr and 'in test_it' in done.stderr


@pytest.mark.integration
@pytest.mark.skipif(
    not os.environ.get('MAXQUERY_TEST_LARGE'),
    reason='set MAXQUERY_TEST_LARGE=1 to test the watchdog of parallel runs (half a minute)',
)
def test_a_test_that_hangs_hangs_once_in_parallel_runs(tmp_path):
    (tmp_path / 'conftest.py').write_text((ROOT / 'tests/conftest.py').read_text())
    text = 'import time\ndef test_a():\n    time.sleep(60)\ndef test_b():\n    pass\n'
    (tmp_path / 'test_stuck.py').write_text(text)
    command = [sys.executable, '-m', 'pytest', '-q', '-n', '1', '--dist', 'loadfile']
    done = processes.run(
        [*command, '-p', 'no:cacheprovider', str(tmp_path)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        limit_s=120,
    )
    assert done.stdout.count("crashed while running 'test_stuck.py::test_a'") >= 1
    assert done.stdout.count('it took over 1.0 s, or crashed') >= 1
    assert '1 failed, 1 passed, 1 error' in done.stdout, done.stdout


def test_no_test_starts_a_process_without_a_limit():
    for file in (ROOT / 'tests').rglob('*.py'):
        names = {
            alias.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        is_allowed = file.name == 'processes.py' or 'golden' in file.parts
        assert is_allowed or 'subprocess' not in names, file
