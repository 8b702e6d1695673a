"""Pictures of query assignments (MaxQuery Fig. 5 and 6) and the numbers behind them."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.queries import QueryReader
from maxquery_jax.progress import Progress
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.pictures import add_legend, draw_scan, hide_ticks, save_figure, upright
from maxquery_jax.report.query_numbers import (
    GROUPS,
    QueryCounts,
    class_rows,
    count_queries,
    describe_counts,
    group_confusion,
    ranking_rows,
)
from maxquery_jax.report.tables import Table

FORMAT, VERSION = 'maxquery_jax/queries', 1
SHOWN_QUERIES = (2, 1, 2)
"""Representative queries of background, organ and tumour in Fig. 5."""
CAPTION = (
    'Query assignments (MaxQuery Fig. 5): CT with truth, then the queries with the largest total '
    'assignment in the slice, of the background, organ and tumour groups. Colour is M from 0 to '
    '1; query ids count from 0.'
)

PathLike = str | os.PathLike[str]

_PANEL_INCHES = 2.2
_SMALL_INCHES = 0.95
_COLOUR_MAP = 'viridis'
_FRAMES = ('tab:gray', 'tab:red', 'tab:green')  # of background, organ and tumour queries


@dataclasses.dataclass(frozen=True)
class AssignmentSlice:
    """Query assignments of one slice on the store's grid, canonical (y, x) order.

    Attributes:
        title: case and slice.
        image: [H, W] HU of the last channel: the venous phase, where there are several.
        truth: [H, W] class ids.
        assignment: [N, H, W] M.
        query_groups: (N1, N2, N3).
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    assignment: np.ndarray
    query_groups: tuple[int, ...]
    aspect: float

    @property
    def group_of(self) -> np.ndarray:
        """[N] index of each query's group."""
        return np.repeat(np.arange(len(GROUPS)), self.query_groups)


@dataclasses.dataclass(frozen=True)
class QueryReport:
    """What a page shows of queries.

    Attributes:
        pictures: (caption, PNG file).
        tables: numbers.
        content: of queries.json.
    """

    pictures: tuple[tuple[str, pathlib.Path], ...]
    tables: tuple[Table, ...]
    content: Mapping[str, Any]


def report_queries(
    model: PathLike,
    folder: PathLike,
    *,
    split: str = 'test',
    against: PathLike | None = None,
    step_size: float | None = None,
) -> QueryReport:
    """Draws query_assignments.png and query_grid.png and writes queries.json.

    The numbers come from every case of the split, which takes as long as predicting it.

    Args:
        model: run directory of a MaxQuery stage.
        folder: for the files.
        split: of the store it was trained on.
        against: second run, drawn on the left of the grid; the one without QD loss in Fig. 6.
        step_size: distance between tiles as a fraction of the patch; None as `predict`.

    Raises:
        UserError: a run has no queries, the store is gone, or no case of the split has a tumour.
    """
    folder = pathlib.Path(folder)
    reader = QueryReader(load_model(model), step_size=step_size)
    readers = [reader]
    if against is not None:
        other = QueryReader(load_model(against), reader.store, step_size=step_size)
        readers.insert(0, other)
    store = reader.store
    table = LabelTable.from_json(store.manifest.labels, store.location)
    chosen = choose_cases(store, split, table)
    slices = [load_slice(reader, table, *place) for place in chosen]
    pictures = [
        (CAPTION, folder / 'query_assignments.png'),
        (_grid_caption(readers, slices[0].title), folder / 'query_grid.png'),
    ]
    save_figure(draw_assignments(slices, table), pictures[0][1])
    shown = [
        slices[0] if each is reader else load_slice(each, table, *chosen[0]) for each in readers
    ]
    names = [_name(each) for each in readers]
    save_figure(draw_query_grid(shown, names, table), pictures[1][1])
    runs = [_describe_run(each, table, split) for each in readers]
    content = {
        'format': FORMAT,
        'version': VERSION,
        'split': split,
        'cases': list(store.case_ids(split)),
        'slices': [piece.title for piece in slices],
        'runs': runs,
    }
    write_json(folder / 'queries.json', content)
    tables = []
    for run in runs:
        tables.append(class_rows(run, f'Queries of {run["run"]}, {split}'))
        tables.append(ranking_rows(run, f'AUROC of unknown tumour, {run["run"]}'))
    return QueryReport(tuple(pictures), tuple(tables), content)


