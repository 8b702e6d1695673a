"""Draws the trunk of a phantom patient: wall, lungs, heart, muscles and bones."""

import functools

import numpy as np

from maxquery_jax.data.datasets.phantom import atlas
from maxquery_jax.data.datasets.phantom.canvas import Canvas, View, coverage
from maxquery_jax.data.datasets.phantom.fields import smooth_max, smooth_min
from maxquery_jax.data.datasets.phantom.shapes import Bundle, Shape, Tube, ellipsoid
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID

SKIN_MM = 2.0
LUNG_GAP_MM = 2.0


def _level(canvas: Canvas, table: np.ndarray) -> np.ndarray:
    return np.interp(canvas.nominal_z, atlas.WALL_Z, table).astype(np.float32)


def wall_distance(canvas: Canvas) -> np.ndarray:
    """[D, H, W] distance in mm to the inner wall of the trunk, negative inside."""
    view = canvas.whole()
    y = view.y - _level(canvas, atlas.WALL_AXIS_Y)
    front, back = _level(canvas, atlas.WALL_FRONT), _level(canvas, atlas.WALL_BACK)
    u = view.x / _level(canvas, atlas.WALL_WIDTH)
    v = y * np.where(y > 0, 1 / front, 1 / back)
    u *= u
    v *= v
    # Between an ellipse and a rounded square, as trunks are.
    q = np.float32(0.6) * np.sqrt(u + v) + np.float32(0.4) * np.sqrt(np.sqrt(u * u + v * v))
    reach = np.sqrt(view.x * view.x + y * y)
    distance = reach * (1 - 1 / np.maximum(q, np.float32(0.05)))
    return distance + view.wobble(canvas.patient.wobble('wall', 1.5, 0.5))


def _wall_layer(canvas: Canvas, side, front, back) -> np.ndarray:
    """Thickness by direction from its lateral, anterior and posterior tables."""
    view = canvas.whole()
    y = view.y - _level(canvas, atlas.WALL_AXIS_Y)
    xx, yy = view.x * view.x, y * y
    lateral = xx / (xx + yy + 1)
    ends = np.where(y > 0, _level(canvas, front), _level(canvas, back))
    return ends + lateral * (_level(canvas, side) - ends)


def paint_trunk(canvas: Canvas) -> np.ndarray:
    """Draws skin, fat, muscle wall and the fat-filled cavity; returns `wall_distance`."""
    wall = wall_distance(canvas)
    box = canvas.whole().box
    muscle = wall - _wall_layer(canvas, atlas.MUSCLE_SIDE, atlas.MUSCLE_FRONT, atlas.MUSCLE_BACK)
    fat = np.float32(canvas.patient.fat_mm) * _wall_layer(
        canvas, atlas.FAT_SIDE, atlas.FAT_FRONT, atlas.FAT_BACK
    )
    skin = muscle - fat
    canvas.blend(box, skin - SKIN_MM, canvas.shade('skin', box))
    canvas.blend(box, skin, canvas.shade('fat', box))
    canvas.blend(box, muscle, _layered_muscle(canvas, wall))
    canvas.blend(box, wall, canvas.shade('visceral_fat', box))
    return wall


def _layered_muscle(canvas: Canvas, wall: np.ndarray) -> np.ndarray:
    """Muscle HU with fat planes where the wall is thick (buttocks, shoulders)."""
    box = canvas.whole().box
    value = canvas.shade('muscle', box)
    planes = np.cos((wall + 9 * canvas.noise[1]) * np.float32(0.2))
    share = np.clip((planes - 0.9) * 8, 0, 0.9) * (wall > 26)
    return value + share * (canvas.tissue['fat'][0] - value)


def paint_bed(canvas: Canvas) -> None:
    """Draws the curved table top that the patient lies on."""
    grid = canvas.grid
    back = atlas.WALL_BACK.max() + atlas.MUSCLE_BACK.min() + canvas.patient.fat_mm * 0.9 + 6
    top = -back * canvas.patient.scale_xyz[1]
    y, x = np.meshgrid(grid.y, grid.x, indexing='ij')
    radius = 620.0
    depth = np.hypot(x, y - (top + radius)) - radius  # 0 on the surface, positive below
    shell = np.minimum(np.abs(depth - 1.5) - 1.5, np.abs(depth - 32) - 1.2)
    shell = np.maximum(shell, np.abs(x) - 230).astype(np.float32)
    pixel = np.float32(max(grid.spacing_mm[1:]))
    cover = np.clip(0.5 - shell / pixel, 0, min(1.0, 3 / float(pixel)))
    inside = coverage(np.maximum(np.abs(depth - 16) - 16, np.abs(x) - 228).astype(np.float32)[None])
    plane = -1000 + inside[0] * 45 + cover * 850
    air = canvas.hu < -990
    canvas.hu[air] = np.broadcast_to(plane.astype(np.float32), canvas.hu.shape)[air]


