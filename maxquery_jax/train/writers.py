"""What a training says while it runs: one line that moves, plain lines when nobody watches."""

import sys
import time


class ProgressLine:
    """Prints step, loss, voxels/s and time left.

    On a terminal the line overwrites itself; otherwise one line is printed per log interval.
    """

    def __init__(self, stage: str, total_steps: int, voxels_per_step: int) -> None:
        self._stage = stage
        self._total = total_steps
        self._voxels = voxels_per_step
        self._live = sys.stdout.isatty()
        self._start: tuple[int, float] | None = None

    def update(self, step: int, scalars: dict[str, float]) -> float:
        """Shows `step` finished steps.

        Returns:
            Voxels of training patches per second since the first update (0 at the first).
        """
        now = time.perf_counter()
        if self._start is None:
            self._start = (step, now)
        done, elapsed = step - self._start[0], now - self._start[1]
        rate = done / elapsed if done else 0.0
        left = _duration((self._total - step) / rate) if rate else '--'
        terms = ' '.join(f'{name} {value:.4g}' for name, value in scalars.items())
        line = (
            f'{self._stage} {step}/{self._total} {terms} '
            f'{rate * self._voxels / 1e6:.2f} Mvoxel/s, {left} left'
        )
        print('\r\x1b[K' + line if self._live else line, end='' if self._live else '\n', flush=True)
        return rate * self._voxels

    def close(self) -> None:
        """Ends the live line."""
        if self._live:
            print(flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}h{minutes:02d}m' if hours else f'{minutes}m{seconds:02d}s'
