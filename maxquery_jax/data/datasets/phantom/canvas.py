"""Draws implicit shapes on a voxel grid with partial volume: the phantom's renderer.

A shape is a field f(x, y, z), negative inside and roughly a distance in mm near its border. The
share of a voxel that it covers follows from f and its change over one voxel, so thick slices and
thin organs blur as they do in a scanner, at the cost of one evaluation per voxel.
"""

import dataclasses

import numpy as np

from maxquery_jax.data.datasets.phantom import fields
from maxquery_jax.data.datasets.phantom.shapes import Bundle, Shape, Slices, Tube


@dataclasses.dataclass(frozen=True)
class Grid:
    """Voxel centres of an axis-aligned volume in patient space (RAS, mm).

    Attributes:
        z: [D] coordinates, increasing towards superior; `y` [H] anterior, `x` [W] right.
        spacing_mm: (z, y, x).
    """

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    spacing_mm: tuple[float, ...]

    @classmethod
    def centred(cls, centre_xyz, shape_zyx, spacing_mm) -> 'Grid':
        """Grid of the given shape around a point."""
        axes = [
            centre + (np.arange(size) - (size - 1) / 2) * step
            for centre, size, step in zip(centre_xyz[::-1], shape_zyx, spacing_mm, strict=True)
        ]
        return cls(axes[0], axes[1], axes[2], tuple(float(step) for step in spacing_mm))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return len(self.z), len(self.y), len(self.x)


@dataclasses.dataclass(frozen=True)
class Motion:
    """How a contrast phase moved against the reference phase: a shift and a smooth deformation.

    Attributes:
        shift_xyz: mm added to the patient coordinates before the anatomy is looked up.
        lattices: three lattices (x, y, z) of the smooth part; empty for none.
        amplitude_mm: standard deviation of the smooth part.
    """

    shift_xyz: tuple[float, ...] = (0.0, 0.0, 0.0)
    lattices: tuple[fields.Lattice, ...] = ()
    amplitude_mm: float = 0.0


class View:
    """A box of the canvas: nominal coordinates and boundary noise at its voxels."""

    def __init__(self, canvas: 'Canvas', box: Slices):
        """Views `canvas` inside `box`."""
        self.canvas = canvas
        self.box = box
        self.x, self.y, self.z = (axis[box] for axis in canvas.xyz)

    def wobble(self, weights: np.ndarray) -> np.ndarray:
        """Weighted sum of the shared boundary noise fields, in mm."""
        total = np.float32(weights[0]) * self.canvas.noise[0][self.box]
        for weight, field in zip(weights[1:], self.canvas.noise[1:], strict=True):
            total += np.float32(weight) * field[self.box]
        return total


