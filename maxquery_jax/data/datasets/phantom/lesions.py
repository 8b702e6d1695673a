"""One drawn tumour and how it looks at any point and contrast phase."""

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage, spatial, special

from maxquery_jax.data.datasets.phantom import fields
from maxquery_jax.data.datasets.phantom.canvas import Canvas
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID, at_phase
from maxquery_jax.data.datasets.phantom.tumour_types import Inclusion, Level, Rim, TumourType

HOST_TISSUE = {
    'liver': 'liver',
    'pancreas': 'pancreas',
    'right_kidney': 'renal_cortex',
    'left_kidney': 'renal_cortex',
    'spleen': 'spleen',
}  # whose attenuation relative levels refer to; the other hosts' types use absolute HU
SUBVOXEL_MM = 1.8  # tumours are sampled at least this finely (at most 3 samples a voxel and axis)
NEVER_REPLACED = ('aorta',)  # unless it is the host


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A tumour with everything random about it drawn.

    Attributes:
        name: tumour type.
        kind: its description.
        host: organ it lies in.
        centre: nominal (x, y, z) mm.
        radii: half axes in mm along the columns of `turn`.
        turn: [3, 3] rotation, local to nominal.
        shift_hu, gain: individual attenuation and enhancement.
        lobulation: relief of the border.
        rims: layers with their thickness in mm.
        core_share: radius of the core or 0.
        cells: (size, half wall thickness) in mm or None.
        inclusions: those present.
        lattices: noise of the border, the direction, the inside and small pieces.
        seeds: [n, 3] centres of cells in local mm.
    """

    name: str
    kind: TumourType
    host: str
    centre: np.ndarray
    radii: np.ndarray
    turn: np.ndarray
    shift_hu: float
    gain: float
    lobulation: float
    rims: tuple[tuple[Rim, float], ...]
    core_share: float
    cells: tuple[float, float] | None
    inclusions: tuple[Inclusion, ...]
    lattices: dict[str, fields.Lattice]
    seeds: np.ndarray

    @property
    def radius(self) -> float:
        """Geometric mean half axis in mm."""
        return float(np.prod(self.radii) ** (1 / 3))

    @property
    def reach(self) -> float:
        """Distance in mm from the centre that surely contains the tumour."""
        relief = 1 + 3 * self.lobulation
        return float(self.radii.max() * relief + 3 * self.kind.infiltration_mm + 3)


def draw_lesion(rng, name: str, kind: TumourType, host: str, centre, radius: float) -> Lesion:
    """Draws the individual appearance of a tumour of known place and size."""
    long = rng.uniform(*kind.elongation)
    radii = radius * np.array([long ** (2 / 3), long ** (-1 / 3), long ** (-1 / 3)])
    cells = None
    if kind.septa is not None and rng.random() < kind.septa.probability:
        cells = (rng.uniform(*kind.septa.cell_mm), rng.uniform(*kind.septa.half_mm))
    core_share = 0.0
    if kind.core is not None and rng.random() < kind.core.probability:
        core_share = rng.uniform(*kind.core.share)
    cell_mm = cells[0] if cells else kind.mosaic_mm
    pieces = min((part.size_mm for part in kind.inclusions), default=3.0)
    return Lesion(
        name=name,
        kind=kind,
        host=host,
        centre=np.asarray(centre, float),
        radii=radii,
        turn=fields.rotation(tuple(rng.uniform(0, 360, 3))),
        shift_hu=float(rng.normal(0, kind.level_sd)),
        gain=float(np.clip(rng.normal(1, 0.12), 0.7, 1.35)),
        lobulation=float(rng.uniform(*kind.lobulation)),
        rims=tuple(
            (rim, rng.uniform(*rim.thickness_mm))
            for rim in kind.rims
            if rng.random() < rim.probability
        ),
        core_share=core_share,
        cells=cells,
        inclusions=tuple(part for part in kind.inclusions if rng.random() < part.probability),
        lattices={
            'lobes': fields.Lattice(rng, kind.lobe_size / 2, 16),
            'way': fields.Lattice(rng, 0.3, 16),
            'border': fields.Lattice(rng, 2.5, 16),
            'inside': fields.Lattice(rng, kind.speckle_mm, 16),
            'pieces': fields.Lattice(rng, pieces / 2.5, 24),
            'nodules': fields.Lattice(rng, radius * 0.16, 16),
        },
        seeds=_cell_seeds(rng, radii.max() * 1.4, cell_mm),
    )


def _cell_seeds(rng, reach: float, cell_mm: float) -> np.ndarray:
    """Jittered grid of cell centres in local mm."""
    axis = np.arange(-reach - cell_mm, reach + cell_mm, cell_mm)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), -1).reshape(-1, 3)
    seeds = grid + rng.uniform(-0.42, 0.42, grid.shape) * cell_mm
    return np.concatenate([seeds, rng.normal(0, 1, (len(seeds), 1))], 1)  # last: cell's deviate


class Painter:
    """Evaluates one lesion at one contrast phase."""

    def __init__(self, lesion: Lesion, canvas: Canvas):
        """Resolves the levels for the phase of `canvas`."""
        self.lesion, self.position = lesion, canvas.position
        tissue = HOST_TISSUE.get(lesion.host)
        patient = canvas.patient
        self._host = patient.attenuation_of(tissue, canvas.position) if tissue else 0.0
        self._gain = patient.gain * lesion.gain
        if lesion.kind.septa is None and not lesion.kind.mosaic_hu:
            self._tree = None
        else:
            self._tree = spatial.KDTree(lesion.seeds[:, :3])

    def level(self, level: Level) -> float:
        """HU of a component in this phase."""
        base = level.hu[0]
        value = base + self._gain * (at_phase(level.hu, self.position) - base)
        return value if level.absolute else value + self._host

    def evaluate(self, x, y, z) -> tuple[np.ndarray, np.ndarray]:
        """Depth below the border in mm (negative outside) and HU at nominal points.

        Args:
            x: points of any shape; `y` and `z` alike.

        Returns:
            Two float32 arrays of that shape. Far outside, the depth is -99 and the HU is 0.
        """
        lesion = self.lesion
        dx, dy, dz = (c - float(o) for c, o in zip((x, y, z), lesion.centre, strict=True))
        near = dx * dx + dy * dy + dz * dz < lesion.reach**2
        offset = dx[near], dy[near], dz[near]
        local = np.stack([  # turn.T @ offset, without BLAS: its bits depend on threads
            sum(float(w) * o for w, o in zip(row, offset, strict=True)) for row in lesion.turn.T
        ])  # [3, n] mm  # fmt: skip
        unit = local * (1 / lesion.radii[:, None]).astype(np.float32)
        rho = np.sqrt((unit * unit).sum(0)) + np.float32(1e-6)
        depth = np.full(x.shape, -99.0, np.float32)
        value = np.zeros(x.shape, np.float32)
        if near.any():
            depth[near], value[near] = self._near(local, unit, rho)
        return depth, value

    def _noise(self, name: str, points: np.ndarray) -> np.ndarray:
        return self.lesion.lattices[name].at_points(points[2], points[1], points[0])

    def _near(self, local, unit, rho) -> tuple[np.ndarray, np.ndarray]:
        lesion, kind = self.lesion, self.lesion.kind
        direction = unit / rho
        border = 1 + lesion.lobulation * self._noise('lobes', direction)
        depth = (border - rho) * lesion.radius
        if kind.infiltration_mm:
            depth = depth - kind.infiltration_mm * self._noise('border', local)
        inside = self._noise('inside', local)
        value = self.level(kind.level) + lesion.shift_hu + kind.speckle_hu * inside
        if self._tree is not None:
            value = self._with_cells(value, local)
        way = self._noise('way', direction)
        if lesion.core_share and kind.core is not None:
            mix = self._core(rho / border, way, inside)
            value = value + mix * (self.level(kind.core.level) - value)
        for rim, thickness in lesion.rims:
            mix = self._rim(rim, thickness, depth, way, local)
            value = value + mix * (self.level(rim.level) + 0.5 * lesion.shift_hu - value)
        for part in lesion.inclusions:
            zone = {'all': rho < 0.95, 'centre': rho < 0.5, 'rim': rho > 0.8}[part.zone]
            floor = special.ndtri(1 - part.share)
            mix = np.clip((self._noise('pieces', local) - floor) * 3, 0, 1) * zone
            value = value + mix * (self.level(part.level) - value)
        return depth, value

    def _with_cells(self, value, local) -> np.ndarray:
        """Adds the mosaic of cells and the walls between them."""
        lesion, kind = self.lesion, self.lesion.kind
        assert self._tree is not None
        distance, cell = (np.asarray(part) for part in self._tree.query(local.T, k=2))
        if kind.mosaic_hu:
            deviate = lesion.seeds[cell[:, 0], 3]
            value = value + kind.mosaic_hu * np.clip(deviate, -2, 2)
        if lesion.cells is not None and kind.septa is not None:
            wall = (distance[:, 1] - distance[:, 0]) / 2
            mix = np.clip(0.5 + (lesion.cells[1] - wall) / 0.6, 0, 1)
            value = value + mix * (self.level(kind.septa.level) - value)
        return value

    def _core(self, rho, way, inside) -> np.ndarray:
        lesion, kind = self.lesion, self.lesion.kind
        assert kind.core is not None
        share = lesion.core_share
        if kind.core.form == 'irregular':
            share = share * (1 + 0.3 * way) + 0.06 * inside
        elif kind.core.form == 'stellate':  # a small centre with arms
            share = share * (0.45 + 1.5 * np.clip(way - 0.4, 0, 1.2))
        return np.clip(0.5 + (share - rho) * lesion.radius / 1.5, 0, 1)

    def _rim(self, rim: Rim, thickness: Any, depth, way, local) -> np.ndarray:
        lesion = self.lesion
        if rim.fill is not None:  # nodules that grow inwards with time
            nodules = self._noise('nodules', local)
            thickness = at_phase(rim.fill, self.position) * lesion.radius
            thickness = thickness * (1 + 0.7 * rim.irregular * nodules)
            way = 0.7 * (way + nodules)
            soft = 2.5
        else:
            thickness = thickness * np.clip(1 + rim.irregular * way, 0, 2.2)
            soft = 0.8
        mix = np.clip(0.5 + (thickness - depth) / soft, 0, 1)
        if rim.cover < 1:
            mix = mix * np.clip((way - special.ndtri(1 - rim.cover)) * 2 + 0.5, 0, 1)
        return mix


def paint_lesion(canvas: Canvas, lesion: Lesion, number: int, lesions: np.ndarray) -> None:
    """Draws a lesion and writes its number.

    Args:
        canvas: whose `kept` has the host and 'rigid'.
        lesion: what to draw.
        number: written to `lesions`.
        lesions: [D, H, W] uint8 lesion numbers.
    """
    box = canvas.box(lesion.centre - lesion.reach, lesion.centre + lesion.reach)
    if box is None:
        return
    painter = Painter(lesion, canvas)
    points, count = _subvoxels(canvas, box)
    depth, value = painter.evaluate(*points)
    soft = np.float32(max(lesion.kind.margin_mm, 0.4))
    alpha = np.clip(0.5 + depth / soft, 0, 1)
    total = alpha.sum(0)
    mean = (alpha * value).sum(0) / np.maximum(total, 1e-3)
    allowed = _allowed(canvas, lesion, box)
    canvas.blend_cover(box, total / count * allowed, mean, lesion.host)
    inside = ((depth > 0).mean(0) > 0.5) & (allowed > 0.5)
    lesions[box][inside] = number
    canvas.organs[box][inside] = ORGAN_ID[lesion.host]


def _subvoxels(canvas: Canvas, box) -> tuple[list[np.ndarray], int]:
    """Nominal coordinates at points spread over each voxel: three [S, d, h, w], and S."""
    steps = [int(np.clip(round(mm / SUBVOXEL_MM), 1, 3)) for mm in canvas.grid.spacing_mm]
    spots = [(np.arange(n) + 0.5) / n - 0.5 for n in steps]
    offsets = np.stack(np.meshgrid(*spots, indexing='ij'), -1).reshape(-1, 3).astype(np.float32)
    out = []
    for axis in canvas.xyz:
        part = axis[box]
        slopes = [
            np.gradient(part, axis=n) if part.shape[n] > 1 else np.zeros_like(part)
            for n in range(3)
        ]
        out.append(np.stack([part + sum(o * s for o, s in zip(spot, slopes, strict=True))
                             for spot in offsets]))  # fmt: skip
    return out, len(offsets)


def _allowed(canvas: Canvas, lesion: Lesion, box) -> np.ndarray:
    """Share 0..1 of each voxel where the lesion may be: the host and what it bulges into."""
    host = canvas.kept[lesion.host][box]
    limit = lesion.kind.bulge * lesion.radius
    top = float(host.max())
    if limit <= 0:
        allowed = host
    elif top < 0.05:  # the host is thinner than the voxels here
        allowed = np.ones_like(host)
    else:
        outside = host < 0.5 * min(top, 1.0)
        away = np.asarray(ndimage.distance_transform_edt(outside, sampling=canvas.grid.spacing_mm))
        allowed = np.clip(0.5 + (limit - away) / canvas.voxel_mm, 0, 1)
        allowed = np.where(away <= 0, 1, allowed).astype(np.float32)
    blocked = [ORGAN_ID[name] for name in NEVER_REPLACED if name != lesion.host]
    return allowed * (1 - canvas.kept['rigid'][box]) * ~np.isin(canvas.organs[box], blocked)
