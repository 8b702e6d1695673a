"""Runs what is missing of a study: train, predict and evaluate each variant, seed and fold."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.files import read_json, write_json
from maxquery_jax.inference.ensemble import load_ensemble
from maxquery_jax.inference.model import LoadedModel, load_model
from maxquery_jax.inference.predict import predict
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.study.cohorts import Cohorts, open_cohorts
from maxquery_jax.study.estimate import RECORD, read_record, stage_seconds
from maxquery_jax.study.plan import NO_FOLD, MakeConfig, Run, plan, run_config, take_part
from maxquery_jax.study.results import (
    ensemble_path,
    ensemble_splits,
    has_summary,
    is_finished,
    run_splits,
    stored_scores,
    summary_path,
)
from maxquery_jax.study.spec import Study, parse_study
from maxquery_jax.train.experiment import train
from maxquery_jax.train.run_dir import CONFIG, RunDir
from maxquery_jax.train.stage import count_forward_flops
from maxquery_jax.typing import Config

POLL_S = 5.0


def run_study(
    study: Study,
    make_config: MakeConfig,
    workdir: str | os.PathLike[str],
    *,
    part: str = '1/1',
    store: str = '',
    defaults_of: Callable[[Config], Mapping[str, Any]] = lambda config: {},
) -> list[str]:
    """Trains, predicts and evaluates every run of a part that is not finished.

    Several processes may work on one folder: each run is done by the first that comes, the others
    take the next or wait. A run that fails does not stop those that do not need it.

    Args:
        study: the study.
        make_config: gives the unlocked config of the text after the colon.
        workdir: folder of the study; a second call continues.
        part: 'i/n', for several hosts.
        store: to train on; '' for the one of the config, or the cohort it describes.
        defaults_of: what the fields of a config are unless an experiment changes them: fields that
            a newer version added do not make a run another one while they have their default.

    Returns:
        One line per run that failed.

    Raises:
        UserError: the study cannot be planned.
        StoppedError: a signal came; the run in work is saved, and nothing else was started.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    everything = plan(study, make_config, workdir)
    runs = take_part(everything, part)
    if not runs:
        groups = len({run.group for run in everything})
        print(f'part {part} has no runs: a study of {groups} seeds and folds has {groups} parts')
    cohorts = open_cohorts(make_config(study.base), workdir, store)
    failed = _work(_Work(study, cohorts, defaults_of), runs)
    if study.folds:
        for members in _by_seed(everything):
            if all(is_finished(study, run) for run in members):
                try:
                    _run_ensemble(study, members)
                except UserError as error:
                    failed[ensemble_path(members[0])] = ' '.join(str(error).split())
    return [f'{path.parent.name}/{path.name}: {why}' for path, why in failed.items()]


def open_study(data: Mapping[str, Any], *, base: str | None = None) -> Study:
    """Checks a study.

    Args:
        data: what `get_study()` of a study file returns.
        base: words of the experiment in place of the study's; None keeps those.

    Raises:
        UserError: a field is wrong.
    """
    study = parse_study(data)
    return study if base is None else dataclasses.replace(study, base=base)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is to be done for one run.

    Attributes:
        run: of the plan.
        config: its own.
        defaults: of the config's fields.
        title: for messages.
    """

    run: Run
    config: Config
    defaults: Mapping[str, Any]
    title: str


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all runs of a study share.

    Attributes:
        study: the study.
        cohorts: its data.
        defaults_of: see `run_study`.
    """

    study: Study
    cohorts: Cohorts
    defaults_of: Callable[[Config], Mapping[str, Any]]

    def job(self, run: Run, title: str) -> _Job:
        """What is to be done for a run; its cohort is generated if need be."""
        config = run_config(run, self.study, self.cohorts.store_of(run))
        return _Job(run, config, self.defaults_of(config), title)


def _work(work: _Work, runs: Sequence[Run]) -> dict[pathlib.Path, str]:
    """Works through runs as they become ready; returns run directory to what failed."""
    pending = list(enumerate(runs, start=1))
    failed: dict[pathlib.Path, str] = {}
    is_waiting = False
    while pending:
        before = len(pending)
        for number, run in list(pending):
            title = f'[{number}/{len(runs)}] {run.title}'
            if any(path in failed for path, _, _ in run.taken) and not run.is_ready:
                failed[run.path] = 'needs a run that failed'
            elif not run.is_ready:
                continue
            else:
                with _claim(run.path) as is_mine:
                    if not is_mine:
                        continue
                    _try(work, run, title, failed)
            pending.remove((number, run))
            break  # from the start: what was not ready may be ready now
        if len(pending) == before:
            if not is_waiting:
                names = ', '.join(run.title for _, run in pending)
                print(f'waiting for another process: {names}', flush=True)
            is_waiting = True
            time.sleep(POLL_S)
    return failed


def _try(work: _Work, run: Run, title: str, failed: dict[pathlib.Path, str]) -> None:
    try:
        _finish(work.study, work.job(run, title))
    except StoppedError:
        raise
    except UserError as error:
        failed[run.path] = ' '.join(str(error).split())
        print(f'{title}: failed: {failed[run.path]}', flush=True)


