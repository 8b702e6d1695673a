"""Subprocesses of tests: whatever they and their children do, the limit ends them.

Output goes to files, not pipes: a grandchild that holds a pipe open keeps its reader waiting, also
after the child was killed. Every child leads a group of its own, which is killed as a whole.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

LIMIT_S = 300.0  # several times what the longest takes on a quiet machine


def run(
    command: Sequence[str], *, limit_s: float = LIMIT_S, **options
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` that captures text, and fails the test when it takes too long.

    Args:
        command: program and arguments.
        limit_s: after which the child and its children are killed.
        **options: of `subprocess.Popen`.

    Raises:
        AssertionError: the limit passed; with what was printed until then.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = (pathlib.Path(folder, name) for name in ('out', 'err'))
        with started(command, out, err, **options) as process:
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                kill(process)
                raise AssertionError(
                    f'{command} took over {limit_s} s; it printed:\n{out.read_text()}'
                    f'{err.read_text()}'
                ) from None
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


@contextlib.contextmanager
def started(
    command: Sequence[str], out: pathlib.Path, err: pathlib.Path | None = None, **options
) -> Iterator[subprocess.Popen]:
    """A running child; on leaving, it is killed if it still runs.

    Args:
        command: program and arguments.
        out: file of its standard output.
        err: file of its standard error; None for the same file.
        **options: of `subprocess.Popen`.
    """
    with contextlib.ExitStack() as files:
        stdout = files.enter_context(out.open('w'))
        stderr = subprocess.STDOUT if err is None else files.enter_context(err.open('w'))
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """Ends a child and its children by SIGKILL; does nothing if the child has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_until(
    is_true: Callable[[], bool], process: subprocess.Popen, limit_s: float = LIMIT_S
) -> bool:
    """Whether something becomes true before the child ends.

    Raises:
        AssertionError: neither happened in time.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        has_ended = process.poll() is not None  # first: what it did before still counts
        if is_true():
            return True
        if has_ended:
            return False
        time.sleep(0.02)
    raise AssertionError(f'{process.args} did not get there within {limit_s} s')
