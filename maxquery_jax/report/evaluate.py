"""The verb `evaluate`: every metric of a folder of predictions or of a run's split.

Hosts can share out the cases: `evaluate_part` measures one of n parts, `evaluate` with `merge=n`
makes the summary of them. It is the one that a single process would have written.
"""

import dataclasses
import os
import pathlib
from typing import Any

from maxquery_jax.data.groups import read_groups
from maxquery_jax.errors import UserError
from maxquery_jax.metrics.bootstrap import NUM_RESAMPLES
from maxquery_jax.parallel.parts import WHOLE, Part
from maxquery_jax.progress import Progress
from maxquery_jax.report.case_files import PredictionSet
from maxquery_jax.report.measure import DEFAULTS, Settings, measure_case, measure_cases
from maxquery_jax.report.parts import case_hashes, part_file, read_parts, write_part
from maxquery_jax.report.predictions import open_predictions, open_run, split_cases
from maxquery_jax.report.summary import summarise, write_summary
from maxquery_jax.report.tables import show, summary_tables

PathLike = str | os.PathLike[str]


def evaluate(
    *,
    predictions: PathLike | None = None,
    labels: PathLike | None = None,
    label_map: PathLike | None = None,
    model: PathLike | None = None,
    split: str = 'test',
    output: PathLike | None = None,
    dilate_mm: float = DEFAULTS.dilate_mm,
    nsd_tolerance_mm: float = DEFAULTS.nsd_tolerance_mm,
    min_lesion_ml: float = DEFAULTS.min_lesion_ml,
    lesion_overlap: float = DEFAULTS.lesion_overlap,
    resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    merge: int | None = None,
    groups: PathLike | None = None,
) -> dict[str, Any]:
    """Evaluates predictions, writes `summary.json` and `cases.csv` and prints the tables.

    Either `predictions` with `labels`, or `model`, whose predictions of `split` are expected in
    `model/predictions/<split>` and whose truth is where its store was prepared from.

    Args:
        predictions: folder that launch.predict wrote.
        labels: folder with the truth `X.nii.gz` of every case; with `model` an override.
        label_map: JSON file, see `predictions.open_predictions`.
        model: run directory.
        split: of the run's store.
        output: folder for the results; by default `model` for the test split, otherwise the
            folder of the predictions.
        dilate_mm: as the next three, see `measure.Settings`.
        nsd_tolerance_mm: of the normalised surface distance.
        min_lesion_ml: of a lesion.
        lesion_overlap: of a lesion that is found.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        merge: number of parts that `evaluate_part` has measured; they are read in place of
            measuring anything.
        groups: CSV file, see `data.groups`: the summary has the metrics of each group of cases as
            well. Rows of cases of other splits, or without a prediction, are left out.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: the arguments or a file are at fault.
    """
    settings = Settings(dilate_mm, nsd_tolerance_mm, min_lesion_ml, lesion_overlap)
    settings.validate()
    found, default = _open(predictions, labels, label_map, model, split)
    assert found is not None
    ids = [case.case for case in found.cases]
    grouping = read_groups(groups).restrict(ids, found.known_cases) if groups else None
    folder = pathlib.Path(output) if output is not None else default
    if merge is None:
        progress = Progress('evaluate', len(found.cases))
        measured = measure_cases(found, settings=settings, on_case=progress.step)
    else:
        if merge < 1:
            raise UserError(f'--merge is the number of parts, 1 or more, got {merge}')
        progress = Progress('compare', len(found.cases))
        measured = read_parts(folder, merge, found, settings, on_case=progress.step)
    summary = summarise(
        measured,
        found.table,
        found.scores,
        name=found.name,
        resamples=resamples,
        seed=seed,
        settings=settings,
        groups=grouping,
    )
    write_summary(folder, summary)
    show(summary_tables(summary))
    _say_what_was_left_out(found, summary)
    print(f'\nwritten: {folder / "summary.json"}, {folder / "cases.csv"}', flush=True)
    return summary


def evaluate_part(
    part: str,
    *,
    predictions: PathLike | None = None,
    labels: PathLike | None = None,
    label_map: PathLike | None = None,
    model: PathLike | None = None,
    split: str = 'test',
    output: PathLike | None = None,
    dilate_mm: float = DEFAULTS.dilate_mm,
    nsd_tolerance_mm: float = DEFAULTS.nsd_tolerance_mm,
    min_lesion_ml: float = DEFAULTS.min_lesion_ml,
    lesion_overlap: float = DEFAULTS.lesion_overlap,
) -> pathlib.Path:
    """Measures some of the cases and writes what `evaluate` with `merge` needs of them.

    The cases are dealt out by name. With `model` only those of the part have to be predicted; with
    `predictions` all have to be, as the folder says which there are.

    Args:
        part: 'i/n', i from 1 to n.
        predictions: as the others, see `evaluate`.
        labels: folder with the truth.
        label_map: JSON file.
        model: run directory.
        split: of the run's store.
        output: folder for the results.
        dilate_mm: as the next three, see `measure.Settings`.
        nsd_tolerance_mm: of the normalised surface distance.
        min_lesion_ml: of a lesion.
        lesion_overlap: of a lesion that is found.

    Returns:
        The file, in the folder that the summary will go to.

    Raises:
        UserError: the arguments or a file are at fault.
    """
    own = Part.parse(part)
    settings = Settings(dilate_mm, nsd_tolerance_mm, min_lesion_ml, lesion_overlap)
    settings.validate()
    found, default = _open(predictions, labels, label_map, model, split, own)
    cases = found.cases if found is not None else ()
    progress = Progress(f'evaluate part {own}', len(cases))
    measured, hashes = [], {}
    for case in cases:
        assert found is not None
        hashes[case.case] = case_hashes(case)  # before it is read: a later change is noticed
        measured.append(measure_case(case, found, settings))
        progress.step(case.case)
    path = part_file(pathlib.Path(output) if output is not None else default, own)
    write_part(path, measured, hashes, found, settings)
    print(f'written: {path} ({len(cases)} cases); --merge={own.count} joins the parts', flush=True)
    return path


def _open(
    predictions: PathLike | None,
    labels: PathLike | None,
    label_map: PathLike | None,
    model: PathLike | None,
    split: str,
    part: Part = WHOLE,
) -> tuple[PredictionSet | None, pathlib.Path]:
    """What to evaluate, and where the results go unless told otherwise.

    There is nothing for some parts where these outnumber the cases.
    """
    if (predictions is None) == (model is None):
        raise UserError('give either --predictions with --labels, or --model')
    if model is not None:
        if label_map is not None:
            raise UserError('--label_map goes with --predictions; --model has its own')
        run = pathlib.Path(model)
        default = run if split == 'test' else run / 'predictions' / split
        only = None if part == WHOLE else part.take(split_cases(run, split), str)
        return open_run(run, split, labels=labels, only=only) if only != [] else None, default
    if predictions is None or labels is None:
        raise UserError('--predictions needs --labels, the folder with the truth of every case')
    found = open_predictions(predictions, labels=labels, label_map=label_map)
    cases = part.take(found.cases, lambda case: case.case)
    return dataclasses.replace(found, cases=tuple(cases)) if cases else None, found.folder


def _say_what_was_left_out(found: PredictionSet, summary: dict[str, Any]) -> None:
    """Nothing is excluded silently."""
    if found.unused_labels:
        print(f'note: {found.unused_labels} label files have no prediction', flush=True)
    if not summary['counts']['ood_cases']:
        print('note: no case holds OOD voxels, so there are no OOD metrics', flush=True)
