"""What a long command says: one line that moves on a terminal, plain lines when nobody watches."""

import sys
import time
from typing import TextIO

_LIVE_S, _PLAIN_S = 0.2, 10.0


class Line:
    """A line of text that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None, *, every_s: float = _PLAIN_S):
        """Prints nothing yet.

        Args:
            stream: standard error by default.
            every_s: least seconds between two plain lines.
        """
        self._stream = sys.stderr if stream is None else stream
        self._is_live = self._stream.isatty()
        self._pause = _LIVE_S if self._is_live else every_s
        self._shown = time.monotonic() - (_LIVE_S if self._is_live else 0)

    def show(self, text: str) -> None:
        """Prints `text` if it is time."""
        if time.monotonic() - self._shown >= self._pause:
            self.print(text)

    def print(self, text: str, *, is_last: bool = False) -> None:
        """Prints `text` now; on a terminal over the line before it."""
        self._shown = time.monotonic()
        if self._is_live:
            end = '\n' if is_last else ''
            print(f'\r\x1b[K{text}', end=end, file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Leaves the line on a terminal as it is."""
        if self._is_live:
            print(file=self._stream, flush=True)


class Progress:
    """Counts what is done and tells the time left."""

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = '',
        stream: TextIO | None = None,
        every_s: float = _PLAIN_S,
        is_closed_by_caller: bool = False,
    ):
        """Starts the clock.

        Args:
            title: begins the line.
            total: number of steps.
            unit: what is counted, printed after the numbers.
            stream: standard error by default.
            every_s: least seconds between two plain lines.
            is_closed_by_caller: whether more work follows the last step, so that `close` ends the
                line; otherwise the last step does.
        """
        self._title, self._total = title, total
        self._unit = f' {unit}' if unit else ''
        self._line = Line(stream, every_s=every_s)
        self._is_closed_by_caller = is_closed_by_caller
        self._start = time.monotonic()
        self._done = 0

    def step(self, name: str = '', count: int = 1) -> None:
        """Counts finished steps, the last of them called `name`, and prints if it is time."""
        self._done += count
        seconds = time.monotonic() - self._start
        counted = f'{self._title} {self._done}/{self._total}{self._unit}'
        if self._done >= self._total and not self._is_closed_by_caller:
            self._line.print(f'{counted} in {duration(seconds)}', is_last=True)
            return
        left = duration(seconds / self._done * (self._total - self._done))
        self._line.show(', '.join(filter(None, (counted, name, f'{left} left'))))

    def close(self, message: str) -> None:
        """Ends the line with `message`."""
        self._line.print(f'{self._title} {message}', is_last=True)


def duration(seconds: float) -> str:
    """Seconds as '12s', '3m05s' or '2h10m'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours}h{minutes:02d}m'
    return f'{minutes}m{rest:02d}s' if minutes else f'{rest}s'
