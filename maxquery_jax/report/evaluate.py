"""The verb `evaluate`: every metric of a folder of predictions or of a run's split."""

import os
import pathlib
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.metrics.bootstrap import NUM_RESAMPLES
from maxquery_jax.progress import Progress
from maxquery_jax.report.measure import DEFAULTS, Settings, measure_cases
from maxquery_jax.report.predictions import PredictionSet, open_predictions, open_run
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

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: the arguments or a file are at fault.
    """
    settings = Settings(dilate_mm, nsd_tolerance_mm, min_lesion_ml, lesion_overlap)
    settings.validate()
    found, default = _open(predictions, labels, label_map, model, split)
    progress = Progress('evaluate', len(found.cases))
    measured = measure_cases(found, settings=settings, on_case=progress.step)
    drawing = {'resamples': resamples, 'seed': seed}
    summary = summarise(
        measured, found.table, found.scores, name=found.name, settings=settings, **drawing
    )
    folder = pathlib.Path(output) if output is not None else default
    write_summary(folder, summary)
    show(summary_tables(summary))
    _say_what_was_left_out(found, summary)
    print(f'\nwritten: {folder / "summary.json"}, {folder / "cases.csv"}', flush=True)
    return summary


def _open(
    predictions: PathLike | None,
    labels: PathLike | None,
    label_map: PathLike | None,
    model: PathLike | None,
    split: str,
) -> tuple[PredictionSet, pathlib.Path]:
    """What to evaluate, and where the results go unless told otherwise."""
    if (predictions is None) == (model is None):
        raise UserError('give either --predictions with --labels, or --model')
    if model is not None:
        if label_map is not None:
            raise UserError('--label_map goes with --predictions; --model has its own')
        found = open_run(model, split, labels=labels)
        return found, pathlib.Path(model) if split == 'test' else found.folder
    if predictions is None or labels is None:
        raise UserError('--predictions needs --labels, the folder with the truth of every case')
    found = open_predictions(predictions, labels=labels, label_map=label_map)
    return found, found.folder


def _say_what_was_left_out(found: PredictionSet, summary: dict[str, Any]) -> None:
    """Nothing is excluded silently."""
    if found.unused_labels:
        print(f'note: {found.unused_labels} label files have no prediction', flush=True)
    if not summary['counts']['ood_cases']:
        print('note: no case holds OOD voxels, so there are no OOD metrics', flush=True)
