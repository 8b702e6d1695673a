"""Pictures of cases: CT, truth, prediction and anomaly map side by side (MaxQuery Fig. 4)."""

import dataclasses
import io
import os
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from maxquery_jax.files import write_bytes
from maxquery_jax.report.labels import LabelTable

WINDOW_HU = (40.0, 400.0)
"""Level and width of the display window: soft tissue."""

_DPI = 100
_PANEL_INCHES = 3.6
_OVERLAY_ALPHA = 0.5
# As in MaxQuery Fig. 5: organs red, known tumours green, unknown ones blue; a shade per class.
_COLOUR_MAPS = {'organ': 'Reds', 'tumour': 'Greens', 'ood': 'Blues'}


@dataclasses.dataclass(frozen=True)
class CaseSlice:
    """One slice of a case, in canonical (y, x) order: all that a picture needs.

    Attributes:
        title: case and slice.
        image: [H, W] HU.
        truth: [H, W] class ids, None without truth.
        prediction: [H, W] class ids.
        anomaly: [H, W] raw score.
        anomaly_range: smallest and largest score of the whole case, for display.
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray
    anomaly: np.ndarray
    anomaly_range: tuple[float, float]
    aspect: float


def choose_slice(truth: np.ndarray | None, prediction: np.ndarray, table: LabelTable) -> int:
    """The slice that shows most: unknown tumour, else tumour, else organ, else the middle.

    Args:
        truth: [D, H, W] class ids, or None.
        prediction: [D, H, W] class ids.
        table: classes.
    """
    truth = prediction if truth is None else truth
    for label, roles in (
        (truth, ('ood',)),
        (truth, ('tumour',)),
        (prediction, ('tumour',)),
        (truth, ('organ',)),
    ):
        area = table.mask(label, *roles).sum(axis=(1, 2))
        if area.any():
            return int(area.argmax())
    return len(prediction) // 2


def cut_slice(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    anomaly: np.ndarray,
    *,
    table: LabelTable,
    title: str = '',
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> CaseSlice:
    """Takes the most telling slice out of canonical volumes.

    Args:
        image: [D, H, W] HU, index growing towards superior, anterior, right.
        truth: [D, H, W] class ids (uint8), or None.
        prediction: [D, H, W] class ids (uint8).
        anomaly: [D, H, W] raw anomaly score.
        table: classes.
        title: name of the case.
        spacing_mm: voxel size (z, y, x).
    """
    place = choose_slice(truth, prediction, table)
    return CaseSlice(
        title=f'{title} slice {place + 1}/{len(image)}'.strip(),
        image=np.array(image[place]),
        truth=None if truth is None else np.array(truth[place]),
        prediction=np.array(prediction[place]),
        anomaly=np.array(anomaly[place]),
        anomaly_range=(float(anomaly.min()), float(anomaly.max())),
        aspect=spacing_mm[1] / spacing_mm[2],
    )


def plot_case(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    anomaly: np.ndarray,
    out_png: str | os.PathLike[str],
    *,
    table: LabelTable,
    title: str = '',
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    window_hu: tuple[float, float] = WINDOW_HU,
) -> None:
    """Draws one case; arguments as `cut_slice` and `plot_montage`."""
    piece = cut_slice(
        image, truth, prediction, anomaly, table=table, title=title, spacing_mm=spacing_mm
    )
    plot_montage([piece], out_png, table=table, window_hu=window_hu)


def plot_montage(
    slices: Sequence[CaseSlice],
    out_png: str | os.PathLike[str],
    *,
    table: LabelTable,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> None:
    """Draws a row of four panels per case: CT, truth, prediction, anomaly map.

    Shown as radiologists do: the patient's right on the left, anterior at the top. The anomaly
    map is scaled to the case's own range, for display only; a line marks unknown tumour.

    Args:
        slices: at least one.
        out_png: picture to write, whole or not at all.
        table: classes, for colours and legend.
        window_hu: (level, width) of the CT.
    """
    rows = len(slices)
    figure = Figure(
        figsize=(4 * _PANEL_INCHES, rows * _PANEL_INCHES + 0.6), dpi=_DPI, layout='constrained'
    )
    panels = figure.subplots(rows, 4, squeeze=False)
    for row, piece in zip(panels, slices, strict=True):
        _draw_row(row, piece, table, window_hu)
    for panel, heading in zip(panels[0], ('CT', 'truth', 'prediction', 'anomaly'), strict=True):
        panel.set_title(heading)
    add_legend(figure, [_classes_of(piece) for piece in slices], table)
    save_figure(figure, out_png)


def save_figure(figure: Figure, out_png: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, whole or not at all, without the writer's version in it."""
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=_DPI, metadata={'Software': None})
    write_bytes(out_png, content.getvalue())


