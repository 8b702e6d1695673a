"""Runs what is missing of a study: train, predict and evaluate each variant under each seed."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.inference.predict import predict
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.summary import read_summary
from maxquery_jax.train.data import open_data
from maxquery_jax.train.experiment import train

MakeConfig = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        variant: name in the study's table of variants.
        seed: of the run.
        path: run directory.
        words: text after the colon of `--config`.
        shared_from: run directory whose first stages this run starts from, or None.
    """

    variant: str
    seed: int
    path: pathlib.Path
    words: str
    shared_from: pathlib.Path | None

    @property
    def is_finished(self) -> bool:
        """Whether it was trained, predicted and evaluated."""
        return (self.path / 'summary.json').is_file()


def plan(study: Any, workdir: str | os.PathLike[str]) -> list[Run]:
    """All runs of a study, in an order in which shared stages come first.

    Args:
        study: see `configs/studies`: `variants` maps a name to `{words, share}`, where `share`
            names the variant whose earlier stages are taken over ('' for none).
        workdir: folder of the study.

    Raises:
        UserError: a variant shares from one that is not there.
    """
    workdir = pathlib.Path(workdir)
    runs = []
    for seed in study.seeds:
        for name, variant in study.variants.items():
            if variant.share and variant.share not in study.variants:
                raise UserError(f'variant {name} shares from {variant.share!r}, which is not there')
            shared = workdir / variant.share / f'seed{seed}' if variant.share else None
            path = workdir / name / f'seed{seed}'
            runs.append(Run(name, seed, path, variant.words, shared))
    return sorted(runs, key=lambda run: (run.seed, run.shared_from is not None))


def take_part(runs: list[Run], part: str) -> list[Run]:
    """The runs of part 'i/n' (1-based); a seed never splits, as its runs share stages.

    Raises:
        UserError: `part` is not of that form.
    """
    try:
        index, count = (int(text) for text in part.split('/'))
        if not 1 <= index <= count:
            raise ValueError(part)
    except ValueError as error:
        raise UserError(f'--part must look like 1/4 with 1 <= i <= n, got {part!r}') from error
    seeds = sorted({run.seed for run in runs})[index - 1 :: count]
    return [run for run in runs if run.seed in seeds]


def run_study(
    study: Any, make_config: MakeConfig, workdir: str | os.PathLike[str], *, part: str = '1/1'
) -> None:
    """Trains, predicts and evaluates every run of a part that is not finished.

    Args:
        study: the study.
        make_config: gives the unlocked config of the text after the colon.
        workdir: folder of the study; a second call continues.
        part: 'i/n' for several hosts on one folder.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    runs = take_part(plan(study, workdir), part)
    store = str(open_data(make_config(study.base), workdir).stores[0].location)
    for number, run in enumerate(runs, start=1):
        title = f'[{number}/{len(runs)}] {run.variant} seed {run.seed}'
        if run.is_finished:
            print(f'{title}: finished before', flush=True)
            continue
        started = time.perf_counter()
        print(f'{title}: starts', flush=True)
        train(make_run_config(study, make_config, run, store), run.path)
        predict(run.path, split=study.split, scores=_scores(study, run))
        evaluate(model=run.path, split=study.split, output=run.path)
        print(f'{title}: {time.perf_counter() - started:.0f} s', flush=True)


def make_run_config(study: Any, make_config: MakeConfig, run: Run, store: str) -> Any:
    """The resolved config of one run."""
    words = ','.join(word for word in (study.base, run.words) if word)
    config = make_config(words)
    config.seed = run.seed
    if not config.data.stores:  # a mixture names its own
        config.data.store = store
    if run.shared_from is not None:
        last = config.stages[-1]
        config[last].init_from = f'{run.shared_from}:{config.stages[-2]}'
        config.stages = (last,)
    return config.lock()


def _scores(study: Any, run: Run) -> list[str]:
    scores = [row.score for row in study.rows if row.variant == run.variant]
    return list(dict.fromkeys(scores))


def read_summaries(study: Any, workdir: str | os.PathLike[str]) -> dict[str, list[dict]]:
    """Summaries by variant, one per finished seed.

    Raises:
        UserError: a run of the study is missing.
    """
    found: dict[str, list[dict]] = {}
    for run in plan(study, workdir):
        if not run.is_finished:
            raise UserError(
                f'{run.variant} seed {run.seed} is not finished; run launch.study again'
            )
        found.setdefault(run.variant, []).append(read_summary(run.path / 'summary.json'))
    return found
