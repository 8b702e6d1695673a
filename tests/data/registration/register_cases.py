"""A small data set of two cases with two phases, and a call of the registration with defaults."""

import nibabel as nib
import numpy as np
import register_helper as helper

from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.registration.options import RegisterOptions
from maxquery_jax.data.registration.run import register_dataset
from maxquery_jax.data.sources import open_source

SMALL = (24, 20, 16)
AFFINE = helper.centred(SMALL, (8.0, 8.0, 12.0), 'LPS', helper.turn((0, 0, 6)))
OTHER_SHAPE = (20, 22, 14)
OTHER = helper.centred(OTHER_SHAPE, (9.0, 8.0, 13.0), 'RAS', shift=(3, 2, 1))
SHIFT = np.array((9.0, -6.0, 12.0))


def still(seed=0):
    return helper.scan(SMALL, AFFINE, seed=seed), AFFINE


def moved(seed=1):
    """Another grid, and the patient moved by SHIFT."""
    array = helper.scan(OTHER_SHAPE, OTHER, lambda p: p - SHIFT, blood=60, seed=seed)
    return array, OTHER


def register(folder, output, method='none', *, reference='venous', pairs=None, **kwargs):
    """`register_dataset` in this process; `kwargs` are its own or those of the options."""
    own = ('read', 'limits', 'is_strict', 'overwrite', 'json_path', 'workers', 'log')
    call = {'workers': 0, 'log': lambda _: None}
    call.update({name: kwargs.pop(name) for name in own if name in kwargs})
    raw = read_decathlon(folder) if pairs is None else open_source('pairs', folder, pairs=pairs)[0]
    options = RegisterOptions(method, **kwargs)
    return register_dataset(raw, output, reference, options=options, pairs=pairs, **call)


def load(path):
    """Voxels and image of a file, by nibabel."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image
