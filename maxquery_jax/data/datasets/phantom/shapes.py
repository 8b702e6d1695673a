"""Implicit shapes that the canvas draws: ellipsoids, tubes, bundles of thin vessels."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import spatial

from maxquery_jax.data.datasets.phantom import fields

if TYPE_CHECKING:
    from maxquery_jax.data.datasets.phantom.canvas import View

Slices = tuple[slice, slice, slice]


@dataclasses.dataclass(frozen=True)
class Shape:
    """An implicit shape: bounds (x, y, z) in mm and its field on a view."""

    lo: np.ndarray
    hi: np.ndarray
    field: Callable[['View'], np.ndarray]

    def grown(self, mm: float) -> 'Shape':
        """The shape with its border moved outwards (inwards if negative)."""
        return Shape(self.lo - mm, self.hi + mm, lambda view: self.field(view) - np.float32(mm))

    def cut(self, other: Callable[['View'], np.ndarray], blend_mm: float = 4.0) -> 'Shape':
        """Intersection with the region where `other` is negative, with a rounded edge."""
        return Shape(
            self.lo,
            self.hi,
            lambda view: fields.smooth_max(self.field(view), other(view), blend_mm),
        )


def ellipsoid(centre, radii, degrees_xyz=(0, 0, 0)) -> Shape:
    """A turned ellipsoid; its field is the distance to first order."""
    centre, radii = np.asarray(centre, float), np.asarray(radii, float)
    turn = fields.rotation(degrees_xyz)  # local to nominal
    reach = np.sqrt(((turn * radii) ** 2).sum(1))
    to_local = turn.T.astype(np.float32)

    def field(view: 'View') -> np.ndarray:
        p = [a - np.float32(c) for a, c in zip((view.x, view.y, view.z), centre, strict=True)]
        square, slope = np.float32(0), np.float32(1e-6)
        for row, radius in zip(to_local, radii, strict=True):
            part = (row[0] * p[0] + row[1] * p[1] + row[2] * p[2]) * np.float32(1 / radius)
            part *= part
            square = square + part
            slope = slope + part * np.float32(1 / radius**2)
        k = np.sqrt(square)
        return k * (k - 1) / np.sqrt(slope)

    return Shape(centre - reach, centre + reach, field)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A tube on a view: field in mm, radius and position 0..1 of the nearest piece."""

    field: np.ndarray
    radius: np.ndarray
    position: np.ndarray


class Tube:
    """A chain of tapered capsules along a smooth curve."""

    def __init__(self, points, radii, step_mm: float | None = None, reach_mm: float = 0.0):
        """Builds the tube.

        Args:
            points: [n, 3] control points.
            radii: one radius or n of them, mm.
            step_mm: length of the pieces; about the mean radius by default.
            reach_mm: how far outside the surface the field must still be a distance, for callers
                that add to it.
        """
        radii = np.broadcast_to(np.asarray(radii, float), (len(points),))
        step = step_mm or float(np.clip(radii.mean() * 0.9, 5, 14))
        self.path, self.position = fields.curve(points, step)
        self.radii = np.interp(self.position, np.linspace(0, 1, len(points)), radii)
        self.reach_mm = reach_mm
        self.lo = (self.path - self.radii[:, None]).min(0) - reach_mm
        self.hi = (self.path + self.radii[:, None]).max(0) + reach_mm

    def trace(self, view: 'View') -> Trace:
        """Evaluates the tube; far from it the field is a constant."""
        canvas = view.canvas
        margin = max(4.0, 1.6 * max(canvas.grid.spacing_mm)) + self.reach_mm
        shape = view.x.shape
        field = np.full(shape, margin, np.float32)
        radius = np.full(shape, self.radii[0], np.float32)
        position = np.zeros(shape, np.float32)
        ends = np.stack([self.path[:-1], self.path[1:]])
        reach = np.maximum(self.radii[:-1], self.radii[1:])[:, None] + margin
        start, stop = canvas.boxes(ends.min(0) - reach, ends.max(0) + reach)
        origin = np.array([part.start for part in view.box[::-1]])
        start = np.maximum(start - origin, 0)
        stop = np.minimum(stop - origin, shape[::-1])
        for n in np.flatnonzero((stop > start).all(1)):
            (x0, y0, z0), (x1, y1, z1) = start[n].tolist(), stop[n].tolist()
            box = slice(z0, z1), slice(y0, y1), slice(x0, x1)
            self._piece(n, view, box, field[box], radius[box], position[box])
        return Trace(field, radius, position)

    def _piece(self, n, view, box, field, radius, position) -> None:
        """Lowers the field to the capsule between samples n and n + 1."""
        a, d = self.path[n].tolist(), (self.path[n + 1] - self.path[n]).tolist()
        px, py, pz = view.x[box] - a[0], view.y[box] - a[1], view.z[box] - a[2]
        t = px * d[0]
        t += py * d[1]
        t += pz * d[2]
        t *= 1 / max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], 1e-6)
        np.clip(t, 0, 1, out=t)
        px -= t * d[0]
        py -= t * d[1]
        pz -= t * d[2]
        px *= px
        px += py * py
        px += pz * pz
        ra, rb = float(self.radii[n]), float(self.radii[n + 1])
        r = t * (rb - ra) + ra
        new = np.sqrt(px) - r
        nearer = new < field
        np.copyto(field, new, where=nearer)
        np.copyto(radius, r, where=nearer)
        pa, pb = float(self.position[n]), float(self.position[n + 1])
        np.copyto(position, t * (pb - pa) + pa, where=nearer)

    def shape(self, extra_mm: float = 0.0) -> Shape:
        """The tube as a shape, its radius changed by `extra_mm`."""
        return Shape(
            self.lo - extra_mm,
            self.hi + extra_mm,
            lambda view: self.trace(view).field - np.float32(extra_mm),
        )


class Bundle:
    """Many thin tubes as one cloud of samples along their axes."""

    step_mm = 1.5

    def __init__(self, tubes: list[Tube]):
        """Samples the axes of the tubes."""
        points, radii = [], []
        for tube in tubes:
            span = np.linalg.norm(np.diff(tube.path, axis=0), axis=1).sum()
            stops = np.linspace(0, len(tube.path) - 1, int(span / self.step_mm) + 2)
            index = np.arange(len(tube.path))
            points.append(
                np.stack([np.interp(stops, index, tube.path[:, axis]) for axis in range(3)], 1)
            )
            radii.append(np.interp(stops, index, tube.radii))
        self._tree = spatial.KDTree(np.concatenate(points))
        self._radii = np.append(np.concatenate(radii), 0).astype(np.float32)
        self.lo = np.min([tube.lo for tube in tubes], axis=0)
        self.hi = np.max([tube.hi for tube in tubes], axis=0)

    def nearest(self, points: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """Distance [n] to the nearest tube's surface and its radius, for points [n, 3]."""
        limit = float(self._radii.max()) + reach_mm
        distance, index = self._tree.query(points, distance_upper_bound=limit)
        radius = self._radii[index]
        return np.minimum(distance, limit).astype(np.float32) - radius, radius
