"""Smooth random fields and small geometry helpers of the phantom; numpy and scipy only.

Everything is evaluated point by point from lattices and control points in millimetres, so the same
patient can be drawn on any voxel grid.
"""

import numpy as np
from scipy import ndimage

BSPLINE_GAIN = 3.0  # a cubic B-spline averages white noise; this restores about unit variance


class Lattice:
    """A smooth random field of zero mean and about unit variance, defined everywhere.

    Cubic B-spline over a periodic lattice of normal deviates; features are about 2.5 steps wide.
    """

    def __init__(self, rng: np.random.Generator, step_mm: float, size: int = 32):
        """Draws the lattice.

        Args:
            rng: source of the deviates.
            step_mm: lattice step.
            size: lattice points per axis; the field repeats after `size * step_mm`.
        """
        self.step_mm = step_mm
        self.values = rng.standard_normal((size, size, size), dtype=np.float32) * BSPLINE_GAIN

    def on_grid(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Evaluates the field on the grid spanned by three coordinate vectors in mm.

        Separable, four taps an axis; no BLAS, so the bits do not depend on its threads.

        Returns:
            [len(z), len(y), len(x)] float32.
        """
        out = self.values
        for axis, coordinate in ((2, x), (1, y), (0, z)):
            index, weights = _spline_taps(np.asarray(coordinate) / self.step_mm, out.shape[axis])
            shape = [1, 1, 1]
            shape[axis] = -1
            terms = (
                np.take(out, index[tap], axis=axis) * weights[tap].reshape(shape)
                for tap in range(4)
            )
            total = next(terms)
            for term in terms:
                total += term
            out = total
        return out

    def at_points(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Evaluates the field at arbitrary points in mm; equals `on_grid` where both apply."""
        points = np.stack([z, y, x]) / np.float32(self.step_mm)
        return ndimage.map_coordinates(
            self.values, points, order=3, mode='grid-wrap', prefilter=False
        )


def _spline_taps(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [4, n] and cubic B-spline weights [4, n] float32 of a periodic axis."""
    base = np.floor(position)
    t = position - base
    weights = np.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ]
    ).astype(np.float32)
    index = (base.astype(np.int64) + np.arange(-1, 3)[:, None]) % size
    return index, weights


class HeightMap:
    """A surface z(x, y) through scattered control points (thin-plate spline, tabulated).

    Attributes:
        step_mm: table step.
    """

    step_mm = 6.0
    reach_mm = 180.0

    def __init__(self, points_xyz: np.ndarray):
        """Fits the surface to [n, 3] points (x, y, z) in mm."""
        from scipy import interpolate  # half a second that every command would wait otherwise

        axis = np.arange(-self.reach_mm, self.reach_mm + self.step_mm, self.step_mm)
        spline = interpolate.RBFInterpolator(
            points_xyz[:, :2], points_xyz[:, 2], kernel='thin_plate_spline', smoothing=20.0
        )
        yy, xx = np.meshgrid(axis, axis, indexing='ij')
        z = spline(np.stack([xx.ravel(), yy.ravel()], 1)).reshape(xx.shape)
        z = np.round(z, 3)  # the solver's last bits may depend on threads
        slope = np.gradient(z, self.step_mm)
        self._z = z.astype(np.float32)
        self._slant = np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2).astype(np.float32)

    def height(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Height in mm at the points."""
        return self._look_up(self._z, y, x)

    def above(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Approximate signed distance in mm, positive above the surface."""
        return (z - self._look_up(self._z, y, x)) / self._look_up(self._slant, y, x)

    def _look_up(self, table: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        points = (np.stack([y, x]) + np.float32(self.reach_mm)) / np.float32(self.step_mm)
        return ndimage.map_coordinates(table, points, order=1, mode='nearest')


def smooth_max(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Maximum of two fields with a rounded edge of about `blend_mm` (intersection of shapes)."""
    gap = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.maximum(a, b) + gap * gap * np.float32(0.25 / blend_mm)


def smooth_min(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Minimum of two fields with a filled corner (union of shapes)."""
    return -smooth_max(-a, -b, blend_mm)


def curve(points: np.ndarray, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Resamples control points to a smooth curve (Catmull-Rom) with about equal steps.

    Args:
        points: [n, 3] control points in mm.
        step_mm: wanted distance of neighbouring samples.

    Returns:
        [m, 3] points and [m] position in 0..1 along the control points (index / (n - 1)).
    """
    points = np.asarray(points, float)
    pieces = len(points) - 1
    if pieces == 1:
        count = max(int(np.ceil(np.linalg.norm(points[1] - points[0]) / step_mm)), 1) + 1
        position = np.linspace(0, 1, count)
        return points[0] + position[:, None] * (points[1] - points[0]), position
    t = np.linspace(0, 1, 11)[:-1, None]
    tangent = np.gradient(points, axis=0)
    a, b, ta, tb = points[:-1], points[1:], tangent[:-1], tangent[1:]
    rise, bend = 3 * t**2 - 2 * t**3, t**3 - t**2
    path = (
        a[:, None] * (1 - rise) + b[:, None] * rise
        + ta[:, None] * (bend - t**2 + t) + tb[:, None] * bend
    ).reshape(-1, 3)  # fmt: skip
    path = np.concatenate([path, points[-1:]])
    fine = np.linspace(0, 1, len(path))
    steps = np.sqrt((np.diff(path, axis=0) ** 2).sum(1))
    length = np.concatenate([[0], np.cumsum(steps)])
    count = max(int(np.ceil(length[-1] / step_mm)) + 1, 2)
    position = np.interp(np.linspace(0, length[-1], count), length, fine)
    return np.stack([np.interp(position, fine, path[:, axis]) for axis in range(3)], 1), position


def rotation(degrees_xyz: tuple[float, ...]) -> np.ndarray:
    """Rotation matrix [3, 3] of extrinsic turns about the x, y and z axes."""
    ax, ay, az = np.deg2rad(degrees_xyz)
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
