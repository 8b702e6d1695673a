"""Draws the vessels of a phantom patient: aorta and branches, cava, portal system, liver trees."""

import functools

import numpy as np

from maxquery_jax.data.datasets.phantom.canvas import Canvas
from maxquery_jax.data.datasets.phantom.shapes import Bundle, Tube
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID

PORTAL_ID = ORGAN_ID['portal_vein_and_splenic_vein']


def paint_great_vessels(canvas: Canvas) -> None:
    """Draws renal and iliac vessels, the cava and the aorta with its front branches."""
    for side in ('right', 'left'):
        _paint(canvas, f'{side}_iliac_vein', 'iliac_vein')
        _paint(canvas, f'{side}_iliac_artery', 'artery')
        _paint(canvas, f'{side}_renal_vein', 'vena_cava')
        _paint(canvas, f'{side}_renal_artery', 'artery')
    _paint(canvas, 'postcava', 'vena_cava', ORGAN_ID['postcava'], 'postcava')
    _paint(canvas, 'aorta', 'artery', ORGAN_ID['aorta'], 'aorta')
    _paint(canvas, 'superior_mesenteric_artery', 'artery')
    points, radii = canvas.patient.tubes['aorta']
    plaque = canvas.patient.stream('plaque')
    for _ in range(plaque.integers(0, 5)):  # calcified atheroma
        n = plaque.integers(2, len(points))
        turn = plaque.uniform(0, 2 * np.pi)
        spot = points[n] + radii[n] * np.array([np.cos(turn), np.sin(turn), 0])
        end = spot + (0, 0, plaque.uniform(3, 9))
        canvas.paint_tube(Tube([spot, end], 1.4), 'cortical_bone', ORGAN_ID['aorta'], keep='aorta')


def paint_portal_system(canvas: Canvas) -> None:
    """Draws the portal, splenic and mesenteric veins and the coeliac trunk with its branches."""
    _paint(canvas, 'superior_mesenteric_vein', 'mesenteric_vein')
    _paint(canvas, 'splenic_artery', 'artery')
    _paint(canvas, 'hepatic_artery', 'artery')
    _paint(canvas, 'splenic_vein', 'portal_vein', PORTAL_ID, 'portal_vein_and_splenic_vein')
    _paint(canvas, 'portal_vein', 'portal_vein', PORTAL_ID, 'portal_vein_and_splenic_vein')
    _paint(canvas, 'celiac_trunk', 'artery', ORGAN_ID['celiac_trunk'], 'celiac_trunk')


def _paint(canvas, name, tissue, organ=0, keep=None) -> None:
    points, radii = canvas.patient.tubes[name]
    canvas.paint_tube(Tube(points, radii), tissue, organ, keep)


def paint_hepatic_vessels(canvas: Canvas) -> None:
    """Draws the hepatic vein and portal vein trees inside the liver."""
    if canvas.box((-100, -90, -100), (140, 120, 110)) is None:
        return
    organ = ORGAN_ID['hepatic_vessel']
    liver = canvas.kept['liver'].copy()
    canvas.paint_bundle(_portal_tree(canvas.patient), liver, 'portal_vein', organ, 'hepatic_vessel')
    canvas.paint_bundle(_vein_tree(canvas.patient), liver, 'hepatic_vein', organ, 'hepatic_vessel')


@functools.lru_cache(maxsize=2)
def _portal_tree(patient) -> Bundle:
    """Right and left portal branches from the end of the portal vein."""
    rng = patient.stream('portal tree')
    hilum = patient.tubes['portal_vein'][0][-1]
    fork = hilum + (8, -2, 4)
    stems = (
        ([fork, [62, 26, 36], [82, 30, 34]], [6.0, 5.2, 4.4]),
        ([hilum, [14, 46, 34], [-2, 62, 36], [-4, 72, 22]], [5.2, 4.6, 4.2, 3.6]),
    )
    tubes = [Tube([hilum, fork], 6.0)]
    for points, radii in stems:
        points = np.asarray(points, float)
        points[1:] += rng.normal(0, 3, (len(points) - 1, 3))
        tubes.append(Tube(points, radii))
    right, left = tubes[1], tubes[2]
    for way in ([34, 30, 26], [36, 22, -30], [22, -52, 12], [20, -44, -34], [10, 36, 44]):
        tubes += _branch(rng, right.path[-1] + rng.normal(0, 3, 3), way, 3.8, 3)
    for way in ([-34, 10, 14], [-42, 4, -10], [12, 20, -18], [-16, 22, 30]):
        tubes += _branch(rng, left.path[-2], way, 3.0, 2)
    return Bundle(tubes)


@functools.lru_cache(maxsize=2)
def _vein_tree(patient) -> Bundle:
    """Right, middle and left hepatic veins, draining into the cava below the diaphragm."""
    rng = patient.stream('hepatic veins')
    mouth = np.array([25.0, 18, 76])
    tubes = []
    for points, radii in (
        ([mouth, [58, 4, 66], [90, -2, 40], [104, 4, 2]], [6, 5, 3.8, 2.2]),
        ([mouth, [38, 44, 64], [48, 66, 36], [56, 80, 4]], [5.5, 4.8, 3.6, 2.0]),
        ([mouth, [2, 42, 66], [-20, 62, 54], [-38, 76, 38]], [5, 4.2, 3, 1.8]),
    ):
        points = np.asarray(points, float)
        points[1:] += rng.normal(0, 5, (len(points) - 1, 3))
        stem = Tube(points, radii)
        tubes.append(stem)
        for n in range(2, len(stem.path) - 1, 2):
            along = stem.path[n + 1] - stem.path[n]
            way = along / np.linalg.norm(along) * 22 + rng.normal(0, 18, 3)
            tubes += _branch(rng, stem.path[n], way, stem.radii[n] * 0.65, 2)
    return Bundle(tubes)


def _branch(rng: np.random.Generator, start, way, radius: float, depth: int) -> list[Tube]:
    """A branch and its children; each generation is shorter and thinner."""
    start, way = np.asarray(start, float), np.asarray(way, float)
    end = start + way
    bend = start + way / 2 + rng.normal(0, 0.1, 3) * np.linalg.norm(way)
    tubes = [Tube([start, bend, end], [radius, radius * 0.85, radius * 0.65], 14)]
    if depth > 1 and radius > 1.2:
        for _ in range(2):
            child = way * 0.72 + rng.normal(0, 0.42, 3) * np.linalg.norm(way)
            tubes += _branch(rng, end, child, radius * 0.65, depth - 1)
    return tubes
