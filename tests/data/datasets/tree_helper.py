"""Miniature copies of public data sets, laid out as they are distributed.

Written from their public descriptions, not from the specifications under test. Every label is a
small block; those of a paired organ lie at both sides of the body.
"""

import pathlib

import nifti_helper
import numpy as np

SIZE = 16
SPACING = 10.0
SIDED = {
    'kidney': ('right_kidney', 'left_kidney'),
    'lung': ('right_lung', 'left_lung'),
    'adrenal': ('right_adrenal_gland', 'left_adrenal_gland'),
}
INSIDE = {'kidney_tumour': 'left', 'kidney_cyst': 'right'}  # beside the kidney of that side


def blocks(names, shift=0):
    """Name to mask [z, y, x]; canonical, so that the last index grows towards the right side."""
    masks = {}
    for n, name in enumerate(names):
        rows = slice(2 * (n % 7) + shift, 2 * (n % 7) + 1 + shift)
        deep = slice(5 * (n // 7) + 1, 5 * (n // 7) + 5)
        sides = {'right': slice(12, 15), 'left': slice(1, 4)}
        for side, columns in sides.items():
            mask = np.zeros((SIZE, SIZE, SIZE), bool)
            if name in SIDED:
                mask[deep, rows, columns] = True
                masks[SIDED[name][side == 'left']] = mask
            elif INSIDE.get(name, 'right') == side:
                mask[deep, rows, columns if name in INSIDE else slice(6, 9)] = True
                masks[name] = mask
    return masks


def label_of(masks, ids):
    """Label map [z, y, x] with raw ids; both sides of a paired organ have one."""
    joint = {side: name for name, sides in SIDED.items() for side in sides if name in ids}
    label = np.zeros((SIZE, SIZE, SIZE), np.uint8)
    for name, mask in masks.items():
        label[mask] = ids[joint.get(name, name)]
    return label


def hu(seed):
    """[z, y, x] int16 HU."""
    return nifti_helper.hu_volume((SIZE, SIZE, SIZE), seed)


def write(path: pathlib.Path, canonical) -> None:
    """Writes [z, y, x] in the order LPS."""
    array = np.ascontiguousarray(canonical.transpose(2, 1, 0)[::-1, ::-1])
    nifti_helper.write(path, array, nifti_helper.affine_of((SPACING,) * 3, 'LPS'))


def write_pair(image, label, seed, ids, names=None):
    """An image and its label map; returns the masks by name."""
    masks = blocks(names or list(ids), seed % 2)
    write(image, hu(seed))
    if label is not None:
        write(label, label_of(masks, ids))
    return masks
