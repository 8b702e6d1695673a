"""What a training says while it runs."""

import sys
import time

from maxquery_jax.parallel import processes
from maxquery_jax.progress import Line, duration


class ProgressLine:
    """Prints step, loss, voxels/s and time left.

    On a terminal the line overwrites itself; otherwise one line is printed per log interval. Of
    several processes the first one prints.
    """

    def __init__(self, stage: str, total_steps: int, voxels_per_step: int) -> None:
        self._stage = stage
        self._total = total_steps
        self._voxels = voxels_per_step
        self._line = Line(sys.stdout) if processes.is_first() else None
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
        left = duration((self._total - step) / rate) if rate else '--'
        terms = ' '.join(f'{name} {value:.4g}' for name, value in scalars.items())
        if self._line:
            self._line.print(
                f'{self._stage} {step}/{self._total} {terms} '
                f'{rate * self._voxels / 1e6:.2f} Mvoxel/s, {left} left'
            )
        return rate * self._voxels

    def close(self) -> None:
        """Ends the live line."""
        if self._line:
            self._line.end()