def choose_cases(
    store: PatchStore, split: str, table: LabelTable
) -> list[tuple[str, tuple[str, ...]]]:
    """The inlier case with most known tumour, then the OOD case with most unknown tumour.

    Returns:
        (case, roles of the tumour to show), at least one.

    Raises:
        UserError: no case of the split has a tumour in its truth.
    """
    chosen = []
    sizes = {}
    for case in store.case_ids(split):
        voxels = store.manifest.cases[case]['voxels']
        sizes[case] = [
            sum(int(voxels.get(str(i), 0)) for i in table.ids(role)) for role in ('tumour', 'ood')
        ]
    known = {case: tumour for case, (tumour, ood) in sizes.items() if tumour and not ood}
    unknown = {case: ood for case, (_, ood) in sizes.items() if ood}
    for found, role in ((known, 'tumour'), (unknown, 'ood')):
        if found:
            chosen.append((max(found, key=lambda case, f=found: f[case]), (role,)))
    if not chosen:
        raise UserError(
            f'split {split!r} of store {store.location} has no case with a tumour in its truth; '
            'choose a split that has'
        )
    return chosen


def load_slice(
    reader: QueryReader, table: LabelTable, case: str, roles: Sequence[str]
) -> AssignmentSlice:
    """The slice of a case that holds most of some roles."""
    label = reader.store.read_label(case)
    place = int(table.mask(label, *roles).sum(axis=(1, 2)).argmax())
    slab = reader.maps(case, place, place + 1)
    size = (1, *label.shape[1:])
    image = reader.store.read_image(case, (place, 0, 0), size)[0, ..., -1]
    spacing = reader.model.spacing_mm
    return AssignmentSlice(
        title=f'{case} slice {place + 1}/{len(label)}',
        image=image,
        truth=label[place],
        assignment=slab.queries[:, 0].astype(np.float32),
        query_groups=reader.model.query_groups,
        aspect=spacing[1] / spacing[2],
    )


def choose_queries(
    piece: AssignmentSlice, counts: Sequence[int] = SHOWN_QUERIES
) -> list[tuple[int, int]]:
    """The queries of each group with the largest total assignment in the slice.

    Args:
        piece: the slice.
        counts: queries per group; fewer where a group is smaller.

    Returns:
        (group, query), group by group, largest first; ties go to the lower id.
    """
    totals = piece.assignment.sum(axis=(1, 2))
    chosen = []
    for group, count in enumerate(counts):
        members = np.flatnonzero(piece.group_of == group)
        order = members[np.argsort(-totals[members], kind='stable')]
        chosen += [(group, int(query)) for query in order[:count]]
    return chosen


def draw_assignments(slices: Sequence[AssignmentSlice], table: LabelTable) -> Figure:
    """A row per slice: CT with truth, then representative queries (MaxQuery Fig. 5)."""
    chosen = [choose_queries(piece) for piece in slices]
    columns = 1 + max(len(queries) for queries in chosen)
    size = (columns * _PANEL_INCHES, len(slices) * _PANEL_INCHES + 0.6)
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(len(slices), columns, squeeze=False)
    for line, piece, queries in zip(panels, slices, chosen, strict=True):
        draw_scan(line[0], piece.image, piece.truth, table, aspect=piece.aspect)
        line[0].set_ylabel(piece.title, fontsize='small')
        drawn = None
        for panel, (group, query) in zip(line[1:], queries, strict=False):
            drawn = _draw_query(panel, piece, query)
            panel.set_title(GROUPS[group], fontsize='small')
        for panel in line[1 + len(queries) :]:
            panel.set_axis_off()
        if drawn is not None:
            figure.colorbar(drawn, ax=list(line), shrink=0.8, label='M')
    panels[0][0].set_title('CT and truth', fontsize='small')
    add_legend(figure, [piece.truth for piece in slices], table)
    return figure


def draw_query_grid(
    slices: Sequence[AssignmentSlice], titles: Sequence[str], table: LabelTable
) -> Figure:
    """All queries of a slice, one block per run side by side (MaxQuery Fig. 6).

    Frames tell the groups apart. Under each block: share of each kind of voxel that each group
    takes, queries that are the first choice of a voxel, and mean entropy of M, of this slice.

    Args:
        slices: the same slice under each run.
        titles: one per run.
        table: classes.
    """
    columns, rows = _grid_shape(max(len(piece.assignment) for piece in slices))
    size = (len(slices) * columns * _SMALL_INCHES, rows * _SMALL_INCHES + 2.2)
    figure = Figure(figsize=size, layout='constrained')
    blocks = figure.subfigures(1, len(slices), squeeze=False, wspace=0.03)[0]
    for block, piece, title in zip(blocks, slices, titles, strict=True):
        _draw_block(block, piece, (rows, columns))
        block.suptitle(title, fontsize='medium')
        block.supxlabel(describe_slice(piece, table), fontsize='small', family='monospace')
    frames = [Patch(color=c, label=f'{g} query') for g, c in zip(GROUPS, _FRAMES, strict=True)]
    figure.legend(handles=frames, loc='outside lower center', ncols=len(frames))
    return figure


