"""The verb `report`: pictures and one offline page of a run, of predictions or of a comparison."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from maxquery_jax.data.orientation import apply, find_orientation
from maxquery_jax.errors import UserError
from maxquery_jax.progress import Progress
from maxquery_jax.report import compare as compare_lib
from maxquery_jax.report.case_files import (
    CaseFiles,
    PredictionSet,
    check_same_grid,
    read_score,
    read_segmentation,
    read_truth,
)
from maxquery_jax.report.page import write_page
from maxquery_jax.report.pictures import CaseSlice, cut_slice, plot_montage
from maxquery_jax.report.predictions import open_predictions, open_run
from maxquery_jax.report.progress_plot import plot_progress
from maxquery_jax.report.summary import read_summary
from maxquery_jax.report.tables import Table, case_table, summary_tables

NUM_CASES = 8

PathLike = str | os.PathLike[str]

_MONTAGE_ROWS = 4


def report(
    *,
    model: PathLike | None = None,
    split: str = 'test',
    predictions: PathLike | None = None,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    label_map: PathLike | None = None,
    output: PathLike | None = None,
    cases: int = NUM_CASES,
    methods: Sequence[compare_lib.Method] = (),
    queries: bool = False,
    against: PathLike | None = None,
) -> pathlib.Path:
    """Writes `report.html` and `report/*.png`.

    Either `model`, which adds the training curves, or `predictions` with `images`, or `methods`
    alone.

    Args:
        model: run directory.
        split: of the run's store.
        predictions: folder that launch.predict wrote.
        images: folder with the scans.
        labels: folder with the truth, optional with `predictions`.
        label_map: as `predictions.open_predictions`.
        output: folder of the page; by default the run or the predictions.
        cases: how many cases to draw, evenly spaced by id.
        methods: columns of compare.png, see `compare.compare`.
        queries: draw the query assignments of `model`, see `query_figures.report_queries`.
        against: second run of the picture of all queries; means `queries`.

    Returns:
        Path of the page.

    Raises:
        UserError: the arguments or a file are at fault.
    """
    folder = _check_arguments(model, predictions, images, output, cases, methods, queries, against)
    page = _Page()
    if model is not None:
        found = open_run(model, split, labels=labels)
        curves = folder / 'report' / 'progress.png'
        plot_progress(pathlib.Path(model) / 'metrics.jsonl', curves)
        page.pictures.append(('Training', curves))
        evaluated = pathlib.Path(model) if split == 'test' else found.folder
        _add_cases(page, found, evaluated, folder, cases)
    elif predictions is not None:
        found = open_predictions(predictions, labels=labels, images=images, label_map=label_map)
        _add_cases(page, found, found.folder, folder, cases)
    if methods:
        path = folder / 'report' / 'compare.png'
        compare_lib.compare(
            methods, path, split=split, images=images, labels=labels, label_map=label_map
        )
        page.pictures.append((compare_lib.CAPTION, path))
    if queries or against is not None:
        assert model is not None
        from maxquery_jax.report.query_figures import report_queries  # runs the network: JAX

        told = report_queries(model, folder / 'report', split=split, against=against)
        page.tables += told.tables
        page.pictures += told.pictures
    target = folder / 'report.html'
    write_page(target, **vars(page))
    return target


@dataclasses.dataclass
class _Page:
    """What has been gathered for the page."""

    title: str = 'Comparison of methods'
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, pathlib.Path]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def _add_cases(
    page: _Page, found: PredictionSet, evaluated: pathlib.Path, folder: pathlib.Path, count: int
) -> None:
    """Adds what is known of a set of predictions: tables, and pictures of some cases.

    Args:
        page: to add to.
        found: the predictions.
        evaluated: folder of their summary.json.
        folder: of the page.
        count: how many cases to draw.
    """
    page.title = found.name
    _add_summary(page, evaluated / 'summary.json')
    drawn = _choose_cases(found, count)
    page.pictures += _draw_cases(drawn, found, folder / 'report')
    if len(drawn) < len(found.cases):
        page.notes.append(f'{len(drawn)} of {len(found.cases)} cases are drawn, see --cases')


def _check_arguments(
    model: PathLike | None,
    predictions: PathLike | None,
    images: PathLike | None,
    output: PathLike | None,
    cases: int,
    methods: Sequence[compare_lib.Method],
    queries: bool,
    against: PathLike | None,
) -> pathlib.Path:
    """The folder of the page.

    Raises:
        UserError: the arguments of `report` do not fit together.
    """
    if model is not None and predictions is not None:
        raise UserError('give either --model, or --predictions with --images, not both')
    if model is None and (queries or against is not None):
        raise UserError('--queries and --against need --model, a run with queries')
    if cases < 0:
        raise UserError(f'cases must be 0 or more, got {cases}')
    if predictions is not None and images is None:
        raise UserError('--predictions needs --images, the folder with the scans')
    if model is None and predictions is None and not methods:
        raise UserError(
            'give either --model, or --predictions with --images, or --method with --output'
        )
    folder = next((place for place in (output, model, predictions) if place is not None), None)
    if folder is None:
        raise UserError('--method without --model needs --output, the folder of the page')
    return pathlib.Path(folder)


def _add_summary(page: _Page, path: pathlib.Path) -> None:
    """Adds the tables of a summary, or a note that there is none yet."""
    if not path.is_file():
        page.notes.append(
            'These predictions have not been evaluated; run launch.evaluate for tables.'
        )
        return
    summary = read_summary(path)
    policy = summary['policy']['ci95']
    page.notes.append(
        f'Intervals: {policy["method"]}, {policy["resamples"]} resamples. OOD scores are ranked '
        f'in the organ region ({summary["policy"]["ood"]["organ_region"]}, '
        f'{summary["policy"]["ood"]["dilate_mm"]} mm) and in the whole volume.'
    )
    page.tables += [*summary_tables(summary), case_table(summary)]


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
    volume = compare_lib.read_case_image(case)
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
