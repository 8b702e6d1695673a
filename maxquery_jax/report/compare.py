"""Anomaly maps of several methods side by side (MaxQuery Fig. 4, and Fig. 1 of its appendix)."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from maxquery_jax.data import volumes
from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.nifti import Volume, to_canonical
from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.progress import Progress
from maxquery_jax.report.case_files import (
    CaseFiles,
    PredictionSet,
    check_same_grid,
    read_score,
    read_truth,
)
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.pictures import add_legend, draw_scan, hide_ticks, save_figure, upright
from maxquery_jax.report.predictions import open_predictions, open_run

NUM_ROWS = 4
CAPTION = (
    'Anomaly maps of several methods (MaxQuery Fig. 4). Truth: organ red, known tumour green, '
    'unknown tumour blue. Brighter is more anomalous; each map is scaled from its minimum to its '
    'maximum within the region shown, for display only.'
)

PathLike = str | os.PathLike[str]

_PANEL_INCHES = 2.2
_MARGIN_MM = 20.0  # around the organ, in the region that is shown
_REGION_ROLES = ('organ', 'tumour', 'ood')


@dataclasses.dataclass(frozen=True)
class Method:
    """A column of the picture.

    Attributes:
        title: heading.
        path: run directory or folder of predictions.
        score: anomaly score; '' takes the primary one of the predictions.
    """

    title: str
    path: pathlib.Path
    score: str = ''


@dataclasses.dataclass(frozen=True)
class OodSlice:
    """The slice of a case that holds most unknown tumour.

    Attributes:
        case: its files.
        place: slice, canonical.
        area: voxels of unknown tumour in it.
        kind: id of the unknown tumour with most voxels in it.
    """

    case: CaseFiles
    place: int
    area: int
    kind: int


@dataclasses.dataclass(frozen=True)
class CompareRow:
    """A row of the picture, cut to the region shown; canonical (y, x) order.

    Attributes:
        title: case, unknown tumour and slice.
        image: [h, w] HU of the last phase.
        truth: [h, w] class ids.
        maps: one [h, w] raw score per method.
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    maps: tuple[np.ndarray, ...]
    aspect: float


def parse_method(text: str, study: PathLike | None = None, seed: int = 0) -> Method:
    """Reads TITLE=PATH or TITLE=PATH:SCORE.

    Args:
        text: value of a `--method` flag.
        study: folder of a study; PATH then is a variant of it, and means its run of `seed`.
        seed: see `study`.

    Raises:
        UserError: it is not of that form.
    """
    title, equals, rest = text.partition('=')
    path, colon, score = rest.rpartition(':')
    if not colon or os.sep in score:
        path, score = rest, ''
    if not (equals and title.strip() and path.strip()):
        raise UserError(
            f'--method={text} must look like TITLE=RUN:SCORE, e.g. MSP=runs/nnunet:category_softmax'
        )
    if study is not None:
        return Method(title.strip(), pathlib.Path(study) / path / f'seed{seed}', score)
    return Method(title.strip(), pathlib.Path(path), score)


def compare(
    methods: Sequence[Method],
    path: PathLike,
    *,
    split: str = 'test',
    images: PathLike | None = None,
    labels: PathLike | None = None,
    label_map: PathLike | None = None,
    num_rows: int = NUM_ROWS,
) -> tuple[CompareRow, ...]:
    """Draws the cases with the largest unknown tumours, of different types first.

    Scans and truth are those of the store of the first method that is a run; if none is, those of
    `images` and `labels`.

    Args:
        methods: columns after CT and truth.
        path: picture to write.
        split: of a run's predictions.
        images: folder with the scans.
        labels: folder with the truth.
        label_map: as `predictions.open_predictions`.
        num_rows: most cases to draw.

    Returns:
        What was drawn.

    Raises:
        UserError: a prediction is missing (says how to make it) or lies on another grid; or no
            case of the split has an unknown tumour.
    """
    if not methods:
        raise UserError('name the methods to compare with --method=TITLE=RUN:SCORE')
    sets = [_open(method, split) for method in methods]
    reference = _open_reference(methods, sets, split, images, labels, label_map)
    chosen = choose_slices(find_ood_slices(reference), num_rows)
    if not chosen:
        raise UserError(
            f'no case of {reference.name} has an unknown tumour in its truth; compare methods on '
            'a split that has'
        )
    rows = []
    for place in chosen:
        scores = [
            _find_score(method, found, place.case.case, split)
            for method, found in zip(methods, sets, strict=True)
        ]
        rows.append(_load_row(place, scores, reference))
    save_figure(draw_compare(rows, [method.title for method in methods], reference.table), path)
    return tuple(rows)


