"""Kills and stops trainings at random moments and looks at what their restarts make of it.

    python -m tests.integration.trials --kills=50 --terms=10 --seed=0 --json=trials.json
    python -m tests.integration.trials --fsdp=2     # of a training on two virtual devices

Each trial starts a small two-stage training with a best checkpoint, ends it by SIGKILL or SIGTERM,
and starts it again. About half of the kills are aimed at checkpoint saves: they come a few
milliseconds after a save's temporary folder appeared. It must hold that

    - the restart continues from the newest checkpoint that was complete at the kill,
    - that one is at most two periods of checkpoints old (one is being written), and is the very
      step after a SIGTERM,
    - parameters of both stages, of the best checkpoint, and every logged loss are those of a run
      that nobody disturbed, bit for bit.

Exit 1 if any trial fails. About 25 s per trial on two cores.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

from maxquery_jax.train.checkpoint import checkpoint_steps, load_params
from maxquery_jax.train.run_dir import read_rows
from tests import processes
from tests.integration import test_resume

STAGES = ('pretrain', 'finetune')
LIMIT_S = 1800.0  # of one training, on a machine that is busy with other things
EVERY = 2  # steps between checkpoints, of test_resume.TINY
BEST = (
    '--config.checkpoint.best=dice_mean',
    '--config.validation.every_steps=3',
    '--config.validation.batches=1',
)


@dataclasses.dataclass
class Trial:
    """What one trial did and found.

    Attributes:
        number: of the trial.
        kind: signal, and what it was aimed at.
        moment: where the training was, in words.
        lost: steps of the stage that were logged and done again.
        resumed: what the restart said.
        faults: what did not hold, in words.
        seconds: of the whole trial.
    """

    number: int
    kind: str
    moment: str = ''
    lost: int = 0
    resumed: str = ''
    faults: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Trials:
    """A reference run, and trials that are measured against it."""

    def __init__(self, folder: pathlib.Path, seed: int, fsdp: int = 1):
        self._folder = folder
        self._flags = (*BEST, f'--config.mesh.fsdp={fsdp}')
        self._random = random.Random(seed)
        self._log = folder / 'log.txt'
        self._whole = folder / 'whole'
        self._code(self._whole, '')
        self._store = str(self._whole / 'phantom' / 'store')
        self._losses = _losses(self._whole)

    def run(self, number: int, kind: str) -> Trial:
        """One trial; see the module."""
        trial, began = Trial(number, kind), time.monotonic()
        path = self._folder / 'trial'
        self._prepare(path)
        with self._started(path) as process:
            self._wait(path, process, kind)
            if kind == 'term':
                process.send_signal(signal.SIGTERM)
                process.wait(LIMIT_S)
            else:
                processes.kill(process)
        said = self._log.read_text()
        newest = {stage: _newest(path, stage) for stage in STAGES}
        self._judge_end(trial, path, said, newest, process.returncode)
        code = self._code(path, self._store, must_pass=False)
        said = self._log.read_text()
        if code:
            trial.faults.append(f'the restart ended with {code}: {said.splitlines()[-1]}')
        self._judge_restart(trial, said, newest)
        self._judge_result(trial, path)
        trial.seconds = time.monotonic() - began
        if trial.faults:
            shutil.copytree(path, self._folder / f'failed{number}', dirs_exist_ok=True)
            (self._folder / f'failed{number}.log').write_text(said)
        return trial

    def _prepare(self, path: pathlib.Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        shutil.copytree(self._whole / 'cache', path / 'cache')

    def _started(self, path: pathlib.Path, store: str | None = None):
        store = self._store if store is None else store
        return test_resume.start(sys.executable, path, self._log, store, self._flags)

    def _code(self, path: pathlib.Path, store: str, *, must_pass: bool = True) -> int:
        with self._started(path, store) as process:
            code = process.wait(LIMIT_S)
        if code and must_pass:
            raise SystemExit(f'an undisturbed training failed:\n{self._log.read_text()}')
        return code

    def _wait(self, path: pathlib.Path, process, kind: str) -> None:
        """Until the moment of the signal."""
        draw = self._random
        if kind == 'save':  # the n-th save that is seen to begin
            left, seen = draw.randrange(1, 16), set()
            while process.poll() is None and left > 0:
                now = {str(p) for p in path.glob('checkpoints/*/*.orbax-checkpoint-tmp*')}
                left -= len(now - seen)
                seen |= now
                time.sleep(0.001)
            time.sleep(draw.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.04)))
        elif kind == 'any' and draw.random() < 0.1:
            time.sleep(draw.uniform(0.0, 10.0))  # mostly before the first step
        else:
            count = draw.randrange(1, len(self._losses))
            file = path / 'metrics.jsonl'
            processes.wait_until(lambda: len(read_rows(file)) >= count, process, LIMIT_S)
            time.sleep(draw.uniform(0.0, 0.4))

    def _judge_end(self, trial: Trial, path, said: str, newest, code: int) -> None:
        rows = [row for row in read_rows(path / 'metrics.jsonl') if row['split'] == 'train']
        if not rows:
            trial.moment = 'before the first step'
            return
        last = rows[-1]
        trial.moment = f'{last["stage"]} after step {last["step"]}'
        trial.lost = last['step'] - newest[last['stage']]
        if trial.kind == 'term' and code == 2:
            saved = re.search(r'after saving step (\d+)', said)
            if not saved or int(saved[1]) != newest[last['stage']] or trial.lost > 0:
                trial.faults.append(f'SIGTERM lost {trial.lost} steps: {said.splitlines()[-1]}')
        elif trial.kind == 'term' and code not in (0, -signal.SIGTERM):
            trial.faults.append(f'SIGTERM ended with {code}: {said.splitlines()[-1]}')
        if trial.lost > 2 * EVERY:
            trial.faults.append(f'{trial.lost} steps lost')

    def _judge_restart(self, trial: Trial, said: str, newest: dict[str, int]) -> None:
        found = dict.fromkeys(STAGES, 0)
        for stage, step in re.findall(r'(\w+): (?:resuming|already) at step (\d+)', said):
            found[stage] = int(step)
        trial.resumed = ', '.join(f'{stage} {step}' for stage, step in found.items())
        if found != newest:
            trial.faults.append(f'resumed at {found}, complete were {newest}')

    def _judge_result(self, trial: Trial, path: pathlib.Path) -> None:
        for stage in STAGES:
            for best in (False, True):
                expected, _, last = load_params(self._whole, stage, best=best)
                actual, _, step = load_params(path, stage, best=best)
                pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
                if step != last or not all(np.array_equal(a, b) for a, b in pairs):
                    what = 'best' if best else 'last'
                    trial.faults.append(f'{stage}: the {what} parameters differ, {step} and {last}')
        losses = _losses(path)
        wrong = [key for key, value in losses.items() if self._losses.get(key, value) != value]
        if wrong:
            trial.faults.append(f'{len(wrong)} logged values differ, first of {wrong[0]}')


def _newest(path: pathlib.Path, stage: str) -> int:
    return max(checkpoint_steps(path / 'checkpoints' / stage), default=0)


def _losses(path: pathlib.Path) -> dict[tuple[str, str, int], float]:
    name = {'train': 'loss', 'val': 'dice_mean'}
    return {
        (row['stage'], row['split'], row['step']): row[name[row['split']]]
        for row in read_rows(path / 'metrics.jsonl')
    }


def _summary(trials: list[Trial]) -> str:
    lines = [f'{"":8}{"trials":>8}{"failed":>8}{"lost steps, mean":>18}{"most":>6}']
    for kind in ('any', 'save', 'term'):
        some = [trial for trial in trials if trial.kind == kind]
        if some:
            lost = [trial.lost for trial in some]
            failed = sum(bool(trial.faults) for trial in some)
            lines.append(
                f'{kind:8}{len(some):8}{failed:8}{statistics.mean(lost):18.2f}{max(lost):6}'
            )
    return '\n'.join(lines)


def main() -> int:
    """Runs the trials; 1 if any failed."""
    parser = argparse.ArgumentParser(description='Kills trainings and looks at their restarts.')
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--terms', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--fsdp', type=int, default=1, help='shards, each a virtual device')
    parser.add_argument('--json', type=pathlib.Path)
    args = parser.parse_args()
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={args.fsdp}'  # of trainings
    kinds = ['save' if i % 2 else 'any' for i in range(args.kills)] + ['term'] * args.terms
    random.Random(args.seed).shuffle(kinds)
    done: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(pathlib.Path(folder), args.seed, args.fsdp)
        for number, kind in enumerate(kinds):
            trial = trials.run(number, kind)
            done.append(trial)
            verdict = '; '.join(trial.faults) or 'ok'
            print(
                f'{number:3} {kind:5} {trial.moment:28} lost {trial.lost}, resumed at '
                f'{trial.resumed:26} {trial.seconds:5.0f} s  {verdict}',
                flush=True,
            )
            if args.json:
                failed = sum(bool(trial.faults) for trial in done)
                record = {
                    'seed': args.seed, 'fsdp': args.fsdp, 'planned': len(kinds), 'done': len(done),
                    'failed': failed, 'most_lost': max(trial.lost for trial in done),
                    'summary': _summary(done),
                    'trials': [dataclasses.asdict(trial) for trial in done],
                }  # fmt: skip
                args.json.write_text(json.dumps(record, indent=1))
    print(_summary(done))
    return int(any(trial.faults for trial in done))


if __name__ == '__main__':
    sys.exit(main())
