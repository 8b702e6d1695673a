"""Makes NIfTI files for tests, good and bad, byte by byte and without the code under test."""

import gzip
import json
import pathlib
import struct

import numpy as np

FLOAT32, INT16, UINT8 = 16, 4, 2
CODES = {
    'uint8': 2, 'int16': 4, 'int32': 8, 'float32': 16, 'float64': 64, 'int8': 256, 'uint16': 512,
    'uint32': 768, 'int64': 1024, 'uint64': 1280,
}  # fmt: skip
# Byte offsets of NIfTI-1 fields and how to pack them.
FIELDS = {
    'dim': (40, '8h'), 'datatype': (70, 'h'), 'bitpix': (72, 'h'), 'pixdim': (76, '8f'),
    'vox_offset': (108, 'f'), 'scl_slope': (112, 'f'), 'scl_inter': (116, 'f'),
    'xyzt_units': (123, 'B'), 'descrip': (148, '80s'), 'qform_code': (252, 'h'),
    'sform_code': (254, 'h'), 'quatern': (256, '3f'), 'qoffset': (268, '3f'), 'srow': (280, '12f'),
    'magic': (344, '4s'),
}  # fmt: skip


def header(shape, affine, dtype='int16', order='<', **changes) -> bytes:
    """A NIfTI-1 header with an sform; `changes` are raw field values."""
    raw = bytearray(352)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    fields = {
        'dim': (3, *shape, 1, 1, 1, 1),
        'datatype': CODES[dtype],
        'bitpix': 8 * np.dtype(dtype).itemsize,
        'pixdim': (1, *spacing, 0, 0, 0, 0),
        'vox_offset': 352,
        'sform_code': 1,
        'srow': np.asarray(affine)[:3].ravel(),
        'magic': b'n+1\0',
        **changes,
    }
    struct.pack_into(order + 'i', raw, 0, 348)
    for name, value in fields.items():
        offset, form = FIELDS[name]
        values = value if isinstance(value, tuple | list | np.ndarray) else (value,)
        struct.pack_into(order + form, raw, offset, *values)
    return bytes(raw)


def nifti_bytes(array, affine=None, dtype=None, order='<', **changes) -> bytes:
    """A complete file: header and voxels, the first axis fastest."""
    array = np.asarray(array)
    dtype = dtype or array.dtype.name
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    voxels = array.astype(np.dtype(dtype).newbyteorder(order)).tobytes(order='F')
    return header(array.shape, affine, dtype, order, **changes) + voxels


def write(path, array, affine=None, dtype=None, **changes) -> pathlib.Path:
    """Writes `nifti_bytes`, compressed if the name says so."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = nifti_bytes(array, affine, dtype, **changes)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith('.gz') else data)
    return path


def write_large(path, shape, affine, dtype, plane_of, **changes) -> pathlib.Path:
    """Writes `plane_of(k)` [i, j] for every k, one after the other: needs no memory."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, 'wb', 1) if path.name.endswith('.gz') else path.open('wb') as file:
        file.write(header(shape, affine, dtype, **changes))
        for k in range(shape[2]):
            file.write(np.ascontiguousarray(plane_of(k).T, dtype))  # the first axis is the fastest
    return path


def hu_volume(shape=(9, 8, 7), seed=0) -> np.ndarray:
    """[i, j, k] int16 noise that looks like HU."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 1200, shape).astype(np.int16)


def affine_of(spacing=(1.0, 1.0, 1.0), codes='RAS', origin=(-10.0, 5.0, 30.0)) -> np.ndarray:
    """Affine whose index i, j, k grows towards the letters of `codes`."""
    affine = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        world = {'R': 0, 'L': 0, 'A': 1, 'P': 1, 'S': 2, 'I': 2}[code]
        affine[world, axis] = spacing[axis] * (1 if code in 'RAS' else -1)
    affine[:3, 3] = origin
    affine[3, 3] = 1
    return affine


def decathlon(folder, cases, labels=None, *, extra=None, spacing=(1.5, 1.5, 3.0)) -> pathlib.Path:
    """A Decathlon folder.

    Args:
        folder: to write into.
        cases: case id to (image [i, j, k], label [i, j, k]).
        labels: id (string) to name.
        extra: further keys of dataset.json.
        spacing: of every file.
    """
    folder = pathlib.Path(folder)
    affine = affine_of(spacing, 'LPS')
    for case_id, (image, label) in cases.items():
        write(folder / 'imagesTr' / f'{case_id}.nii.gz', image, affine)
        write(folder / 'labelsTr' / f'{case_id}.nii.gz', label, affine)
    names = labels or {'0': 'background', '1': 'liver', '2': 'liver tumour', '3': 'cyst'}
    listing = {
        'name': 'test',
        'modality': {'0': 'CT'},
        'labels': names,
        'numTraining': len(cases),
        'training': [
            {'image': f'./imagesTr/{i}.nii.gz', 'label': f'./labelsTr/{i}.nii.gz'} for i in cases
        ],
        'test': [],
        **(extra or {}),
    }
    (folder / 'dataset.json').write_text(json.dumps(listing))
    return folder


def blob_case(seed, shape=(16, 14, 10), ids=(1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label with a block per id."""
    image = hu_volume(shape, seed)
    label = np.zeros(shape, np.uint8)
    for n, label_id in enumerate(ids):
        label[2 + 3 * n : 5 + 3 * n, 3:9, 2:7] = label_id
    return image, label