def find_ood_slices(found: PredictionSet) -> list[OodSlice]:
    """The slice with most unknown tumour of every case that has any; reads every truth."""
    slices = []
    progress = Progress('find slices', len(found.cases))
    for case in found.cases:
        truth, volume = read_truth(case, found)
        canonical, _ = to_canonical(dataclasses.replace(volume, array=truth))
        area = found.table.mask(canonical, 'ood').sum(axis=(1, 2))
        place = int(area.argmax())
        if area[place]:
            counts = np.bincount(canonical[place].ravel(), minlength=len(found.table.names))
            kind = max(found.table.ids('ood'), key=lambda i, c=counts: c[i])
            slices.append(OodSlice(case, place, int(area[place]), kind))
        progress.step(case.case)
    return slices


def choose_slices(slices: Sequence[OodSlice], num_rows: int) -> list[OodSlice]:
    """The largest slice of each type of unknown tumour, then the largest of what is left.

    Ties go to the case whose name comes first.
    """
    ordered = sorted(slices, key=lambda s: (-s.area, s.case.case))
    first = {s.kind: s for s in reversed(ordered)}  # the largest of its type stays
    leaders = [s for s in ordered if first[s.kind] is s]
    others = [s for s in ordered if first[s.kind] is not s]
    return [*leaders, *others][:num_rows]


def draw_compare(rows: Sequence[CompareRow], titles: Sequence[str], table: LabelTable) -> Figure:
    """A row per case: CT, truth, a map per method in grey.

    Args:
        rows: at least one.
        titles: of the methods.
        table: classes, for the colours.
    """
    headings = ['CT', 'truth', *titles]
    size = (len(headings) * _PANEL_INCHES, len(rows) * _PANEL_INCHES + 0.6)
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(len(rows), len(headings), squeeze=False)
    for line, row in zip(panels, rows, strict=True):
        draw_scan(line[0], row.image, None, table, aspect=row.aspect)
        draw_scan(line[1], row.image, row.truth, table, aspect=row.aspect)
        for panel, values in zip(line[2:], row.maps, strict=True):
            panel.imshow(
                upright(scale_for_display(values)), cmap='gray', vmin=0, vmax=1, aspect=row.aspect
            )
            hide_ticks(panel)
        line[0].set_ylabel(row.title, fontsize='small')
    for panel, heading in zip(panels[0], headings, strict=True):
        panel.set_title(heading)
    add_legend(figure, [row.truth for row in rows], table)
    return figure


def scale_for_display(values: np.ndarray) -> np.ndarray:
    """[h, w] raw scores to [0, 1], minimum to maximum; zeros where they are constant."""
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low if high > low else 1.0)


def region_shown(
    truth: np.ndarray, table: LabelTable, spacing_mm: Sequence[float], margin_mm: float = _MARGIN_MM
) -> tuple[slice, slice]:
    """The part of a slice around organ and tumours; all of it where there are none.

    Args:
        truth: [H, W] class ids (uint8).
        table: classes.
        spacing_mm: pixel size (y, x).
        margin_mm: around the bounding box.
    """
    wanted = table.mask(truth, *_REGION_ROLES)
    if not wanted.any():
        return slice(None), slice(None)
    box = []
    for axis, spacing in enumerate(spacing_mm):
        places = np.flatnonzero(wanted.any(axis=1 - axis))
        margin = int(np.ceil(margin_mm / spacing))
        box.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1))
    return box[0], box[1]


def read_case_image(case: CaseFiles) -> Volume:
    """The scan that a case was predicted from, as `launch.predict` read it.

    Findings that were accepted then are accepted now, and of a DICOM folder with several series
    the one that the record names is taken.

    Raises:
        UserError: the scan is not known or cannot be read.
    """
    if case.image is None:
        raise UserError(f'case {case.case} has no image; give the folder with --images')
    first = (case.info.get('input') or [{}])[0]
    series = first.get('series') if first.get('file') == case.image.name else None
    return volumes.read_image(case.image, series=series, allow=CHECKS, nan_policy='fill')