def diaphragm_distance(canvas: Canvas) -> np.ndarray:
    """[D, H, W] distance in mm above the diaphragm, negative in the abdomen."""
    out = np.full(canvas.grid.shape, -100, np.float32)  # far below it the value is not needed
    box = canvas.box((-400, -400, -60), (400, 400, 400))
    if box is not None:
        view = View(canvas, box)
        out[box] = canvas.patient.diaphragm.above(view.z, view.y, view.x)
    return out


def paint_chest(canvas: Canvas, wall: np.ndarray, diaphragm: np.ndarray, outline: bool) -> None:
    """Draws lungs with vessels, the mediastinum and the heart; `outline` leaves out vessels."""
    box = canvas.box((-200, -200, -60), (200, 200, 400))
    if box is None:
        return
    view = View(canvas, box)
    above = diaphragm[box]
    lung = smooth_max(wall[box] + LUNG_GAP_MM, 1.5 - above, 5)
    middle = np.abs(view.x + 4) - (13 + 0.10 * np.maximum(view.y, 0))  # mediastinum half width
    middle += np.maximum(view.z - 150, 0) * np.float32(-0.12)
    heart_at = canvas.patient.ellipsoids['heart']
    heart = ellipsoid(*heart_at).grown(5)
    middle = smooth_min(middle, heart.field(view), 12)
    lung = smooth_max(lung, -middle, 5)
    name = 'lung'
    cover = coverage(lung)
    canvas.blend_cover(box, cover, canvas.shade(name, box))
    inside = lung < 0
    right = view.x > -4
    organs = canvas.organs[box]
    for side, where in (('right_lung', right), ('left_lung', ~right)):
        organs[inside & where] = ORGAN_ID[side]
        if side in canvas.kept:
            canvas.kept[side][box] = np.maximum(canvas.kept[side][box], cover * where)
    if not outline:
        lungs = canvas.organs == ORGAN_ID['right_lung']
        lungs |= canvas.organs == ORGAN_ID['left_lung']
        canvas.paint_bundle(_lung_tree(canvas.patient), lungs, 'mesenteric_vein')
    muscle = np.maximum(np.abs(above) - 1.3, wall[box])
    canvas.blend_cover(box, coverage(muscle), canvas.shade('muscle', box))
    _paint_heart(canvas, diaphragm)


@functools.lru_cache(maxsize=2)
def _lung_tree(patient) -> Bundle:
    """Fans of vessels from both hila."""
    rng = patient.stream('lung vessels')
    tubes = []
    for side in (1, -1):
        hilum = np.array([28 * side - 4, -8, 138.0])
        for _ in range(14):
            way = rng.normal(0, 1, 3) * (0.6, 1, 1)
            way[0] = side * (0.4 + abs(way[0]))
            way[2] -= 0.5
            way *= rng.uniform(55, 105) / np.linalg.norm(way)
            bend = hilum + way * 0.5 + rng.normal(0, 8, 3)
            tubes.append(Tube([hilum, bend, hilum + way], [4.5, 2.4, 1.0], 16))
            for _ in range(2):
                end = bend + way * 0.4 + rng.normal(0, 18, 3)
                tubes.append(Tube([bend, end], [2.0, 0.8], 20))
    return Bundle(tubes)


def _paint_heart(canvas: Canvas, diaphragm: np.ndarray) -> None:
    centre, radii, turns = canvas.patient.ellipsoids['heart']

    def below(view: View) -> np.ndarray:
        return 3 - diaphragm[view.box]

    canvas.paint(ellipsoid(centre, radii, turns).cut(below), 'myocardium')
    for offset, share in (((-14, -2, -2), 0.44), ((22, 12, 2), 0.46), ((10, -18, 14), 0.42)):
        chamber = ellipsoid(np.add(centre, offset), np.multiply(radii, share), turns)
        canvas.paint(chamber.cut(below), 'heart_blood')


def _mirrored(points) -> np.ndarray:
    return np.asarray(points, float) * (-1, 1, 1)


def paint_muscles(canvas: Canvas) -> None:
    """Draws the muscles beside the spine on both sides."""
    for name, (points, radii) in atlas.MUSCLES.items():
        for side in (np.asarray(points, float), _mirrored(points)):
            tube = Tube(
                side, np.asarray(radii) * (1.1 if canvas.patient.male else 0.95), 12, reach_mm=9
            )
            box = canvas.box(tube.lo, tube.hi)
            if box is None:
                continue
            view = View(canvas, box)
            weights = canvas.patient.wobble(f'{name}/{side[0, 0] > 0}', 2.5, 0.8)
            field = tube.trace(view).field + view.wobble(weights)
            if name != 'crus':
                canvas.blend(box, field - 1.5, canvas.shade('fat', box))
            canvas.blend(box, field, canvas.shade('muscle', box))


