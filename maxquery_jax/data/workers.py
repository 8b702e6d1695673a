"""Runs one function over many cases in a few processes, and says which case failed and how."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.progress import Progress

Task = tuple[str, Any]  # case name, argument


def map_cases(
    function: Callable[[Any], Any],
    tasks: Sequence[Task],
    *,
    workers: int,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yields (case name, result) as the cases finish.

    Args:
        function: a module-level function of one argument.
        tasks: pairs of case name and argument.
        workers: processes; 0 works in this one. A daemonic process (a job of some schedulers)
            cannot have children and works alone.
        progress: told about each finished case.

    Raises:
        UserError: one was raised by `function`, or a process died; names the case.
        RuntimeError: `function` raised anything else; holds its traceback.
    """
    workers = min(workers, len(tasks))
    is_alone = workers < 1 or multiprocessing.current_process().daemon
    results = _inline(function, tasks) if is_alone else _pooled(function, tasks, workers)
    for name, result in results:
        if progress is not None:
            progress.step(name)
        yield name, result


def _inline(function: Callable[[Any], Any], tasks: Sequence[Task]) -> Iterator[tuple[str, Any]]:
    for name, argument in tasks:
        yield name, function(argument)


def _pooled(
    function: Callable[[Any], Any], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[str, Any]]:
    # Not concurrent.futures: its broken pool does not say on which task the process died.
    context = multiprocessing.get_context('spawn')  # forking a process with threads can hang
    pool: dict[Connection, tuple[Any, str]] = {}  # connection: process, case in work
    waiting = list(reversed(tasks))
    idle = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)
            process.start()
            theirs.close()
            pool[ours] = process, ''
            idle.append(ours)
        while True:
            while idle and waiting:
                connection = idle.pop()
                name, argument = waiting.pop()
                pool[connection] = pool[connection][0], name
                _send(connection, argument, pool[connection])
            busy = [connection for connection in pool if connection not in idle]
            if not busy:
                return
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                result = _receive(ready, pool[ready])
                idle.append(ready)
                yield pool[ready][1], result
    finally:
        for connection, (process, _) in pool.items():
            connection.close()
            process.terminate()
            process.join()


def _send(connection: Connection, argument: Any, owner: tuple[Any, str]) -> None:
    try:
        connection.send(argument)
    except OSError:
        raise _death(*owner) from None


def _receive(connection: Connection, owner: tuple[Any, str]) -> Any:
    process, name = owner
    try:
        kind, value = connection.recv()
    except (EOFError, OSError):
        raise _death(process, name) from None
    if kind == 'user':
        raise UserError(value)
    if kind == 'bug':
        raise RuntimeError(f'case {name!r} failed in a worker process:\n{value}')
    return value


def _death(process: Any, name: str) -> UserError:
    process.join(timeout=10)
    code = process.exitcode
    reason = f'exit code {code}'
    if code is not None and code < 0:
        reason = f'signal {signal.Signals(-code).name}'
        if -code == signal.SIGKILL:
            reason += ', most likely for lack of memory'
    return UserError(
        f'case {name!r}: its worker process ended with {reason}; use fewer --workers (0 works in '
        'one process and shows the error)'
    )


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    while True:
        try:
            argument = connection.recv()
        except (EOFError, OSError):
            return
        try:
            reply = 'result', function(argument)
        except UserError as error:
            reply = 'user', str(error)
        except BaseException:
            reply = 'bug', traceback.format_exc()
        connection.send(reply)