def draw_scan(
    panel: Axes,
    image: np.ndarray,
    label: np.ndarray | None,
    table: LabelTable,
    *,
    aspect: float = 1.0,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> None:
    """Draws CT, and classes over it if there are any.

    Args:
        panel: where.
        image: [H, W] HU, canonical.
        label: [H, W] class ids (uint8), or None.
        table: classes, for the colours.
        aspect: height of a pixel over its width.
        window_hu: (level, width).
    """
    level, width = window_hu
    panel.imshow(
        upright(image), cmap='gray', vmin=level - width / 2, vmax=level + width / 2, aspect=aspect
    )
    if label is not None:
        overlay = overlay_colours(table)[upright(label)]
        panel.imshow(overlay, aspect=aspect, interpolation='nearest')
    hide_ticks(panel)


def add_legend(figure: Figure, labels: Sequence[np.ndarray], table: LabelTable) -> None:
    """Names the colours of the classes that occur in some label maps, below the panels."""
    shown = sorted({int(i) for label in labels for i in np.unique(label)} - {0})
    if shown:
        colours = overlay_colours(table)
        patches = [Patch(color=colours[i][:3], label=table.names[i]) for i in shown]
        figure.legend(handles=patches, loc='outside lower center', ncols=min(8, len(patches)))


def hide_ticks(panel: Axes) -> None:
    """A picture needs no scale of pixels."""
    panel.set_xticks([])
    panel.set_yticks([])


def upright(plane: np.ndarray) -> np.ndarray:
    """[H, W] with indices towards anterior and right, as rows from the top and columns."""
    return plane[::-1, ::-1]


def overlay_colours(table: LabelTable) -> np.ndarray:
    """[num ids, 4] RGBA overlay colour per class id; background transparent."""
    colours = np.zeros((len(table.names), 4))
    for role, name in _COLOUR_MAPS.items():
        ids = table.ids(role)
        shades = mpl.colormaps[name](np.linspace(0.75, 0.4, max(1, len(ids))))
        for i, shade in zip(ids, shades, strict=False):
            colours[i] = (*shade[:3], _OVERLAY_ALPHA)
    return colours


def _draw_row(
    panels: Sequence[Axes], piece: CaseSlice, table: LabelTable, window_hu: tuple[float, float]
) -> None:
    for panel, label in zip(panels, (None, piece.truth, piece.prediction), strict=False):
        draw_scan(panel, piece.image, label, table, aspect=piece.aspect, window_hu=window_hu)
    if piece.truth is None:
        panels[1].text(
            0.5, 0.5, 'no truth', color='white', ha='center', transform=panels[1].transAxes
        )
    low, high = piece.anomaly_range
    drawn = panels[3].imshow(
        upright(piece.anomaly), cmap='inferno', vmin=low, vmax=high, aspect=piece.aspect
    )
    unknown = None if piece.truth is None else table.mask(upright(piece.truth), 'ood')
    if unknown is not None and unknown.any():
        panels[3].contour(unknown, levels=[0.5], colors='deepskyblue', linewidths=1)
    hide_ticks(panels[3])
    if panels[3].figure is not None:
        panels[3].figure.colorbar(drawn, ax=panels[3], shrink=0.8)
    panels[0].set_ylabel(piece.title, fontsize='small')


def _classes_of(piece: CaseSlice) -> np.ndarray:
    parts = [piece.prediction] if piece.truth is None else [piece.prediction, piece.truth]
    return np.unique(np.concatenate([part.ravel() for part in parts]))
