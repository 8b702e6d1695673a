"""Draws the hollow organs of a phantom patient: walls, fluid, gas and stool."""

import functools

import numpy as np

from maxquery_jax.data.datasets.phantom import fields
from maxquery_jax.data.datasets.phantom.canvas import Canvas, View, coverage
from maxquery_jax.data.datasets.phantom.shapes import Bundle, Tube
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID


def paint_intestine(canvas: Canvas, wall: np.ndarray) -> None:
    """Draws the small bowel loops and the mesenteric vessels between them."""
    if canvas.box((-100, 0, -250), (95, 110, -30)) is None:
        return
    rng = canvas.patient.stream('intestine')
    canvas.paint_bundle(_mesentery(canvas.patient), wall < -3, 'mesenteric_vein')
    tube = Tube(_loops(rng), rng.uniform(10.5, 13.5), 11, reach_mm=6)
    box = canvas.box(tube.lo, tube.hi)
    if box is None:
        return
    view = View(canvas, box)
    trace = tube.trace(view)
    field = trace.field + view.wobble(canvas.patient.wobble('intestine', 0.8, 1.4))
    field = np.maximum(field, wall[box] + 4)
    organ = ORGAN_ID['intestine']
    canvas.blend(box, field, canvas.shade('bowel_wall', box), organ, 'intestine')
    fill = _along(rng, 60)
    lumen = field + np.interp(trace.position, *fill).astype(np.float32) * 1.6 + 4.2
    content = canvas.shade('chyme', box)
    canvas.blend(box, lumen, content, organ, 'intestine')
    gas = _along(rng, 40)
    bubble = np.interp(trace.position, *gas).astype(np.float32)
    filled = coverage(lumen) * np.clip((bubble - 1.7) * 6, 0, 1)
    canvas.blend_cover(box, filled, canvas.shade('gas', box), 'intestine')


