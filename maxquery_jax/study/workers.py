"""Several processes of one study on this machine, each on its own share of the cores.

A small network does not keep many cores busy: two runs side by side, each on one of two cores, end
sooner than one after the other on both.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from maxquery_jax.errors import UserError


def run_workers(command: Sequence[str], count: int) -> list[int]:
    """Runs the same command `count` times side by side until all have ended.

    Their lines are printed with the worker's number in front. SIGTERM and SIGINT are passed on, so
    that the workers save and stop. What a worker leaves running when it is killed ends with it.

    Args:
        command: program and arguments; the processes share out the runs by themselves.
        count: processes, at most one per core.

    Returns:
        Exit code of each. A worker that was stopped ends with 2, as after a fault of the input:
        both mean that something is left, which the same command does.

    Raises:
        UserError: there are fewer cores than workers.
    """
    shares = share_cores(available_cores(), count)
    processes = [_start(command, share) for share in shares]
    readers = [
        threading.Thread(target=_relay, args=(number, process), daemon=True)
        for number, process in enumerate(processes, start=1)
    ]
    with _signals_passed_to(processes):
        for reader in readers:
            reader.start()
        codes = [process.wait() for process in processes]
        for process, reader in zip(processes, readers, strict=True):
            _kill_rest(process)
            reader.join()
    return codes


def available_cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share_cores(cores: Sequence[int], count: int) -> list[list[int]]:
    """Divides cores into `count` parts whose sizes differ by one at most.

    Raises:
        UserError: `count` is below one or above the number of cores.
    """
    if not 1 <= count <= len(cores):
        raise UserError(
            f'--workers={count}: this machine gives {len(cores)} cores; a worker needs one of its '
            'own, so choose 1 to that number'
        )
    return [list(cores[part::count]) for part in range(count)]


def _start(command: Sequence[str], cores: Sequence[int]) -> subprocess.Popen:
    """Starts a process on `cores`, which it inherits: JAX counts them when it starts."""
    with _on_cores(cores):
        return subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches them once, through us
        )


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _kill_rest(process: subprocess.Popen) -> None:
    """Ends what a worker left behind, which would hold our end of its output open for ever."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _relay(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(f'{number}| {line}')
        sys.stdout.flush()


@contextlib.contextmanager
def _signals_passed_to(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    def forward(number: int, _frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