def _load_row(
    chosen: OodSlice, scores: Sequence[tuple[CaseFiles, str]], reference: PredictionSet
) -> CompareRow:
    """Reads scan, truth and maps of a case and keeps the region shown of one slice."""
    truth, grid = read_truth(chosen.case, reference)
    ids, orientation = to_canonical(dataclasses.replace(grid, array=truth))
    spacing = orientation.spacing_mm
    region = region_shown(ids[chosen.place], reference.table, spacing[1:])

    def cut(volume: Volume) -> np.ndarray:
        check_same_grid(grid, volume)
        return np.array(to_canonical(volume)[0][chosen.place][region])

    name = reference.table.names[chosen.kind]
    return CompareRow(
        title=f'{chosen.case.case}\n{name}, slice {chosen.place + 1}/{len(ids)}',
        image=cut(read_case_image(chosen.case)),
        truth=np.array(ids[chosen.place][region]),
        maps=tuple(cut(read_score(case, score)) for case, score in scores),
        aspect=spacing[1] / spacing[2],
    )


def _is_run(path: pathlib.Path) -> bool:
    return (path / 'manifest.json').is_file()


def _folder(method: Method, split: str) -> pathlib.Path:
    return method.path / 'predictions' / split if _is_run(method.path) else method.path


def _command(method: Method, split: str, scores: Sequence[str]) -> str:
    """How the predictions of a method are made."""
    what = f'--scores={",".join(scores)}' if any(scores) else ''
    if _is_run(method.path):
        words = f'--model={method.path} --split={split} {what}'
    else:
        words = f'--model=RUN --input=SCANS --output={method.path} {what}'
    return f'make it with python -m launch.predict {words}'.rstrip()


def _open(method: Method, split: str) -> Mapping[str, CaseFiles]:
    """Predicted cases of a method by name."""
    folder = _folder(method, split)
    if not method.path.is_dir():
        raise UserError(f'{method.path} ({method.title}) does not exist; check --method')
    if not folder.is_dir() or not any(folder.glob('*_seg.nii.gz')):
        raise UserError(
            f'{folder} ({method.title}) holds no prediction; '
            f'{_command(method, split, [method.score])}'
        )
    return {case.case: case for case in open_predictions(folder).cases}


def _find_score(
    method: Method, found: Mapping[str, CaseFiles], case: str, split: str
) -> tuple[CaseFiles, str]:
    """Files of a case and the score to draw.

    Raises:
        UserError: the case or its score was not predicted; names the file and the command.
    """
    folder = _folder(method, split)
    known = list(next(iter(found.values())).scores)
    score = method.score or known[0]
    if case not in found:
        ending = '' if score == known[0] else f'-{score}'
        raise UserError(
            f'{folder / case}_ood{ending}.nii.gz ({method.title}) does not exist; '
            f'{_command(method, split, known)}'
        )
    if score not in found[case].scores:
        raise UserError(
            f'{folder / case}_ood-{score}.nii.gz ({method.title}) does not exist; '
            f'{_command(method, split, [*known, score])}'
        )
    return found[case], score


def _open_reference(
    methods: Sequence[Method],
    sets: Sequence[Mapping[str, CaseFiles]],
    split: str,
    images: PathLike | None,
    labels: PathLike | None,
    label_map: PathLike | None,
) -> PredictionSet:
    """Where scans and truth come from."""
    for method, found in zip(methods, sets, strict=True):
        if _is_run(method.path):
            return _open_run(method, found, split, labels)
    if images is None or labels is None:
        raise UserError(
            'no --method is a run, so that the scans are not known; give --images and --labels'
        )
    return open_predictions(methods[0].path, images=images, labels=labels, label_map=label_map)


def _open_run(
    method: Method, found: Mapping[str, CaseFiles], split: str, labels: PathLike | None
) -> PredictionSet:
    """`open_run`, which says how to make a missing prediction, with the last phase as image.

    Phases follow each other in time, and the last, venous one shows most tumours.
    """
    run = read_json(method.path / 'manifest.json', fix='give the --workdir of a training')
    where = pathlib.Path(str(run.get('store', ''))) / 'manifest.json'
    fix = 'the store has moved; give folders of predictions as --method, with --images'
    store = Manifest.from_json(read_json(where, fix=fix), str(where))
    for case in sorted(store.splits.get(split, ())):
        if case not in found:
            _find_score(method, found, case, split)
    opened = open_run(method.path, split, labels=labels)
    cases = []
    for case in opened.cases:
        images = store.cases[case.case]['source'].get('image')
        image = pathlib.Path(store.source) / images[-1] if images else None
        cases.append(dataclasses.replace(case, image=image))
    return dataclasses.replace(opened, cases=tuple(cases))
