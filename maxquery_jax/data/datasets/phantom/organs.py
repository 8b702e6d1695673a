"""Draws the solid organs of a phantom patient, from back to front of the painter's order."""

import numpy as np

from maxquery_jax.data.datasets.phantom import body, bowel, vessels
from maxquery_jax.data.datasets.phantom.canvas import Canvas, View
from maxquery_jax.data.datasets.phantom.fields import smooth_max
from maxquery_jax.data.datasets.phantom.shapes import Shape, Tube, ellipsoid
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID


def paint_patient(canvas: Canvas, outline: bool = False) -> None:
    """Draws the whole patient and the bed; later structures lie over earlier ones.

    Args:
        canvas: to draw on.
        outline: leaves out bones and the vessels of the lungs, for a search in the organ map.
    """
    wall = body.paint_trunk(canvas)
    diaphragm = body.diaphragm_distance(canvas)
    body.paint_chest(canvas, wall, diaphragm, outline)
    bowel.paint_intestine(canvas, wall)
    bowel.paint_colon(canvas)
    _paint_spleen(canvas, wall, diaphragm)
    _paint_liver(canvas, wall, diaphragm)
    _paint_perirenal_fat(canvas)
    body.paint_muscles(canvas)
    if not outline:
        body.paint_skeleton(canvas)
    _paint_kidneys(canvas)
    _paint_adrenals(canvas)
    _paint_pelvic_organs(canvas)
    vessels.paint_great_vessels(canvas)
    bowel.paint_stomach(canvas, wall, diaphragm, pancreas_tube(canvas.patient))
    bowel.paint_duodenum(canvas)
    _paint_pancreas(canvas)
    _paint_gall_bladder(canvas)
    vessels.paint_portal_system(canvas)
    body.paint_bed(canvas)


def wobbly(canvas: Canvas, shape: Shape, name: str, coarse_mm: float, fine_mm: float) -> Shape:
    """The shape with the individual boundary deformation of structure `name`."""
    weights = canvas.patient.wobble(name, coarse_mm, fine_mm)
    reach = 2 * (coarse_mm + fine_mm)
    return Shape(
        shape.lo - reach, shape.hi + reach, lambda view: shape.field(view) + view.wobble(weights)
    )


def _paint_spleen(canvas: Canvas, wall: np.ndarray, diaphragm: np.ndarray) -> None:
    shape = ellipsoid(*canvas.patient.ellipsoids['spleen'])
    hilum = ellipsoid(*canvas.patient.ellipsoids['spleen_hilum'])

    def limits(view: View) -> np.ndarray:
        inner = smooth_max(wall[view.box] + 4, -hilum.field(view), 8)
        return smooth_max(inner, diaphragm[view.box] + 3, 8)

    shape = wobbly(canvas, shape.cut(limits, 8), 'spleen', 1.8, 0.8)
    box = canvas.box(shape.lo, shape.hi)
    if box is None:
        return
    value = canvas.shade('spleen', box)
    value += canvas.patches[box] * np.float32(canvas.tissue['spleen_mottle'][0])
    canvas.blend(box, shape.field(View(canvas, box)), value, ORGAN_ID['spleen'], 'spleen')


def _paint_liver(canvas: Canvas, wall: np.ndarray, diaphragm: np.ndarray) -> None:
    patient = canvas.patient
    weights = patient.wobble('liver', 2.5, 0.9)

    def field(view: View) -> np.ndarray:
        floor = -patient.liver_floor.above(view.z, view.y, view.x)
        dome = diaphragm[view.box] + 1.5
        return smooth_max(
            smooth_max(wall[view.box] + 3.5, dome, 6), floor + view.wobble(weights), 14
        )

    liver = Shape(np.array([-112.0, -98, -125]), np.array([146.0, 125, 118]), field)
    canvas.paint(liver, 'liver', ORGAN_ID['liver'], keep='liver')
    fissure = Tube([[4, 88, -22], [0, 72, 2], [-2, 50, 24]], [5, 4, 2.5])
    canvas.paint_tube(fissure, 'visceral_fat')
    vessels.paint_hepatic_vessels(canvas)


def _kidney(canvas: Canvas, side: str) -> Shape:
    shape = ellipsoid(*canvas.patient.ellipsoids[f'{side}_kidney'])
    return wobbly(canvas, shape, f'{side}_kidney', 1.5, 0.9)


def _paint_perirenal_fat(canvas: Canvas) -> None:
    for side in ('right', 'left'):
        canvas.paint(_kidney(canvas, side).grown(6), 'visceral_fat')


