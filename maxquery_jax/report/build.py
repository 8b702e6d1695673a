"""The verb `report`: pictures of cases and one offline page for a run or a prediction folder."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from maxquery_jax.data.nifti import read_image
from maxquery_jax.data.orientation import apply, find_orientation
from maxquery_jax.errors import UserError
from maxquery_jax.progress import Progress
from maxquery_jax.report.page import write_page
from maxquery_jax.report.pictures import CaseSlice, cut_slice, plot_montage
from maxquery_jax.report.predictions import (
    CaseFiles,
    PredictionSet,
    check_same_grid,
    open_predictions,
    open_run,
    read_score,
    read_segmentation,
    read_truth,
)
from maxquery_jax.report.progress_plot import plot_progress
from maxquery_jax.report.summary import read_summary
from maxquery_jax.report.tables import Table, case_table, summary_tables

NUM_CASES = 8
_MONTAGE_ROWS = 4


def report(
    *,
    model: str | os.PathLike[str] | None = None,
    split: str = 'test',
    predictions: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    label_map: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    cases: int = NUM_CASES,
) -> pathlib.Path:
    """Writes `report.html` and `report/*.png`.

    Either `model`, which adds the training curves, or `predictions` with `images`.

    Args:
        model: run directory.
        split: of the run's store.
        predictions: folder that launch.predict wrote.
        images: folder with the scans.
        labels: folder with the truth, optional with `predictions`.
        label_map: as `predictions.open_predictions`.
        output: folder of the page; by default the run or the predictions.
        cases: how many cases to draw, evenly spaced by id.

    Returns:
        Path of the page.

    Raises:
        UserError: the arguments or a file are at fault.
    """
    if (predictions is None) == (model is None):
        raise UserError('give either --model, or --predictions with --images')
    if cases < 0:
        raise UserError(f'cases must be 0 or more, got {cases}')
    pictures: list[tuple[str, pathlib.Path]] = []
    if model is not None:
        found = open_run(model, split, labels=labels)
        folder = pathlib.Path(output if output is not None else model)
        summary_folder = pathlib.Path(model) if split == 'test' else found.folder
        curves = folder / 'report' / 'progress.png'
        plot_progress(pathlib.Path(model) / 'metrics.jsonl', curves)
        pictures.append(('Training', curves))
    elif predictions is not None and images is not None:
        found = open_predictions(predictions, labels=labels, images=images, label_map=label_map)
        folder = pathlib.Path(output if output is not None else predictions)
        summary_folder = found.folder
    else:
        raise UserError('--predictions needs --images, the folder with the scans')
    tables, notes = _load_tables(summary_folder / 'summary.json')
    drawn = _choose_cases(found, cases)
    pictures += _draw_cases(drawn, found, folder / 'report')
    if len(drawn) < len(found.cases):
        notes.append(f'{len(drawn)} of {len(found.cases)} cases are drawn, see --cases')
    page = folder / 'report.html'
    write_page(page, title=found.name, tables=tables, pictures=pictures, notes=notes)
    return page


def _load_tables(path: pathlib.Path) -> tuple[list[Table], list[str]]:
    """Tables of a summary, or a note that there is none yet."""
    if not path.is_file():
        return [], ['These predictions have not been evaluated; run launch.evaluate for tables.']
    summary = read_summary(path)
    policy = summary['policy']['ci95']
    note = (
        f'Intervals: {policy["method"]}, {policy["resamples"]} resamples. OOD scores are ranked '
        f'in the organ region ({summary["policy"]["ood"]["organ_region"]}, '
        f'{summary["policy"]["ood"]["dilate_mm"]} mm) and in the whole volume.'
    )
    return [*summary_tables(summary), case_table(summary)], [note]


def _choose_cases(found: PredictionSet, count: int) -> list[CaseFiles]:
    """Evenly spaced cases, so that a cohort sorted by disease is not shown by its first only."""
    places = np.linspace(0, len(found.cases) - 1, min(count, len(found.cases)))
    return [found.cases[int(place)] for place in np.round(places)]


def _draw_cases(
    cases: Sequence[CaseFiles], found: PredictionSet, folder: pathlib.Path
) -> list[tuple[str, pathlib.Path]]:
    progress = Progress('draw', len(cases))
    slices = []
    for case in cases:
        slices.append(_load_slice(case, found))
        progress.step(case.case)
    pictures = []
    for start in range(0, len(slices), _MONTAGE_ROWS):
        part = slices[start : start + _MONTAGE_ROWS]
        path = folder / f'cases_{start // _MONTAGE_ROWS}.png'
        plot_montage(part, path, table=found.table)
        pictures.append((f'{found.scores[0]}: ' + ', '.join(s.title for s in part), path))
    return pictures


def _load_slice(case: CaseFiles, found: PredictionSet) -> CaseSlice:
    """Reads a case and keeps one slice of it."""
    if case.image is None:
        raise UserError(f'case {case.case} has no image; give the folder with --images')
    volume = read_image(case.image)
    segmentation, grid = read_segmentation(case, found.table)
    score = read_score(case, found.scores[0])
    for other in (volume, score):
        check_same_grid(grid, other)
    truth = None
    if case.label is not None:
        truth, truth_volume = read_truth(case, found)
        check_same_grid(grid, truth_volume)
    orientation = find_orientation(grid.header.affine, grid.header.shape)
    return cut_slice(
        apply(volume.array, orientation),
        None if truth is None else apply(truth, orientation),
        apply(segmentation, orientation),
        apply(score.array, orientation),
        table=found.table,
        title=case.case,
        spacing_mm=orientation.spacing_mm,
    )