def describe_slice(piece: AssignmentSlice, table: LabelTable) -> str:
    """The numbers of one slice as lines of text."""
    counts = count_queries(piece.assignment, piece.truth, piece.query_groups, table)
    lines = [f'{"voxels of":<15}' + ''.join(f'{group:>12}' for group in GROUPS)]
    for name, shares in group_confusion(counts, table).items():
        lines.append(f'{name:<15}' + ''.join(f'{100 * share:>11.1f}%' for share in shares))
    lines.append(
        f'{counts.num_used} of {len(piece.assignment)} queries used, mean entropy of M '
        f'{counts.mean_entropy:.2f} of {np.log(len(piece.assignment)):.2f}'
    )
    return '\n'.join(lines)


def count_split(reader: QueryReader, table: LabelTable, split: str) -> QueryCounts:
    """Counts of every annotated case of a split, streamed slab by slab.

    Raises:
        UserError: no case of the split is annotated.
    """
    total = None
    store = reader.store
    cases = [case for case in store.case_ids(split) if store.has_label(case)]
    if not cases:
        raise UserError(f'split {split!r} of store {store.location} has no annotated case')
    progress = Progress('queries', len(cases))
    for case in cases:
        label = store.read_label(case)
        for slab in reader.slabs(case):
            counts = count_queries(
                slab.queries,
                label[slab.start : slab.start + len(slab.predicted)],
                reader.model.query_groups,
                table,
                predicted=slab.predicted,
                parts=slab.parts,
                case=case,
            )
            total = counts if total is None else total.merge(counts)
        progress.step(case)
    assert total is not None
    return total


def _describe_run(reader: QueryReader, table: LabelTable, split: str) -> dict[str, Any]:
    model = reader.model
    counts = count_split(reader, table, split)
    return {
        'run': _name(reader),
        'model': {'name': model.description, 'params_sha256': model.params_sha256},
        'qd_weight': model.qd_weight,
        **describe_counts(counts, table, model.query_groups),
    }


def _name(reader: QueryReader) -> str:
    """Run and weight of the QD loss; a study's runs are all called seedN, so with the folder."""
    run = reader.model.run_dir
    where = 'model' if run is None else '/'.join(run.resolve().parts[-2:])
    weight = reader.model.qd_weight
    return f'{where}: {f"QD loss, weight {weight:g}" if weight else "without QD loss"}'


def _grid_caption(readers: Sequence[QueryReader], title: str) -> str:
    names = '; '.join(_name(reader) for reader in readers)
    caption = (
        f'Assignments of all queries on {title} (MaxQuery Fig. 6). {names}. Colour is M from 0 '
        'to 1; ids count from 0, frames are the groups of the queries. Below, of this slice: the '
        'share of each kind of voxel that each group of queries takes.'
    )
    if any(not reader.model.qd_weight for reader in readers):
        caption += ' Without QD loss nothing binds a query to its group.'
    return caption


def _grid_shape(num_queries: int) -> tuple[int, int]:
    """(columns, rows) of a block twice as wide as high: 8 x 4 for the paper's 32 queries."""
    columns = int(np.ceil(np.sqrt(2 * num_queries)))
    return columns, int(np.ceil(num_queries / columns))


def _draw_block(block: SubFigure | Figure, piece: AssignmentSlice, shape: tuple[int, int]) -> None:
    panels = block.subplots(*shape, squeeze=False).ravel()
    for query, panel in enumerate(panels):
        if query >= len(piece.assignment):
            panel.set_axis_off()
            continue
        _draw_query(panel, piece, query)
        for spine in panel.spines.values():
            spine.set_color(_FRAMES[piece.group_of[query]])
            spine.set_linewidth(2)


def _draw_query(panel: Any, piece: AssignmentSlice, query: int) -> Any:
    """Draws M of one query with its id; returns the image, for a colour bar."""
    drawn = panel.imshow(
        upright(piece.assignment[query]), cmap=_COLOUR_MAP, vmin=0, vmax=1, aspect=piece.aspect
    )
    corner = {'transform': panel.transAxes, 'va': 'top', 'fontsize': 'small'}
    panel.text(0.03, 0.97, str(query), color='white', **corner)
    hide_ticks(panel)
    return drawn
