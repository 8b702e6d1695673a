"""How long runs took, and how long those that are left will take."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.progress import duration
from maxquery_jax.study.plan import Run
from maxquery_jax.train.run_dir import METRICS

RECORD = 'study.json'


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured seconds per optimiser step and of the rest.

    Attributes:
        steps: (variant, stage) to seconds per step.
        besides: variant to seconds that compiling, predicting and evaluating took.
    """

    steps: Mapping[tuple[str, str], float]
    besides: Mapping[str, float]

    def step_seconds(self, variant: str, stage: str) -> float | None:
        """Of this variant, else the mean over the others' stage of that name; None if unknown."""
        if (variant, stage) in self.steps:
            return self.steps[variant, stage]
        return _mean([s for (_, other), s in self.steps.items() if other == stage])

    def besides_seconds(self, variant: str) -> float | None:
        """Of this variant, else the mean over the others; None if unknown."""
        return self.besides.get(variant, _mean(list(self.besides.values())))


@dataclasses.dataclass(frozen=True)
class Remaining:
    """What is left of one run.

    Attributes:
        steps: stage to optimiser steps left.
        seconds: estimate of the parts that are known.
        unknown: stages, or 'compilation and evaluation', that nothing was measured of.
    """

    steps: Mapping[str, int]
    seconds: float
    unknown: tuple[str, ...]

    @property
    def text(self) -> str:
        """For the plan."""
        parts = [duration(self.seconds)] if self.seconds or not self.unknown else []
        parts += [f'unknown ({", ".join(self.unknown)})'] if self.unknown else []
        return ' + '.join(parts)


def stage_seconds(run_dir: pathlib.Path) -> dict[str, float]:
    """Seconds per optimiser step of each stage, compilation left out, from `metrics.jsonl`."""
    total: dict[str, list[float]] = {}
    before: dict | None = None
    for row in _rows(run_dir / METRICS):
        if row.get('split') != 'train' or 'wall_s' not in row:
            continue
        if before is not None and before['stage'] == row['stage']:
            steps, seconds = row['step'] - before['step'], row['wall_s'] - before['wall_s']
            if steps > 0 and seconds > 0:  # otherwise a restart lies between them
                sums = total.setdefault(row['stage'], [0.0, 0.0])
                sums[0] += seconds
                sums[1] += steps
        before = row
    return {stage: seconds / steps for stage, (seconds, steps) in total.items()}


def train_seconds(run: Run) -> float | None:
    """Time of all steps of a run, those of the stages it took over included; None if unknown."""
    seconds = 0.0
    parts = [(run.path, stage, steps) for stage, steps in run.stages.items()]
    for path, stage, steps in (*run.taken, *parts):
        measured = stage_seconds(path).get(stage)
        if measured is None:
            return None
        seconds += measured * steps
    return seconds


def measure_timing(runs: Iterable[Run]) -> Timing:
    """What runs that were started say."""
    steps: dict[tuple[str, str], list[float]] = {}
    besides: dict[str, list[float]] = {}
    for run in runs:
        for stage, seconds in stage_seconds(run.path).items():
            steps.setdefault((run.variant, stage), []).append(seconds)
        found = read_record(run.path).get('besides_steps_s')
        if found:
            besides.setdefault(run.variant, []).append(found)
    return Timing(
        {key: sum(values) / len(values) for key, values in steps.items()},
        {key: sum(values) / len(values) for key, values in besides.items()},
    )


def remaining(run: Run, timing: Timing, *, is_finished: bool) -> Remaining:
    """Steps and seconds that a run still needs."""
    if is_finished:
        return Remaining({}, 0.0, ())
    steps = {stage: max(0, n - _done(run.path, stage)) for stage, n in run.stages.items()}
    seconds, unknown = 0.0, []
    for stage, count in steps.items():
        measured = timing.step_seconds(run.variant, stage)
        if count and measured is None:
            unknown.append(stage)
        seconds += count * (measured or 0.0)
    besides = timing.besides_seconds(run.variant)
    if besides is None:
        unknown.append('compilation and evaluation')
    return Remaining(steps, seconds + (besides or 0.0), tuple(unknown))


def describe_plan(runs: Sequence[Run], timing: Timing, finished: Sequence[bool]) -> list[str]:
    """One line per run, and the sum."""
    lines, total, unknown = [], 0.0, False
    for run, done in zip(runs, finished, strict=True):
        left = remaining(run, timing, is_finished=done)
        total += left.seconds
        unknown = unknown or bool(left.unknown)
        parts = [f'{stage} from {path}' for path, stage, _ in run.taken]
        parts += [f'{stage} {n} steps' for stage, n in run.stages.items()]
        if done:
            state = 'finished'
        else:
            started = any(left.steps[stage] < n for stage, n in run.stages.items())
            state = f'{"started" if started else "to run"}, {left.text} left'
        lines.append(f'{run.title}: {", ".join(parts)}: {state}')
    sum_left = Remaining({}, total, ('see above',) if unknown else ()).text
    lines.append(
        f'{len(runs)} runs, {sum(finished)} finished, {sum_left} left, as measured in this folder'
    )
    return lines


def read_record(run_dir: pathlib.Path) -> dict:
    """`study.json` of a run, empty where there is none."""
    try:
        return read_json(run_dir / RECORD, fix='')
    except UserError:
        return {}


def _done(run_dir: pathlib.Path, stage: str) -> int:
    """Step of a stage's newest checkpoint."""
    folder = run_dir / 'checkpoints' / stage
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _rows(file: pathlib.Path) -> list[dict]:
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a kill
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
