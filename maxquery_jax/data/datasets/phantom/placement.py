"""Where the tumours of a phantom patient lie: inside their host organ and the field of view."""

import dataclasses

import numpy as np
from scipy import ndimage

from maxquery_jax.data.datasets.phantom import organs
from maxquery_jax.data.datasets.phantom.canvas import Canvas, Grid, Motion
from maxquery_jax.data.datasets.phantom.lesions import Lesion, draw_lesion
from maxquery_jax.data.datasets.phantom.patient import Patient
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID, PARENT
from maxquery_jax.data.datasets.phantom.tumour_types import TumourType
from maxquery_jax.data.datasets.phantom.tumours import TYPES
from maxquery_jax.errors import UserError

# Nominal bounds (x, y, z) of each possible host and the step in mm at which it is searched.
HOST_BOUNDS = {
    'liver': ((-112, -98, -125), (146, 125, 118), 6.0),
    'pancreas': ((-112, -45, -85), (80, 90, 72), 3.5),
    'spleen': ((-150, -100, -60), (-35, 50, 105), 5.0),
    'right_kidney': ((12, -90, -118), (125, 25, 42), 4.0),
    'left_kidney': ((-128, -90, -104), (-15, 25, 60), 4.0),
    'gall_bladder': ((20, 25, -85), (100, 118, 25), 4.0),
    'esophagus': ((-70, -60, 40), (20, 40, 248), 4.0),
    'stomach': ((-115, -50, -70), (60, 120, 112), 5.0),
    'aorta': ((-45, -60, -106), (20, 45, 252), 3.5),
    'postcava': ((-12, -12, -112), (52, 52, 114), 3.5),
    'portal_vein_and_splenic_vein': ((-112, -48, -34), (62, 62, 62), 3.0),
    'right_adrenal_gland': ((8, -50, -5), (62, 22, 60), 3.0),
    'left_adrenal_gland': ((-68, -48, -12), (-10, 26, 52), 3.0),
    'duodenum': ((-62, -5, -98), (88, 90, 40), 4.0),
    'right_lung': ((-8, -115, -35), (145, 128, 295), 6.0),
    'left_lung': ((-145, -115, -35), (6, 128, 295), 6.0),
    'colon': ((-148, -75, -230), (142, 132, 50), 5.0),
    'intestine': ((-112, -10, -262), (98, 122, -18), 5.0),
    'rectum': ((-38, -104, -332), (38, -8, -188), 4.0),
}


class HostNotVisibleError(UserError):
    """The organ of a tumour is outside the field of view."""


MIN_RADIUS_MM = 4.2  # about 300 mm3
MIN_RADIUS_VOXELS = 1.3
HEAD_X = 12.0  # the pancreas head lies right of this nominal x
HOST_SEARCH_PAD_MM = 10.0


@dataclasses.dataclass(frozen=True)
class HostVoxels:
    """Voxels of a host organ in the field of view.

    Attributes:
        points: [n, 3] nominal (x, y, z).
        depth: [n] distance in mm to the organ's surface.
        edge: [n] distance in mm to the border of the field of view.
        seats: [n] whether the centre of the tumour may lie there.
    """

    points: np.ndarray
    depth: np.ndarray
    edge: np.ndarray
    seats: np.ndarray


def plan_lesions(
    patient: Patient, grid: Grid, names: tuple[str, ...]
) -> tuple[Patient, list[Lesion]]:
    """Places tumours of the named types.

    Args:
        patient: the healthy patient.
        grid: field of view; every centre lies in it.
        names: tumour types in `tumours.TYPES`, one entry per group of tumours.

    Returns:
        The patient with the tumours' effects (dilated ducts, atrophy) and the lesions.

    Raises:
        UserError: for an unknown type.
        HostNotVisibleError: if no host organ is in the field of view.
    """
    lesions: list[Lesion] = []
    for turn, name in enumerate(names):
        if name not in TYPES:
            raise UserError(f'unknown phantom tumour type {name!r}; known: {", ".join(TYPES)}')
        kind = TYPES[name]
        rng = patient.stream(f'lesions/{turn}/{name}')
        host, site = _find_host(patient, grid, kind, rng)
        count = int(rng.integers(kind.count[0], kind.count[1] + 1))
        largest = _draw_radius(rng, kind, grid)
        for n in range(count):
            radius = largest if n == 0 else max(largest * rng.uniform(0.4, 0.9), _floor(grid))
            radius = min(radius, 1.25 * site.depth.max() * (1 + kind.bulge) + 2)
            radius = max(radius, _floor(grid))
            centre = _place(rng, patient, kind, radius, site, lesions)
            if centre is None:
                break  # no room for another one
            lesions.append(draw_lesion(rng, name, kind, host, centre, radius))
        patient = _affected(patient, kind, lesions)
    return patient, lesions


def _floor(grid: Grid) -> float:
    voxel = float(np.prod(grid.spacing_mm)) ** (1 / 3)
    return max(MIN_RADIUS_MM, MIN_RADIUS_VOXELS * voxel)