def _finish(study: Study, job: _Job) -> None:
    """Brings one run to its end."""
    run, title = job.run, job.title
    _follow_move(run, job.config)
    options = dict(study.variants[run.variant].predict)
    if is_finished(study, run):
        _require_same_config(job)
        _require_same_options(run, options)
        _record_flops(study, job)
        print(f'{title}: finished before', flush=True)
        return
    started = time.perf_counter()
    print(f'{title}: starts', flush=True)
    is_fresh = not (run.path / CONFIG).is_file()
    if run.stages:
        _share_cache(run.path)
        train(job.config, run.path, defaults=job.defaults)
    else:  # what `evaluate` reads of a run: where the truth is
        source = read_json(run.model_path / 'manifest.json', fix='restore the file')
        write_json(run.path / 'manifest.json', source)
    trained = time.perf_counter()
    model = load_model(run.model_path)
    for split in run_splits(study, run):
        _evaluate(study, run.variant, run.path, model, split)
    now = time.perf_counter()
    measured = stage_seconds(run.path)
    in_steps = sum(measured.get(stage, 0.0) * steps for stage, steps in run.stages.items())
    besides = {'besides_steps_s': now - started - in_steps if is_fresh else now - trained}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    record = {'parameters': parameters, 'predict': options}
    write_json(run.path / RECORD, besides | read_record(run.path) | record)
    _record_flops(study, job)
    jax.clear_caches()  # compiled programs of one run are of no use to the next
    print(f'{title}: {now - started:.0f} s', flush=True)


def _record_flops(study: Study, job: _Job) -> None:
    """Notes the operations of the network, where a table shows them and they are not there yet."""
    run, record = job.run, read_record(job.run.path)
    if 'gflop' in record or not study.shows(run.variant, 'gflop'):
        return
    stage = [*(name for _, name, _ in run.taken), *run.stages][-1]
    data = read_json(run.model_path / 'manifest.json', fix='restore the file')['data']
    flops = count_forward_flops(
        job.config,
        job.config[stage].objective,
        num_classes=sum(label['role'] != 'ood' for label in data['labels']),
        num_channels=len(data['channels']),
        spacing_mm=tuple(data['spacing_mm']),
    )
    write_json(run.path / RECORD, record | {'gflop': flops / 1e9})


def _evaluate(
    study: Study, variant: str, folder: pathlib.Path, model: LoadedModel, split: str
) -> None:
    """Predicts and evaluates a split with all scores of the tables, and those it had before."""
    before = stored_scores(summary_path(folder, split))
    scores = list(dict.fromkeys((*before, *study.scores_of(variant)))) or None
    options = study.variants[variant].predict
    predict(model, output=folder / 'predictions' / split, split=split, scores=scores, **options)
    evaluate(model=folder, split=split)


def _run_ensemble(study: Study, members: Sequence[Run]) -> None:
    """Predicts the splits that no member was trained on with the mean of all folds."""
    variant, folder = members[0].variant, ensemble_path(members[0])
    splits = [
        s for s in ensemble_splits(study, variant) if not has_summary(study, variant, folder, s)
    ]
    if not splits:
        return
    with _claim(folder) as is_mine:
        if not is_mine:
            return
        print(f'{variant} seed {members[0].seed}: ensemble of {len(members)} folds', flush=True)
        model = load_ensemble([run.model_path for run in members])
        # What `evaluate` reads of a run: where the truth is.
        names = [run.path.name for run in members]
        record = {'format': 'maxquery_jax/ensemble', 'store': model.store, 'members': names}
        write_json(folder / 'manifest.json', record)
        for split in splits:
            _evaluate(study, variant, folder, model, split)


def _by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        assert run.fold != NO_FOLD
        groups.setdefault((run.variant, run.seed), []).append(run)
    return list(groups.values())


@contextlib.contextmanager
def _claim(run_dir: pathlib.Path) -> Iterator[bool]:
    """Whether this process may work on a run; the claim ends with the process."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / '.study.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _require_same_config(job: _Job) -> None:
    """Raises UserError if a finished run was trained with another config."""
    if not job.run.stages:
        return
    folder = RunDir(job.run.path)
    try:
        folder.write_config(json.loads(job.config.to_json_best_effort()), job.defaults)
    finally:
        folder.close()


def _require_same_options(run: Run, options: Mapping[str, Any]) -> None:
    """Raises UserError if a finished run was predicted with other options."""
    before = read_record(run.path).get('predict', {})
    if before != options:
        raise UserError(
            f'{run.path} was predicted with {before}, the study now says {dict(options)}; give the '
            'variant another name, or delete the predictions and summaries of this run'
        )


def _follow_move(run: Run, config: Config) -> None:
    """Renames the run that a stage starts from in `config.json`, if the study's folder moved."""
    file = run.path / CONFIG
    if not run.taken or not file.is_file():
        return
    stage = config.stages[0]
    before, now = read_json(file, fix='restore it'), config[stage].init_from
    path, _, wanted = before.get(stage, {}).get('init_from', '').rpartition(':')
    source = run.taken[-1][0]
    is_same_run = pathlib.Path(path).parts[-2:] == source.parts[-2:]
    if is_same_run and now.endswith(f':{wanted}') and now != before[stage]['init_from']:
        before[stage]['init_from'] = now
        write_json(file, before)


def _share_cache(run_dir: pathlib.Path) -> None:
    """Lets all runs of a study keep their compiled programs in one place.

    One per kind of machine: programs compiled for one processor may not run on another.
    """
    key = f'{platform.machine()}-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}'
    (run_dir.parent.parent / 'cache' / key).mkdir(parents=True, exist_ok=True)
    link = run_dir / 'cache'
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(pathlib.Path('..', '..', 'cache', key), target_is_directory=True)


def _processor() -> str:
    """What the processor can do."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')
