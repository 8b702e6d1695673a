"""A small patient given as a function of world coordinates, and files made from it.

A moved scan is evaluated at moved points, so that no interpolation is part of the oracle.
"""

import json
import pathlib

import numpy as np

from maxquery_jax.data import nifti

# centre (R, A, S) and half axes in mm, HU
ORGANS = [
    ((0, 0, 0), (80, 62, 75), 45),
    ((34, 4, 10), (34, 30, 30), 110),
    ((-38, -6, 22), (20, 22, 18), 95),
    ((-30, -22, -12), (14, 14, 22), 160),
    ((32, -26, -16), (14, 14, 22), 160),
    ((0, -42, 0), (12, 11, 70), 450),
    ((-8, 30, -30), (30, 14, 16), -90),
    ((4, 34, 24), (18, 14, 22), -900),
]


def patient(points, *, blood=0.0):
    """HU at world points [..., 3] (R, A, S) in mm; `blood` adds contrast to the organs."""
    hu = np.full(points.shape[:-1], -1000.0)
    for number, (centre, axes, value) in enumerate(ORGANS):
        distance = np.sqrt((((points - centre) / axes) ** 2).sum(-1))
        inside = 1 / (1 + np.exp(np.clip((distance - 1) * min(axes) / 1.5, -50, 50)))
        value = value + (blood if 0 < number < 5 else 0)
        hu = hu * (1 - inside) + value * inside
    return hu


def grid_points(shape, affine):
    """World points [i, j, k, 3] of the voxels of a file."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def centred(shape, spacing, codes='RAS', turn=None, shift=(0, 0, 0)):
    """An affine whose volume is centred at `shift`; `turn` [3, 3] makes it oblique."""
    matrix = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world = {'R': 0, 'L': 0, 'A': 1, 'P': 1, 'S': 2, 'I': 2}[code]
        matrix[world, axis] = spacing[axis] * (1 if code in 'RAS' else -1)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ matrix
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def turn(degrees_xyz):
    """Rotation matrix about x, then y, then z."""
    ax, ay, az = np.deg2rad(degrees_xyz)
    x = [[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]]
    y = [[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]]
    z = [[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]]
    return np.array(z) @ np.array(y) @ np.array(x)


SHAPE, SPACING = (48, 48, 24), (4.0, 4.0, 8.0)
AFFINE = centred(SHAPE, SPACING)


def scan(shape=SHAPE, affine=AFFINE, to_patient=lambda p: p, *, blood=0.0, seed=0, noise=8.0):
    """[i, j, k] int16 HU of a scan whose world point p shows the patient at `to_patient(p)`."""
    hu = patient(to_patient(grid_points(shape, affine)), blood=blood)
    return np.rint(hu + np.random.default_rng(seed).normal(0, noise, shape)).astype(np.int16)


def label(shape=SHAPE, affine=AFFINE):
    """[i, j, k] uint8: the large organ 1, the small one 2."""
    points = grid_points(shape, affine)
    out = np.zeros(shape, np.uint8)
    for number, organ in enumerate(ORGANS[1:3], 1):
        out[(((points - organ[0]) / organ[1]) ** 2).sum(-1) < 1] = number
    return out


def write_dataset(folder, cases, *, phases=('venous', 'arterial'), labels=True, extra=None):
    """An nnU-Net v2 folder; `cases`: id to a list of (array, affine), or None for no file."""
    folder = pathlib.Path(folder)
    (folder / 'imagesTr').mkdir(parents=True)
    for case_id, scans in cases.items():
        for channel, pair in enumerate(scans):
            if pair is not None:
                nifti.write_new(folder / 'imagesTr' / f'{case_id}_{channel:04d}.nii.gz', *pair)
        if labels:
            first = next(pair for pair in scans if pair is not None)
            path = folder / 'labelsTr' / f'{case_id}.nii.gz'
            nifti.write_new(path, label(first[0].shape, first[1]), first[1])
    content = {
        'channel_names': {str(i): name for i, name in enumerate(phases)},
        'labels': {'background': 0, 'liver': 1, 'tumour': 2},
        'numTraining': len(cases),
        'file_ending': '.nii.gz',
        'name': 'phases',
        **(extra or {}),
    }
    (folder / 'dataset.json').write_text(json.dumps(content))
    return folder