def paint_skeleton(canvas: Canvas) -> None:
    """Draws ribs, spine, pelvis and femora."""
    _paint_ribs(canvas)
    _paint_spine(canvas)
    _paint_pelvis(canvas)


def _paint_ribs(canvas: Canvas) -> None:
    jitter = canvas.patient.stream('ribs').normal(0, 2, len(atlas.RIB_LEVELS))
    for (count, level), shift in zip(atlas.RIB_LEVELS, jitter, strict=True):
        last = {11: 95, 10: 118}.get(count, 150)  # degrees from the back; floating ribs are short
        for side in (1, -1):
            points, radii = _rib_path(level + shift, last, side)
            bone = points[:, 3] <= 112
            _paint_long_bone(canvas, Tube(points[bone, :3], radii[bone], 18), 2.4)
            if (~bone).sum() > 1:
                canvas.paint_tube(Tube(points[~bone, :3], radii[~bone], 14), 'cartilage')
    if canvas.box((-20, 60, 60), (20, 140, 260)) is not None:
        path = [[0, 119, 72], [0, 117, 96], [0, 107, 150], [0, 96, 195]]
        canvas.paint_tube(Tube(path, [6, 8, 9, 10], 12), 'cartilage')
        canvas.paint_tube(Tube(path[1:], [6, 7, 8], 12), 'cancellous_bone')


