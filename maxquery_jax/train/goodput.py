"""Where the time of a training goes, summed over its starts: `RUN/goodput.json`.

The file is replaced as a whole every few seconds, by process 0. Its fields:

    format, version     'maxquery_jax/goodput', 1
    total_s             seconds of all starts; time between two starts is not counted
    seconds, percent    by kind, both with the keys of KINDS:
                          init        imports, data, model, initial or restored state
                          compile     tracing and compiling the training step
                          data_wait   waiting for the next batch
                          step        the loop's time that is none of the others
                          checkpoint  waiting for saves (most of a save runs beside the steps)
                          evaluation  validation
                          other       pictures, the end
                          lost        work of the loop that was done again after a kill
    starts              per start: `at` (UTC), `stage` and `from_step` of its first step,
                        `first_step_s` (from the start of the process to the first finished step),
                        `lost_s`, and `ended`: finished, stopped, failed, or null after a kill
    marks               `seconds` as they were when a step was saved or continued from, by
                        'STAGE/STEP'; the newest few

A device works while the loop goes on, so `step` is wall time and no device is ever waited for to
measure it. What a kill cost is known from the marks: seconds of the loop after the step that the
next start continues from. At most the last FLUSH_S seconds before a kill are not counted.
"""

import contextlib
import datetime
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.parallel import processes

FILE = 'goodput.json'
LOOP_KINDS = ('data_wait', 'step', 'checkpoint', 'evaluation', 'other')
KINDS = ('init', 'compile', *LOOP_KINDS, 'lost')
FLUSH_S = 2.0

_FORMAT, _VERSION, _MARKS = 'maxquery_jax/goodput', 1, 16


class Goodput:
    """Adds up the seconds of one start of a run, on top of those of the starts before."""

    def __init__(self, file: pathlib.Path | None = None, *, age_s: float = 0.0):
        """Starts the clock.

        Args:
            file: of the run; None measures without a record.
            age_s: seconds that count as `init` already, such as `process_age_s()`.
        """
        self._file = file if file and processes.is_first() else None
        self._record = _read(self._file)
        self.seconds: dict[str, float] = {
            kind: float(self._record['seconds'].get(kind, 0.0)) for kind in KINDS
        }
        self._open = ['init']
        self._since = self._began = time.perf_counter() - age_s
        self._flushed = self._began
        self._start: dict[str, Any] | None = None

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Counts the block as `kind`; the time of spans inside it is theirs."""
        self._count()
        self._open.append(kind)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def begin(self, stage: str, step: int) -> None:
        """Says that the loop goes on from `step` finished steps; work after it was lost."""
        self._count()
        mark = self._record['marks'].get(f'{stage}/{step}')
        lost = 0.0
        if mark is not None:
            for kind in LOOP_KINDS:
                lost += self.seconds[kind] - mark[kind]
                self.seconds[kind] = mark[kind]
            self.seconds['lost'] += lost
        if self._start is None:
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
            self._start = {
                'at': at, 'stage': stage, 'from_step': step, 'first_step_s': None,
                'lost_s': round(lost, 3), 'ended': None,
            }  # fmt: skip
            self._record['starts'].append(self._start)
        self.mark(stage, step)

    def finished_step(self) -> None:
        """Says that a step has finished on the device; the first call counts."""
        if self._start is not None and self._start['first_step_s'] is None:
            self._start['first_step_s'] = round(time.perf_counter() - self._began, 3)

    def beat(self) -> None:
        """Writes the file if it is time; called at every step."""
        if time.perf_counter() - self._flushed > FLUSH_S:
            self._flush()

    def mark(self, stage: str, step: int) -> None:
        """Says that the work up to `step` is saved, or about to be."""
        self._count()
        marks = self._record['marks']
        marks.pop(f'{stage}/{step}', None)
        marks[f'{stage}/{step}'] = dict(self.seconds)
        for old in list(marks)[:-_MARKS]:
            del marks[old]
        self._flush()

    def end(self, reason: str) -> str:
        """Writes the file for the last time.

        Args:
            reason: finished, stopped or failed.

        Returns:
            The table to print; empty if no stage was trained.
        """
        if self._start is None:
            return ''
        self._start['ended'] = reason
        self._flush()
        return self.table()

    def table(self) -> str:
        """Seconds and percent by kind, as text."""
        self._count()
        total = sum(self.seconds.values())
        count = len(self._record['starts'])
        starts = f'{count} starts' if count > 1 else '1 start'
        first = self._start['first_step_s'] if self._start else None
        until = f', first step after {first:.1f} s' if first is not None else ''
        lines = [f'goodput: {total:.0f} s in {starts}{until}']
        for kind in KINDS:
            seconds = self.seconds[kind]
            lines.append(f'  {kind:<10} {seconds:9.1f} s {100 * seconds / max(total, 1e-9):5.1f} %')
        return '\n'.join(lines)

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _flush(self) -> None:
        self._count()
        self._flushed = self._since
        if self._file is None or not self._file.parent.is_dir():
            return
        total = sum(self.seconds.values()) or 1e-9
        with contextlib.suppress(
            UserError
        ):  # no run ends for this: the next save tells of the disk
            write_json(
                self._file,
                {
                    'format': _FORMAT,
                    'version': _VERSION,
                    'total_s': round(total, 3),
                    'seconds': _rounded(self.seconds),
                    'percent': {k: round(100 * v / total, 2) for k, v in self.seconds.items()},
                    'starts': self._record['starts'],
                    'marks': {name: _rounded(mark) for name, mark in self._record['marks'].items()},
                },
            )


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {kind: round(value, 3) for kind, value in seconds.items()}


def _read(file: pathlib.Path | None) -> dict[str, Any]:
    """The record of earlier starts; a new one if there is none that can be used."""
    empty: dict[str, Any] = {'seconds': {}, 'starts': [], 'marks': {}}
    if file is None or not file.is_file():
        return empty
    try:
        record = json.loads(file.read_text())
        is_ours = record['format'] == _FORMAT and record['version'] == _VERSION
        return {name: record[name] for name in empty} if is_ours else empty
    except (OSError, ValueError, KeyError, TypeError):
        return empty  # how long it took is not worth a run


def process_age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        fields = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()
        started = int(fields[19]) / os.sysconf('SC_CLK_TCK')
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
