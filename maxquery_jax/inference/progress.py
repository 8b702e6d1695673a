"""What a long prediction says: one line that moves, plain lines when nobody watches."""

import sys
import time
from typing import TextIO

_LIVE_SECONDS, _PLAIN_SECONDS = 0.2, 10.0


class Progress:
    """Shows the share of tiles done and the time left.

    On a terminal the line overwrites itself; otherwise a line is printed every ten seconds.
    """

    def __init__(self, title: str, total: int, stream: TextIO | None = None):
        """Starts the clock.

        Args:
            title: begins the line.
            total: number of tiles.
            stream: standard output by default.
        """
        self._title, self._total = title, total
        self._stream = stream or sys.stdout
        self._is_live = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._done = 0

    def add(self, tiles: int) -> None:
        """Counts finished tiles and prints if it is time."""
        self._done += tiles
        now = time.monotonic()
        pause = _LIVE_SECONDS if self._is_live else _PLAIN_SECONDS
        if now - self._shown >= pause:
            self._shown = now
            left = (now - self._start) * (self._total - self._done) / self._done
            self._print(f'{self._done}/{self._total} tiles, {duration(left)} left')

    def close(self, message: str) -> None:
        """Ends the line."""
        self._print(message)
        if self._is_live:
            print(file=self._stream, flush=True)

    def _print(self, text: str) -> None:
        line = f'{self._title}: {text}'
        if self._is_live:
            print(f'\r\x1b[K{line}', end='', file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as '12s', '3m05s' or '2h10m'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours}h{minutes:02d}m'
    return f'{minutes}m{rest:02d}s' if minutes else f'{rest}s'