def _along(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A random profile (positions, unit-variance values) along a tube."""
    return np.linspace(0, 1, count), rng.normal(0, 1, count)


def _loops(rng: np.random.Generator) -> np.ndarray:
    """Control points [n, 3] of a bowel folded through the central abdomen."""
    rows = []
    direction = 1
    for depth, top, low in ((28, -46, -215), (54, -46, -225), (76, -88, -200)):
        levels = np.arange(top, low, -27.0)
        if direction < 0:
            levels = levels[::-1]
        for level in levels:
            left, right = rng.uniform(-84, -60), rng.uniform(48, 70)
            if level < -185:
                left, right = left * 0.6, right * 0.7  # the pelvis is narrower
            if level > -85:
                right = rng.uniform(-30, 5)  # jejunum lies in the left upper abdomen
            across = np.linspace(left, right, 6)[:: direction or 1]
            row = np.stack([across, np.full(6, float(depth)), np.full(6, level)], 1)
            rows.append(row + rng.normal(0, (7, 7, 11), row.shape))
            direction = -direction
    return np.concatenate(rows)


@functools.lru_cache(maxsize=2)
def _mesentery(patient) -> Bundle:
    """Fans of mesenteric vessels."""
    rng = patient.stream('mesentery')
    root = np.array([4, 40, -55.0])
    tubes = []
    for _ in range(18):
        end = np.array([rng.uniform(-70, 60), rng.uniform(40, 85), rng.uniform(-165, -70)])
        middle = (root + end) / 2 + rng.normal(0, 8, 3)
        start = root + (0, 2, rng.uniform(-50, 0))
        tubes.append(Tube([start, middle, end], [2.6, 1.9, 1.1], 14))
    return Bundle(tubes)


def paint_colon(canvas: Canvas) -> None:
    """Draws the colon with haustra, stool and gas."""
    points, radii = canvas.patient.tubes['colon']
    rng = canvas.patient.stream('colon')
    organ = ORGAN_ID['colon']
    tube = Tube(points, radii, 13, reach_mm=5)
    box = canvas.box(tube.lo, tube.hi)
    if box is None:
        return
    view = View(canvas, box)
    trace = tube.trace(view)
    pouch = np.abs(np.sin(trace.position * np.float32(rng.uniform(72, 84))))
    field = trace.field + np.float32(2.6) - pouch * 3
    field += view.wobble(canvas.patient.wobble('colon', 0.8, 0.8))
    canvas.blend(box, field, canvas.shade('colon_wall', box), organ, 'colon')
    lumen = field + 2.8
    canvas.blend(box, lumen, _stool(canvas, box), organ, 'colon')
    axis_y = np.interp(trace.position, tube.position, tube.path[:, 1]).astype(np.float32)
    spots, level = _along(rng, 26)
    level = np.interp(trace.position, spots, level * 9 + 4).astype(np.float32)
    filled = coverage(lumen) * _above_level(canvas, axis_y + level - view.y)
    canvas.blend_cover(box, filled, canvas.shade('gas', box), 'colon')


def _stool(canvas: Canvas, box) -> np.ndarray:
    """Mottled stool with small gas bubbles."""
    value = 15 + canvas.patches[box] * 18 + canvas.grain[box] * 28
    bubbles = np.clip((canvas.grain[box] - 0.9) * 1.2, 0, 1)
    return value - bubbles * 560


def paint_rectum(canvas: Canvas) -> None:
    """Draws the rectum."""
    points, radii = canvas.patient.tubes['rectum']
    _paint_hollow(
        canvas, 'rectum', Tube(points, radii, reach_mm=4), 'colon_wall', 3.5, 'stool', 0.0
    )


def paint_stomach(canvas: Canvas, wall: np.ndarray, diaphragm: np.ndarray, bed: Tube) -> None:
    """Draws the oesophagus and the stomach, indented by `bed`, with fluid below gas (supine)."""
    points, radii = canvas.patient.tubes['esophagus']
    tube = Tube(points, radii)
    canvas.paint_tube(tube, 'esophagus', ORGAN_ID['esophagus'], keep='esophagus')
    core = Tube(points, 1.8)
    canvas.paint_tube(core, 'gas', ORGAN_ID['esophagus'], keep='esophagus')
    points, radii = canvas.patient.tubes['stomach']
    tube = Tube(points, radii, 9, reach_mm=9)
    box = canvas.box(tube.lo, tube.hi)
    if box is None:
        return
    rng = canvas.patient.stream('stomach')
    view = View(canvas, box)
    field = tube.trace(view).field + view.wobble(canvas.patient.wobble('stomach', 2, 1))
    limits = fields.smooth_max(wall[box] + 4, diaphragm[box] + 3, 6)
    field = fields.smooth_max(field, limits, 6)
    field = fields.smooth_max(field, 4 - bed.trace(view).field, 6)
    organ = ORGAN_ID['stomach']
    canvas.blend(box, field, canvas.shade('stomach_wall', box), organ, 'stomach')
    folds = np.maximum(canvas.grain[box], 0) * np.float32(1.6)
    lumen = field + 4.2 + folds
    canvas.blend(box, lumen, canvas.shade('fluid', box), organ, 'stomach')
    surface = np.float32(tube.hi[1] - 9 - rng.uniform(4, 34))  # height of the fluid level
    gas = np.maximum(field + 4.2, surface - view.y)
    canvas.blend(box, gas, canvas.shade('gas', box), organ, 'stomach')


def paint_duodenum(canvas: Canvas) -> None:
    """Draws the duodenum, partly collapsed."""
    points, radii = canvas.patient.tubes['duodenum']
    rng = canvas.patient.stream('duodenum')
    tube = Tube(points, radii * rng.uniform(0.85, 1.05), 7, reach_mm=4)
    _paint_hollow(canvas, 'duodenum', tube, 'bowel_wall', 3.6, 'chyme', 1.3)


def _paint_hollow(canvas, name, tube, wall_tissue, wall_mm, content, gas_level) -> None:
    """Draws a tube with wall, content and gas above a level that `gas_level` raises (5 mm each)."""
    box = canvas.box(tube.lo, tube.hi)
    if box is None:
        return
    rng = canvas.patient.stream(name + '/content')
    view = View(canvas, box)
    trace = tube.trace(view)
    field = trace.field + view.wobble(canvas.patient.wobble(name, 0.8, 0.8))
    organ = ORGAN_ID[name]
    canvas.blend(box, field, canvas.shade(wall_tissue, box), organ, name)
    lumen = field + wall_mm
    shade = _stool(canvas, box) if content == 'stool' else canvas.shade(content, box)
    canvas.blend_cover(box, coverage(lumen), shade, name)
    axis_y = np.interp(trace.position, tube.position, tube.path[:, 1]).astype(np.float32)
    spots, level = _along(rng, 9)
    level = np.interp(trace.position, spots, (level + 1 + gas_level) * 5).astype(np.float32)
    filled = coverage(lumen) * _above_level(canvas, axis_y + level - view.y)
    canvas.blend_cover(box, filled, canvas.shade('gas', box), name)


def _above_level(canvas: Canvas, below_mm: np.ndarray) -> np.ndarray:
    """Cover of the part above a fluid level; `below_mm` may jump outside the lumen."""
    return np.clip(np.float32(0.5) - below_mm / np.float32(canvas.grid.spacing_mm[1]), 0, 1)
