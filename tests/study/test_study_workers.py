"""Workers of a study: cores are divided, lines relayed, signals passed on."""

import pathlib
import signal
import sys
import time

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.study.workers import available_cores, run_workers, share_cores
from tests import processes


@pytest.mark.parametrize(
    ('cores', 'count', 'shares'),
    [
        ([0, 1], 2, [[0], [1]]),
        ([2, 3, 5], 2, [[2, 5], [3]]),
        ([0, 1, 2, 3], 1, [[0, 1, 2, 3]]),
    ],
)
def test_every_core_belongs_to_one_worker(cores, count, shares):
    assert share_cores(cores, count) == shares


@pytest.mark.parametrize('count', [0, -1, 3])
def test_a_worker_needs_a_core(count):
    with pytest.raises(UserError, match=f'--workers={count}: this machine gives 2 cores'):
        share_cores([0, 1], count)


@pytest.mark.skipif(len(available_cores()) < 2, reason='one core')
def test_workers_run_side_by_side_on_cores_of_their_own(tmp_path, capfd):
    code = (
        'import os, pathlib, sys, time\n'
        f'folder = pathlib.Path({str(tmp_path)!r})\n'
        '(folder / str(os.getpid())).write_text(str(sorted(os.sched_getaffinity(0))))\n'
        'end = time.monotonic() + 60\n'
        'while len(list(folder.iterdir())) < 2:\n'  # ends well only if both run
        '    assert time.monotonic() < end\n'
        '    time.sleep(0.01)\n'
        "print('met')\n"
        'sys.exit(3 if min(os.sched_getaffinity(0)) == min_core else 0)\n'
    )
    code = code.replace('min_core', str(available_cores()[0]))
    assert run_workers([sys.executable, '-c', code], 2) == [3, 0]
    cores = {file.read_text() for file in tmp_path.iterdir()}
    assert cores == {str(sorted(share)) for share in share_cores(available_cores(), 2)}
    assert sorted(capfd.readouterr().out.splitlines()) == ['1| met', '2| met']


def test_what_a_killed_worker_leaves_running_ends_with_it(capfd):
    code = (
        'import os, signal, subprocess, sys\n'
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('dies', flush=True)\n"
        'os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    begun = time.monotonic()
    assert run_workers([sys.executable, '-c', code], 1) == [-signal.SIGKILL]
    assert time.monotonic() - begun < 30
    assert capfd.readouterr().out == '1| dies\n'


def test_sigterm_reaches_the_workers(tmp_path):
    child = (
        'import signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n'
        "print('ready', flush=True)\n"
        'time.sleep(60)\n'
    )
    parent = (
        'import sys\n'
        'from maxquery_jax.study.workers import run_workers\n'
        f'print("codes", run_workers([sys.executable, "-c", {child!r}], 1))\n'
    )
    out = tmp_path / 'out.txt'
    command, root = [sys.executable, '-c', parent], pathlib.Path(__file__).parent.parent.parent
    with processes.started(command, out, cwd=root) as process:
        assert processes.wait_until(lambda: out.read_text() == '1| ready\n', process, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert out.read_text() == '1| ready\ncodes [7]\n'
