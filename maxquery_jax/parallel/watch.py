"""A thread beside the training that hears of failures and of requests to stop."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

ROOT = 'maxquery_jax'
_FAILED, _STOP, _GONE = f'{ROOT}/note/failed', f'{ROOT}/note/stop/', f'{ROOT}/note/gone/'
_ALIVE = f'{ROOT}/alive/'
_LOOK_S = 0.5  # a request or two to the coordinator, from every process
_LEAVE_S = 5.0  # for the others to hear of a failure
_LOST_S = 40.0  # without a sign; JAX itself ends all by a crash after 50 to 100 s
_EXIT_USER = 2


class Watch:
    """Reads the notes that processes leave at the coordinator.

    A failure ends this process at once: its own thread may wait in a collective for the one that
    failed, where nothing can interrupt it. Process 0 takes a process that gives no sign any more
    for failed.

    Stopping together: a process that wants to stop notes how many steps it has begun. Each process
    that sees such a note begins no further step until all have noted theirs; then all stop after
    the largest of the numbers plus one. No process has passed that step, and all will reach it,
    for what one waits for on the devices the others begin too.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        hosts: Sequence[str],
        *,
        look_s: float = _LOOK_S,
        leave_s: float = _LEAVE_S,
        lost_s: float = _LOST_S,
    ) -> None:
        """Starts the thread.

        Args:
            client: of the coordinator.
            index: of this process.
            hosts: by process.
            look_s: seconds between looks.
            leave_s: seconds that process 0 waits for the others to hear of a failure.
            lost_s: seconds without a sign after which a process is taken for dead.
        """
        self._client, self._index, self._hosts = client, index, hosts
        self._look_s, self._leave_s, self._lost_s = look_s, leave_s, lost_s
        self._beats = 0
        self._signs = {i: ('', time.monotonic()) for i in range(len(hosts))}
        self._steps = 0
        self._wanted = False
        self._noted = False  # the steps of this process, for the others
        self._last: int | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)
        self._thread.start()

    def should_stop(self, wanted: bool) -> bool:
        """Counts a step; whether it is the last one of all processes."""
        with self._changed:
            self._wanted = self._wanted or wanted
            self._changed.wait_for(lambda: not self._noted or self._last is not None)
            self._steps += 1
            return self._last is not None and self._steps >= self._last

    def abandon(self, reason: str) -> str:
        """Notes for the others that this process fails.

        Returns:
            What another process noted before; '' if this one is the first.
        """
        self.close()
        with contextlib.suppress(RuntimeError):  # the coordinator may be gone already
            try:
                self._client.key_value_set(_FAILED, f'{self._name(self._index)}: {reason}')
            except RuntimeError:
                return self._client.blocking_key_value_get(_FAILED, 1000)
        return ''

    def leave(self) -> None:
        """The last act of a process after a failure, its own or another's."""
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f'{_GONE}{self._index}', '')
        if self._index == 0:  # the coordinator goes with it: the others must have heard
            self.wait_for_others()
            time.sleep(0.3)  # they end right after their note

    def wait_for_others(self) -> list[int]:
        """Waits until the other processes have noted that they leave; returns those that do not."""
        end = time.monotonic() + self._leave_s
        silent = [i for i in range(len(self._hosts)) if i != self._index]
        with contextlib.suppress(RuntimeError):
            while silent and time.monotonic() < end:
                time.sleep(0.1)
                notes = self._client.key_value_dir_get(_GONE)
                gone = {int(name[len(_GONE) :]) for name, _ in notes}
                silent = [i for i in silent if i not in gone]
        return silent

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._leave_s)

    def _name(self, index: int) -> str:
        return f'process {index} (host {self._hosts[index]})'

    def _run(self) -> None:
        while not self._closed.wait(self._look_s):
            # JAX itself ends a process that has lost its coordinator.
            with contextlib.suppress(RuntimeError):
                self._give_sign()
                notes = dict(self._client.key_value_dir_get(f'{ROOT}/note/'))
                if _FAILED in notes and not self._closed.is_set():
                    self._end(notes[_FAILED])
                self._agree([int(n) for name, n in notes.items() if name.startswith(_STOP)])

    def _give_sign(self) -> None:
        self._beats += 1
        self._client.key_value_set(f'{_ALIVE}{self._index}', str(self._beats), allow_overwrite=True)
        if self._index:
            return
        now = time.monotonic()
        for name, beat in self._client.key_value_dir_get(_ALIVE):
            index = int(name[len(_ALIVE) :])
            if self._signs[index][0] != beat:
                self._signs[index] = beat, now
        for index, (_, last) in self._signs.items():
            if now - last > self._lost_s:
                self._client.key_value_set(
                    _FAILED,
                    f'{self._name(index)} has given no sign for {self._lost_s:.0f} s: it was '
                    'killed or has lost its network; see its log',
                )

    def _agree(self, steps: list[int]) -> None:
        with self._changed:
            if not self._noted and (self._wanted or steps):
                self._noted = True
                self._client.key_value_set(f'{_STOP}{self._index}', str(self._steps))
            elif self._last is None and len(steps) == len(self._hosts):
                self._last = max(steps) + 1
                self._changed.notify_all()

    def _end(self, reason: str) -> None:
        print(f'error: {reason}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        self.leave()
        os._exit(_EXIT_USER)