def _draw_radius(rng, kind: TumourType, grid: Grid) -> float:
    low, high = np.log(np.asarray(kind.diameter_mm) / 2)
    return max(float(np.exp(rng.uniform(low, high))), _floor(grid))


def _search_grid(patient: Patient, grid: Grid, host: str) -> Grid | None:
    """A coarse grid over the part of the host's bounds that is in the field of view."""
    lo, hi, step = HOST_BOUNDS[host]
    axes = []
    for axis, view in enumerate((grid.x, grid.y, grid.z)):
        scale = patient.scale_xyz[axis]
        start = max(lo[axis] * scale - HOST_SEARCH_PAD_MM, view[0])
        stop = min(hi[axis] * scale + HOST_SEARCH_PAD_MM, view[-1])
        if stop - start < 2 * step:
            return None
        axes.append(np.arange(start, stop, step))
    x, y, z = axes
    return Grid(z, y, x, (step, step, step))


def _find_host(patient, grid, kind, rng) -> tuple[str, HostVoxels]:
    """Chooses a visible host."""
    order = rng.permutation(len(kind.host))
    for host in (kind.host[n] for n in order):
        search = _search_grid(patient, grid, host)
        if search is None:
            continue
        canvas = Canvas(search, patient, 3.0, Motion(), keep=('liver', 'rigid'))
        organs.paint_patient(canvas, outline=True)
        ids = [ORGAN_ID[host], *(ORGAN_ID[c] for c, parent in PARENT.items() if parent == host)]
        mask = np.isin(canvas.organs, ids)
        if mask.sum() < 8:
            continue
        padded = np.pad(mask, 1, mode='edge')  # the edge of the search is not the organ's border
        depth = np.asarray(ndimage.distance_transform_edt(padded, sampling=search.spacing_mm))
        depth = depth[1:-1, 1:-1, 1:-1]
        seats = canvas.organs == ORGAN_ID[kind.seat] if kind.seat else mask
        edges = (
            np.minimum(own - view[0], view[-1] - own)
            for own, view in zip((search.z, search.y, search.x), (grid.z, grid.y, grid.x),
                                 strict=True)
        )  # fmt: skip
        z, y, x = np.ix_(*edges)
        return host, HostVoxels(
            points=np.stack([axis[mask] for axis in canvas.xyz], 1),
            depth=depth[mask],
            edge=np.minimum(np.minimum(z, y), x)[mask],
            seats=seats[mask],
        )
    raise HostNotVisibleError(
        f'no {" or ".join(kind.host)} in the phantom field of view; use a larger shape_zyx, a '
        'coarser spacing_mm or another region'
    )


def _place(rng, patient, kind, radius, site: HostVoxels, others) -> np.ndarray | None:
    """Centre for a tumour among the host's voxels, or None if there is no room."""
    if kind.site in ('ampulla', 'bile_duct'):
        return _duct_site(rng, patient, kind.site)
    points, depth = site.points, site.depth
    if kind.seat:
        good = site.seats
    elif kind.site == 'wall':
        good = depth <= depth.min() * 1.05
    else:
        good = depth >= min(0.55 * radius, 0.75 * depth.max())
    for other in others:
        gap = np.linalg.norm(points - other.centre, axis=1)
        good = good & (gap > 1.1 * (radius + other.radius) + 4)
    for wish in (site.edge >= 0.8 * radius, _preferred_side(rng, kind.site, points)):
        if (good & wish).any():
            good = good & wish
    if not good.any():
        return points[int(depth.argmax())].astype(float) if not others else None
    return points[np.flatnonzero(good)[rng.integers(good.sum())]].astype(float)


def _preferred_side(rng, site: str, points) -> np.ndarray:
    in_head = points[:, 0] > HEAD_X
    if site == 'head_mostly':
        return in_head if rng.random() < 0.65 else ~in_head
    if site == 'body_tail':
        return ~in_head
    return np.ones(len(points), bool)


def _duct_site(rng, patient: Patient, site: str) -> np.ndarray:
    """A point at the end of the bile duct (ampulla) or on its lower half."""
    points = patient.tubes['bile_duct'][0]
    if site == 'ampulla':
        return points[-1] + rng.normal(0, 2, 3)
    share = rng.uniform(0.2, 0.9)
    return points[-2] + share * (points[-3] - points[-2]) * 0.6 + rng.normal(0, 1.5, 3)


def _affected(patient: Patient, kind: TumourType, lesions: list[Lesion]) -> Patient:
    """The patient with dilated ducts and atrophy upstream of the last lesion."""
    if not (kind.duct_mm or kind.bile_duct_mm or kind.atrophy < 1) or not lesions:
        return patient
    centre = lesions[-1].centre
    tube = organs.pancreas_tube(patient)
    nearest = int(np.linalg.norm(tube.path - centre, axis=1).argmin())
    start = 0.0 if kind.site in ('ampulla', 'bile_duct') else float(tube.position[nearest])
    return dataclasses.replace(
        patient,
        duct_mm=kind.duct_mm,
        duct_from=start,
        bile_duct_mm=max(kind.bile_duct_mm * (centre[0] > HEAD_X), patient.bile_duct_mm),
        atrophy=min(kind.atrophy, patient.atrophy),
    )