def _rib_path(level: float, last: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Control points of a rib with its angle from the back, [n, 4], and radii."""
    angle = np.arange(10, last + 1, 14.0)
    turn = np.deg2rad(angle)
    z = level + 4 - 62 * (np.minimum(angle, 125) / 125) ** 1.3
    z = z + np.maximum(angle - 118, 0) * 0.75  # the cartilage climbs to the sternum
    width = np.interp(z, atlas.WALL_Z, atlas.WALL_WIDTH) + 6
    depth = np.where(
        angle < 90,
        np.interp(z, atlas.WALL_Z, atlas.WALL_BACK),
        np.interp(z, atlas.WALL_Z, atlas.WALL_FRONT),
    )
    y = np.interp(z, atlas.WALL_Z, atlas.WALL_AXIS_Y) - (depth + 6) * np.cos(turn)
    squash = (np.abs(np.sin(turn)) ** 4 + np.abs(np.cos(turn)) ** 4) ** -0.1  # rounded square
    points = np.stack([side * width * np.sin(turn) * squash, y, z, angle], 1)
    return points, np.full(len(angle), 5.2)


def _spine_fields(view: View):
    """Vertebral body field, canal field and share of the disc (1 in its middle)."""
    z = view.z
    centre_y = np.interp(z, atlas.SPINE_Z, atlas.SPINE_Y).astype(np.float32)
    width = np.interp(z, atlas.SPINE_Z, atlas.SPINE_WIDTH).astype(np.float32)
    level = np.interp(z, atlas.VERTEBRA_Z, np.arange(len(atlas.VERTEBRA_Z))).astype(np.float32)
    off = np.abs(level - np.round(level)) * 2  # 0 mid-body, 1 mid-disc
    waist = width * (np.float32(0.88) + np.float32(0.12) * np.minimum(off * 1.3, 1))
    depth = waist * np.float32(0.78)
    u, v = view.x / waist, (view.y - centre_y) / depth
    body = (np.sqrt(u * u + v * v) - 1) * depth
    canal_y = view.y - (centre_y - width * np.float32(0.78) - 8)
    canal = np.sqrt(view.x * view.x * np.float32(0.7) + canal_y * canal_y) - np.float32(8.5)
    return body, canal, off


def _paint_spine(canvas: Canvas) -> None:
    box = canvas.box((-34, -130, -152), (34, 20, 300))
    if box is None:
        return
    view = View(canvas, box)
    body, canal, off = _spine_fields(view)
    ends = np.maximum(-152 - view.z, view.z - 300)
    body = np.maximum(body, ends)
    ring = smooth_max(np.maximum(canal - 5.5, ends), (off - np.float32(0.75)) * 12, 3)
    canvas.blend(box, body, canvas.shade('disc', box))
    bone = np.maximum(body, (off - np.float32(0.74)) * 14)
    canvas.blend(box, bone, canvas.shade('cortical_bone', box), keep='rigid')
    canvas.blend(box, bone + 1.6, canvas.shade('cancellous_bone', box), keep='rigid')
    canvas.blend(box, ring, canvas.shade('cortical_bone', box), keep='rigid')
    canvas.blend(box, np.maximum(canal, ends), canvas.shade('spinal_canal', box), keep='rigid')
    for z in atlas.VERTEBRA_Z:
        y = np.interp(z, atlas.SPINE_Z, atlas.SPINE_Y)
        w = np.interp(z, atlas.SPINE_Z, atlas.SPINE_WIDTH)
        back = y - 0.78 * w - 16
        spinous = Tube([[0, back - 3, z - 6], [0, back - 26, z - 16]], [4.5, 5.0], 30)
        _paint_long_bone(canvas, spinous, 2.0)
        for side in (1, -1):
            process = [[side * 13, back + 4, z + 2], [side * (w + 17), back + 1, z + 4]]
            canvas.paint_tube(Tube(process, [5, 3.2], 40), 'cortical_bone')


def _paint_pelvis(canvas: Canvas) -> None:
    if canvas.box((-180, -130, -345), (180, 80, -105)) is None:
        return
    for side in (1, -1):
        _paint_ilium(canvas, side)
        head = atlas.FEMORAL_HEAD * (side, 1, 1)
        socket = ellipsoid(head, (31, 31, 31))
        canvas.paint(
            socket.cut(lambda view, s=side: np.float32(62) - view.x * s, 6), 'cortical_bone'
        )
        canvas.paint(ellipsoid(head, (27, 27, 27)), 'muscle')
        rami = (
            [[66, 14, -268], [40, 40, -280], [10, 46, -296]],
            [[10, 44, -298], [34, 18, -320], [56, -24, -330]],
            [[80, -34, -270], [70, -50, -300], [58, -46, -330]],
        )
        for points in rami:
            mirrored = np.asarray(points, float) * (side, 1, 1)
            _paint_long_bone(canvas, Tube(mirrored, [8, 7.5, 9]), 2.5)
        neck = np.array(
            [[92, -6, -266], [120, -14, -280], [142, -18, -300], [138, -8, -345]], float
        )
        _paint_long_bone(canvas, Tube(neck * (side, 1, 1), [15, 15, 19, 16]), 3.5)
        name = 'right_head_of_femur' if side > 0 else 'left_head_of_femur'
        canvas.paint(ellipsoid(head, (24, 24, 24)), 'cortical_bone', ORGAN_ID[name], keep=name)
        inner = ellipsoid(head, (22.8, 22.8, 22.8))
        canvas.paint(inner, 'cancellous_bone', ORGAN_ID[name], keep=name)
    _paint_sacrum(canvas)


def _paint_long_bone(canvas: Canvas, tube: Tube, cortex_mm: float) -> None:
    canvas.paint_tube(tube, 'cortical_bone', core=('cancellous_bone', cortex_mm))


def _paint_ilium(canvas: Canvas, side: int) -> None:
    levels = atlas.ILIUM_Z[::-1]

    def field(view: View) -> np.ndarray:
        a, b = (
            [np.interp(view.z, levels, table[::-1, axis]).astype(np.float32) for axis in (0, 1)]
            for table in (atlas.ILIUM_BACK, atlas.ILIUM_FRONT)
        )
        half = np.interp(view.z, levels, atlas.ILIUM_HALF[::-1]).astype(np.float32)
        dx, dy = b[0] - a[0], b[1] - a[1]
        px, py = view.x * side - a[0], view.y - a[1]
        t = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
        plate = np.hypot(px - t * dx, py - t * dy) - half
        ends = np.maximum(view.z + 114, -264 - view.z)
        return np.maximum(plate, ends)

    lo, hi = np.array([20.0, -95, -272]), np.array([152.0, 50, -108])
    if side < 0:
        lo[0], hi[0] = -152.0, -20.0
    wing = Shape(lo, hi, field)
    canvas.paint(wing, 'cortical_bone')
    canvas.paint(wing.grown(-2.2), 'cancellous_bone')


def _paint_sacrum(canvas: Canvas) -> None:
    def field(view: View) -> np.ndarray:
        z = view.z
        y = np.interp(z, [-262, -235, -200, -165, -150], [-84, -98, -90, -56, -36])
        width = np.interp(z, [-262, -235, -200, -165, -150], [6, 20, 46, 52, 30])
        depth = np.interp(z, [-262, -235, -200, -165, -150], [5, 9, 15, 20, 18])
        u = view.x / width.astype(np.float32)
        v = (view.y - y.astype(np.float32)) / depth.astype(np.float32)
        ring = (np.sqrt(u * u + v * v) - 1) * depth.astype(np.float32)
        return np.maximum(ring, np.maximum(-266 - z, z + 146))

    sacrum = Shape(np.array([-56.0, -115, -270]), np.array([56.0, -14, -142]), field)
    canvas.paint(sacrum, 'cortical_bone')
    canvas.paint(sacrum.grown(-2.5), 'cancellous_bone')
