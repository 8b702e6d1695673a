"""What the finished runs of a study measured, by variant and seed."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maxquery_jax.data.datasets.phantom.subtypes import read_subtypes
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.report.summary import VERSION, read_summary
from maxquery_jax.study.estimate import read_record, train_seconds
from maxquery_jax.study.measures import Evaluation
from maxquery_jax.study.plan import NO_FOLD, Run
from maxquery_jax.study.spec import Study

SUMMARY = 'summary.json'


def summary_path(run_dir: pathlib.Path, split: str) -> pathlib.Path:
    """Where `launch.evaluate` puts the summary of a split."""
    return run_dir / SUMMARY if split == 'test' else run_dir / 'predictions' / split / SUMMARY


def ensemble_path(run: Run) -> pathlib.Path:
    """Folder of the ensemble of all folds of this run's variant and seed."""
    return run.path.parent / f'seed{run.seed}_ensemble'


def run_splits(study: Study, run: Run) -> tuple[str, ...]:
    """Splits that a run itself predicts; of a fold only the cases that it validates."""
    wanted = study.splits_of(run.variant)
    return wanted if run.fold == NO_FOLD else tuple(s for s in wanted if s == 'val')


def ensemble_splits(study: Study, variant: str) -> tuple[str, ...]:
    """Splits that the ensemble of a variant's folds predicts."""
    if not study.folds:
        return ()
    return tuple(split for split in study.splits_of(variant) if split != 'val')


def is_finished(study: Study, run: Run) -> bool:
    """Whether a run was trained, and predicted and evaluated with every score of the tables."""
    splits = run_splits(study, run)
    if not splits and not run.stages:
        return run.is_ready
    if not splits:  # trained for others only, or as a member of an ensemble
        stage, steps = list(run.stages.items())[-1]
        return (run.path / 'checkpoints' / stage / str(steps)).is_dir()
    return all(has_summary(study, run.variant, run.path, split) for split in splits)


def has_summary(study: Study, variant: str, folder: pathlib.Path, split: str) -> bool:
    """Whether a summary of this version holds every score that the tables show."""
    path = summary_path(folder, split)
    if not path.is_file() or read_json(path, fix='delete it').get('version') != VERSION:
        return False
    return set(study.scores_of(variant)) <= set(stored_scores(path))


def stored_scores(path: pathlib.Path) -> list[str]:
    """Scores of a summary, the default one first; none if it does not exist."""
    return read_json(path, fix='delete it').get('scores', []) if path.is_file() else []


def load(
    study: Study, runs: Sequence[Run], splits: Sequence[str], *, with_groups: bool = False
) -> dict[str, dict[int, Evaluation]]:
    """Evaluations by variant and seed; a seed that lacks a summary is left out.

    Args:
        study: the study.
        runs: the whole plan.
        splits: whose cases are pooled.
        with_groups: whether to read the subtypes of the cases, too.

    Raises:
        UserError: a summary or the file of subtypes is at fault, or variants were evaluated on
            different cases.
    """
    read_groups = functools.cache(_read_groups)  # runs share their store
    found: dict[str, dict[int, Evaluation]] = {}
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.variant, run.seed), []).append(run)
    for (variant, seed), members in groups.items():
        parts = [(folder, split) for split in splits for folder in _folders(study, members, split)]
        if not all(has_summary(study, variant, folder, split) for folder, split in parts):
            continue
        paths = [summary_path(folder, split) for folder, split in parts]
        evaluation = _merge([read_summary(path) for path in paths], paths)
        seconds = [train_seconds(run) for run in members]
        known = [value for value in seconds if value is not None]
        record = read_record(members[0].path)
        found.setdefault(variant, {})[seed] = dataclasses.replace(
            evaluation,
            cohort=members[0].cohort,
            parameters=record.get('parameters'),
            gflop=record.get('gflop'),
            train_s=sum(known) / len(known) if known else None,
            group_of=read_groups(_store_of(parts[0][0])) if with_groups else {},
        )
    _require_same_cases(found)
    return found


def _store_of(folder: pathlib.Path) -> str:
    """Store that a run was trained on; '' if it does not say."""
    path = folder / 'manifest.json'
    return read_json(path, fix='restore the file').get('store', '') if path.is_file() else ''


def _read_groups(store: str) -> Mapping[str, str]:
    """Subtype of each case of a store, from its raw data set; none if either is gone."""
    path = pathlib.Path(store) / 'manifest.json'
    if not store or not path.is_file():
        return {}
    return read_subtypes(pathlib.Path(read_json(path, fix='prepare the store again')['source']))


def _folders(study: Study, members: Sequence[Run], split: str) -> list[pathlib.Path]:
    """Directories whose predictions together hold the cases of a split."""
    if study.folds and split != 'val':
        return [ensemble_path(members[0])]
    return [run.path for run in members]


def _merge(summaries: Sequence[Mapping[str, Any]], paths: Sequence[pathlib.Path]) -> Evaluation:
    cases: dict[str, Mapping[str, Any]] = {}
    for summary, path in zip(summaries, paths, strict=True):
        for case in summary['cases']:
            if case['case'] in cases:
                raise UserError(f'{path}: case {case["case"]} is in another part as well')
            cases[case['case']] = case
    labels = summaries[0]['labels']
    names = {
        role: tuple(label['name'] for label in labels if label['role'] == role)
        for role in ('tumour', 'organ')
    }
    zero_shot = [label for label in labels if label['role'] == 'ood' and label.get('predicted')]
    whole = summaries[0] if len(summaries) == 1 else {}
    return Evaluation(
        tuple(cases[name] for name in sorted(cases)),
        names['tumour'],
        metrics=whole.get('metrics', {}),
        ood_by_class=whole.get('ood_by_class', {}),
        organs=names['organ'],
        zero_shot=tuple(label['name'] for label in zero_shot),
    )


def _require_same_cases(found: Mapping[str, Mapping[int, Evaluation]]) -> None:
    """Raises UserError if runs of one cohort were evaluated on different cases."""
    first: dict[str, tuple[str, list[str]]] = {}
    for variant, seeds in found.items():
        for seed, evaluation in seeds.items():
            names = [case['case'] for case in evaluation.cases]
            other, others = first.setdefault(evaluation.cohort, (f'{variant} seed {seed}', names))
            if names != others:
                odd = sorted(set(names) ^ set(others))[0]
                raise UserError(
                    f'{variant} seed {seed} and {other} were evaluated on different cases '
                    f'({odd} is in one only); give the study a --workdir of its own'
                )