class Canvas:
    """The volume being drawn.

    Attributes:
        grid: voxel centres.
        xyz: nominal (atlas) coordinates of every voxel, three [D, H, W] float32 arrays.
        nominal_z: [D, 1, 1] nominal z of the planes, without the warp (for level tables).
        noise: boundary noise fields, unit variance.
        grain, patches: texture fields, unit variance.
        hu: [D, H, W] float32 noise-free image.
        organs: [D, H, W] uint8 organ ids.
        kept: cover [D, H, W] of structures that were asked for, after what lies in front of them.
        voxel_mm: cube root of the voxel volume.
    """

    def __init__(self, grid: Grid, patient, position: float, motion: Motion, keep=()):
        """Prepares the coordinates of one phase.

        Args:
            grid: voxel centres.
            patient: `patient.Patient`.
            position: contrast phase, see `tissues.phase_position`.
            motion: of this phase.
            keep: names under which `paint` accumulates cover.
        """
        self.grid, self.patient, self.motion = grid, patient, motion
        moved = [
            np.asarray(axis) + shift
            for axis, shift in zip((grid.x, grid.y, grid.z), motion.shift_xyz, strict=True)
        ]
        x, y, z = moved
        self.xyz, slack = [], []
        for axis, (coordinate, lattice) in enumerate(zip(moved, patient.warp, strict=True)):
            bend = lattice.on_grid(z, y, x) * np.float32(patient.warp_mm)
            if motion.lattices:
                bend += motion.lattices[axis].on_grid(z, y, x) * np.float32(motion.amplitude_mm)
            slack.append(float(np.abs(bend).max()) + 1.0)
            shape = [1, 1, 1]
            shape[2 - axis] = -1
            bend += (coordinate / patient.scale_xyz[axis]).astype(np.float32).reshape(shape)
            self.xyz.append(bend)
        self._slack = np.array(slack)
        self._first = np.array([c[0] for c in moved]) / patient.scale_xyz
        self._step = np.array(grid.spacing_mm[::-1]) / patient.scale_xyz
        self.nominal_z = (moved[2] / patient.scale_xyz[2]).astype(np.float32)[:, None, None]
        self.noise = [lattice.on_grid(z, y, x) for lattice in patient.boundary]
        self.grain, self.patches = (lattice.on_grid(z, y, x) for lattice in patient.texture)
        self.tissue = patient.attenuation(position)
        self.position = position
        self.hu = np.full(grid.shape, -1000, np.float32)
        self.organs = np.zeros(grid.shape, np.uint8)
        self.kept = {name: np.zeros(grid.shape, np.float32) for name in keep}
        self.voxel_mm = float(np.prod(grid.spacing_mm)) ** (1 / 3)

    def boxes(self, lo_xyz: np.ndarray, hi_xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index ranges that surely contain nominal bounds.

        Args:
            lo_xyz: [n, 3] lower bounds; `hi_xyz` alike.

        Returns:
            Start and stop [n, 3] in (x, y, z); stop <= start outside the volume.
        """
        start = np.floor((lo_xyz - self._slack - self._first) / self._step).astype(int) - 1
        stop = np.ceil((hi_xyz + self._slack - self._first) / self._step).astype(int) + 2
        return np.maximum(start, 0), np.minimum(stop, self.grid.shape[::-1])

    def box(self, lo_xyz, hi_xyz) -> Slices | None:
        """Slices that surely contain the nominal bounds, or None outside the volume."""
        start, stop = self.boxes(np.asarray(lo_xyz, float), np.asarray(hi_xyz, float))
        if (stop - start < 2).any():
            return None
        return slice(start[2], stop[2]), slice(start[1], stop[1]), slice(start[0], stop[0])

    def whole(self) -> View:
        """The view of everything."""
        depth, height, width = self.grid.shape
        return View(self, (slice(0, depth), slice(0, height), slice(0, width)))

    def shade(self, tissue: str, box: Slices) -> np.ndarray:
        """[d, h, w] HU of a tissue with its texture."""
        mean, grain, patches = self.tissue[tissue]
        out = self.grain[box] * np.float32(grain)
        if patches:
            out += self.patches[box] * np.float32(patches)
        out += np.float32(mean)
        return out

    def paint(self, shape: Shape, tissue: str, organ: int = 0, keep: str | None = None) -> None:
        """Draws a shape over what is there.

        Args:
            shape: what to draw.
            tissue: name in `tissues.TISSUES`.
            organ: id written where the voxel centre is inside; 0 erases.
            keep: name in `kept` that gains the cover.
        """
        box = self.box(shape.lo, shape.hi)
        if box is not None:
            field = shape.field(View(self, box))
            self.blend(box, field, self.shade(tissue, box), organ, keep)

    def blend(self, box, field, value, organ=0, keep=None) -> None:
        """Draws `value` where `field` is negative."""
        self.blend_cover(box, coverage(field), value, keep)
        self.organs[box][field < 0] = organ

    def blend_cover(self, box, cover, value, keep=None) -> None:
        """Mixes `value` into the image by a cover 0..1 and updates the kept covers."""
        hu = self.hu[box]
        hu += cover * (value - hu)
        for name, kept in self.kept.items():
            part = kept[box]
            part += cover * ((name == keep) - part)

    def paint_tube(
        self, tube: Tube, tissue: str, organ: int = 0, keep=None, core: tuple | None = None
    ) -> None:
        """Draws a tube, with the right mean where it is thinner than a voxel.

        Args:
            tube: what to draw.
            tissue: name in `tissues.TISSUES`.
            organ: id written inside.
            keep: name in `kept` that gains the cover.
            core: (tissue, wall in mm) of an inside that differs.
        """
        box = self.box(tube.lo, tube.hi)
        if box is None:
            return
        trace = tube.trace(View(self, box))
        cover = self.tube_cover(trace.field, trace.radius)
        self.blend_cover(box, cover, self.shade(tissue, box), keep)
        self.organs[box][trace.field < 0] = organ
        if core is not None:
            inner, wall_mm = core
            radius = np.maximum(trace.radius - np.float32(wall_mm), 0)
            cover = self.tube_cover(trace.field + np.float32(wall_mm), radius)
            self.blend_cover(box, cover, self.shade(inner, box), keep)

    def tube_cover(self, field: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Cover by a tube; where it is about as thin as a voxel, its mass is right on average.

        There the cover is a ramp of one voxel's width across the border, scaled to the tube's
        cross-section (the ramp alone has the volume of a cone or a frustum).
        """
        voxel = np.float32(self.voxel_mm)
        thin = radius < 1.5 * voxel
        if not thin.any() and field.ndim == 3:
            return coverage(field)
        r = np.maximum(radius, np.float32(1e-3))
        cone = 3 * voxel * r * r / (r + voxel / 2) ** 3
        frustum = 1 / (1 + voxel * voxel / (12 * r * r))
        scale = np.where(r < voxel / 2, cone, frustum)
        ramp = np.clip(np.float32(0.5) - field / voxel, 0, 1) * scale
        return ramp if field.ndim == 1 else np.where(thin, ramp, coverage(field))

    def paint_bundle(self, bundle: Bundle, within, tissue: str, organ=None, keep=None) -> None:
        """Draws many thin tubes at once.

        Args:
            bundle: what to draw.
            within: [D, H, W] cover 0..1 or mask; nothing is drawn where it is below a third.
            tissue: name in `tissues.TISSUES`.
            organ: id written inside, None to leave the map alone.
            keep: name in `kept` that gains the cover.
        """
        box = self.box(bundle.lo, bundle.hi)
        if box is None:
            return
        allowed = np.asarray(within[box])
        where = allowed > 0.33
        if not where.any():
            return
        view = View(self, box)
        points = np.stack([view.x[where], view.y[where], view.z[where]], 1)
        field, radius = bundle.nearest(points, 2.0 * max(self.grid.spacing_mm))
        cover = np.zeros(where.shape, np.float32)
        cover[where] = self.tube_cover(field, radius)
        self.blend_cover(box, cover * allowed, self.shade(tissue, box), keep)
        if organ is not None:
            where[where] = field < 0
            self.organs[box][where] = organ


def coverage(field: np.ndarray) -> np.ndarray:
    """Share 0..1 of each voxel with field < 0, from the field's change over one voxel."""
    square = np.float32(1e-4)
    for axis in range(3):
        if field.shape[axis] > 1:
            step = np.gradient(field, axis=axis)
            step *= step
            square = square + step
    return np.clip(np.float32(0.5) - field / np.sqrt(square), 0, 1)
