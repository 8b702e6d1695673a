"""`progress.png`: losses, validation Dice, learning rate and throughput over steps."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maxquery_jax.errors import UserError
from maxquery_jax.report.pictures import save_figure

Row = Mapping[str, Any]

_NOT_LOSSES = frozenset(
    (
        'step',
        'stage',
        'split',
        'learning_rate',
        'grad_norm',
        'wall_s',
        'voxels_per_s',
        'data_wait_s',
    )
)
_SMOOTHING_RATE = 0.1  # of the exponential moving average drawn over the noisy loss


def plot_progress(metrics_jsonl: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Draws the rows of a run's `metrics.jsonl`.

    Stages follow each other on the step axis, divided by lines. A last row that was cut off when
    the run was killed is left out.

    Args:
        metrics_jsonl: rows with 'step', 'stage', 'split' ('train' or 'val') and scalars.
        out_png: picture to write, whole or not at all.

    Raises:
        UserError: the file is missing, damaged or holds no row.
    """
    rows = read_rows(metrics_jsonl)
    train = [row for row in rows if row['split'] == 'train']
    offsets = _stage_offsets(rows)
    figure = Figure(figsize=(11, 12), layout='constrained')
    axes: Sequence[Axes] = figure.subplots(4, 1, sharex=True)
    _draw_losses(axes[0], train, offsets)
    _draw_dice(axes[1], [row for row in rows if row['split'] == 'val'], offsets)
    _draw_series(axes[2], train, offsets, 'learning_rate', 'learning rate')
    _draw_series(axes[3], train, offsets, 'voxels_per_s', 'throughput, Mvoxel/s', scale=1e-6)
    axes[3].set_xlabel('step')
    axes[3].set_xlim(0, max(offsets[row['stage']] + row['step'] for row in rows))
    for axis in axes:
        axis.grid(alpha=0.3)
        for offset in list(offsets.values())[1:]:
            axis.axvline(offset, color='black', linewidth=1, linestyle=':')
    for stage, offset in offsets.items():
        axes[0].annotate(stage, (offset, 1.02), xycoords=('data', 'axes fraction'))
    save_figure(figure, out_png)


def read_rows(metrics_jsonl: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, in order.

    Raises:
        UserError: the file is missing, a line other than the last is damaged, or there is none.
    """
    path = pathlib.Path(metrics_jsonl)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); train first') from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({'step': row['step'], 'stage': row['stage'], 'split': row['split']} | row)
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise UserError(
                    f'{path} line {number} is no metrics row ({error}); remove the line'
                ) from error
    if not rows:
        raise UserError(f'{path} holds no rows yet; wait for the first log interval')
    return rows


def _stage_offsets(rows: Sequence[Row]) -> dict[str, int]:
    """First step of each stage on the common axis: the sum of the stages before."""
    last: dict[str, int] = {}
    for row in rows:
        last[row['stage']] = max(last.get(row['stage'], 0), row['step'])
    starts = np.cumsum([0, *last.values()])
    return dict(zip(last, starts.tolist(), strict=False))


def _series(
    rows: Sequence[Row], offsets: Mapping[str, int], stage: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps on the common axis and finite values of one scalar in one stage."""
    pairs = [
        (row['step'] + offsets[stage], row[key])
        for row in rows
        if row['stage'] == stage and isinstance(row.get(key), int | float)
    ]
    points = np.array(pairs, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    return points[:, 0], points[:, 1]


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _draw_losses(axis: Axes, rows: Sequence[Row], offsets: Mapping[str, int]) -> None:
    """Every loss term faint, with its moving average on top."""
    colours = mpl.color_sequences['tab10']
    keys = [key for key in _keys(rows) if key not in _NOT_LOSSES]
    for number, key in enumerate(keys):
        colour = colours[number % len(colours)]
        label: str | None = key
        for stage in offsets:
            steps, values = _series(rows, offsets, stage, key)
            if not len(steps):
                continue
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            width = 2.5 if key == 'loss' else 1.2
            axis.plot(steps, _smooth(values), color=colour, linewidth=width, label=label)
            label = None  # once in the legend
    axis.set_ylabel('training loss terms')
    _draw_legend(axis, 'upper right')


def _draw_dice(axis: Axes, rows: Sequence[Row], offsets: Mapping[str, int]) -> None:
    """Pseudo Dice of the validation patches, per class and mean."""
    colours = mpl.color_sequences['tab20']
    keys = [key for key in _keys(rows) if key.startswith('dice')]
    keys.sort(key=lambda key: key == 'dice_mean')  # drawn last, on top
    for number, key in enumerate(keys):
        is_mean = key == 'dice_mean'
        style: dict[str, Any] = (
            {'color': 'black', 'linewidth': 2.5} if is_mean else {'color': colours[number % 20]}
        )
        label: str | None = 'mean' if is_mean else key.removeprefix('dice/')
        for stage in offsets:
            steps, values = _series(rows, offsets, stage, key)
            if len(steps):
                axis.plot(steps, values, marker='.', label=label, **style)
                label = None
    axis.set_ylim(0, 1)
    axis.set_ylabel('validation Dice (patches)')
    _draw_legend(axis, 'lower right')


def _draw_series(
    axis: Axes,
    rows: Sequence[Row],
    offsets: Mapping[str, int],
    key: str,
    title: str,
    scale: float = 1.0,
) -> None:
    for stage in offsets:
        steps, values = _series(rows, offsets, stage, key)
        known = values > 0  # the first row of a start has no throughput yet
        axis.plot(steps[known], values[known] * scale, color='tab:blue', marker='.', markersize=3)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(title)


def _draw_legend(axis: Axes, place: Literal['upper right', 'lower right']) -> None:
    if axis.get_legend_handles_labels()[1]:  # matplotlib warns about an empty legend
        axis.legend(loc=place, ncols=3, fontsize='small')


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average that starts at the first value."""
    smooth = np.empty_like(values)
    average = values[0]
    for i, value in enumerate(values):
        average += _SMOOTHING_RATE * (value - average)
        smooth[i] = average
    return smooth