def _paint_kidneys(canvas: Canvas) -> None:
    for side in ('right', 'left'):
        name = f'{side}_kidney'
        organ = ORGAN_ID[name]
        shape = _kidney(canvas, side)
        centre, radii, turns = canvas.patient.ellipsoids[name]
        medial = np.array([-1.0 if side == 'right' else 1.0, 0.45, 0.0])
        canvas.paint(shape, 'renal_cortex', organ, keep=name)

        def columns(view: View, z0=centre[2], r=radii[2]) -> np.ndarray:
            return 4 * np.cos((view.z - np.float32(z0)) * np.float32(2 * np.pi * 2.2 / r)) - 2.2

        canvas.paint(shape.grown(-6).cut(columns, 2), 'renal_medulla', organ, keep=name)
        sinus = ellipsoid(centre + medial * 9, radii * (0.42, 0.46, 0.52), turns)
        canvas.paint(sinus, 'renal_sinus_fat')
        for rise in (-0.32, 0.0, 0.32):
            calyx = ellipsoid(centre + medial * 4 + (0, 0, rise * radii[2]), (6, 4, 5), turns)
            canvas.paint(calyx, 'renal_pelvis')
        pelvis = Tube(
            [centre + medial * 6, centre + medial * 20, centre + medial * 30 + (0, 4, -26)],
            [5.5, 5.5, 2.2],
        )
        canvas.paint_tube(pelvis, 'renal_pelvis')


def _paint_adrenals(canvas: Canvas) -> None:
    for side, apex in (('right', (31, -2, 34)), ('left', (-38, 2, 26))):
        name = f'{side}_adrenal_gland'
        rng = canvas.patient.stream(name)
        top = np.asarray(apex, float) + rng.normal(0, 2.5, 3)
        out = 1 if side == 'right' else -1
        thick = rng.uniform(3.6, 4.6)
        for limb in ((9 * out, -20, -20), (-3 * out, -22, -19), (1 * out, -5, -18)):
            tube = Tube([top, top + np.multiply(limb, 0.5) + (0, -2, 2), top + limb], thick, 6)
            canvas.paint_tube(tube, 'adrenal', ORGAN_ID[name], keep=name)


def _paint_pelvic_organs(canvas: Canvas) -> None:
    patient = canvas.patient
    bowel.paint_rectum(canvas)
    if patient.male:
        shape = wobbly(canvas, ellipsoid(*patient.ellipsoids['prostate']), 'prostate', 1, 0.6)
        canvas.paint(shape, 'prostate', ORGAN_ID['prostate'], keep='prostate')
    else:  # AMOS, one of ZePT's sources, labels the uterus in this class
        shape = wobbly(canvas, ellipsoid(*patient.ellipsoids['uterus']), 'prostate', 2, 1)
        canvas.paint(shape, 'prostate', ORGAN_ID['prostate'], keep='prostate')
    bladder = wobbly(canvas, ellipsoid(*patient.ellipsoids['bladder']), 'bladder', 2.5, 0.8)
    canvas.paint(bladder, 'bladder_wall', ORGAN_ID['bladder'], keep='bladder')
    canvas.paint(bladder.grown(-3), 'urine', ORGAN_ID['bladder'], keep='bladder')


def pancreas_tube(patient) -> Tube:
    """The pancreas of the patient, thinner where it has atrophied."""
    points, radii = patient.tubes['pancreas']
    return Tube(points, radii * patient.atrophy, 7, reach_mm=7)


def _paint_pancreas(canvas: Canvas) -> None:
    patient = canvas.patient
    tube = pancreas_tube(patient)
    lobules = wobbly(canvas, tube.shape(), 'pancreas', 1.0, 1.5)
    shape = Shape(
        lobules.lo,
        lobules.hi,
        lambda view: lobules.field(view) + canvas.grain[view.box] * np.float32(0.5),
    )
    canvas.paint(shape, 'pancreas', ORGAN_ID['pancreas'], keep='pancreas')
    start = int(np.searchsorted(tube.position, patient.duct_from))
    normal = Tube(tube.path[2:], 1.0, 10)
    canvas.paint_tube(normal, 'pancreatic_duct', ORGAN_ID['pancreas'], keep='pancreas')
    if patient.duct_mm and len(tube.path) - start > 2:
        taper = np.linspace(1, 0.55, len(tube.path) - start)
        duct = Tube(tube.path[start:], (1 + patient.duct_mm) * taper, 8)
        canvas.paint_tube(duct, 'pancreatic_duct', ORGAN_ID['pancreas'], keep='pancreas')
    points, radii = patient.tubes['bile_duct']
    canvas.paint_tube(Tube(points, radii + patient.bile_duct_mm), 'bile')


def _paint_gall_bladder(canvas: Canvas) -> None:
    shape = wobbly(
        canvas, ellipsoid(*canvas.patient.ellipsoids['gall_bladder']), 'gall_bladder', 1.2, 0.4
    )
    organ = ORGAN_ID['gall_bladder']
    canvas.paint(shape, 'gall_bladder_wall', organ, keep='gall_bladder')
    canvas.paint(shape.grown(-1.6), 'bile', organ, keep='gall_bladder')
