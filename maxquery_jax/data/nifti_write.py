"""Writes NIfTI voxels under a header: slab by slab, checked before the cast, atomically."""

import contextlib
import gzip
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import nibabel as nib
import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.files import replacing

_SLAB_VOXELS = 1 << 22
_LEVEL = 4  # masks compress well at any level; maps of half-precision noise at none
_HALF_MAX = float(np.finfo(np.float16).max)
_TEXT = ('descrip', 'aux_file', 'intent_name', 'db_name', 'data_type')


def write_new(
    path: str | os.PathLike, array: np.ndarray, affine: np.ndarray, dtype: str | None = None
) -> None:
    """Writes an array [i, j, k] under a new header.

    Args:
        path: ends in .nii or .nii.gz.
        array: [i, j, k].
        affine: [4, 4] index (i, j, k, 1) to world mm (R, A, S); sets sform and qform.
        dtype: of the stored voxels; the array's if None.

    Raises:
        UserError: the path has another extension.
        ValueError: values do not fit into `dtype`.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_sform(affine, code='scanner')
    header.set_qform(affine, code='scanner', strip_shears=True)
    header.set_xyzt_units('mm')
    write_voxels(path, array, header, dtype or array.dtype.name)


def write_voxels(
    path: str | os.PathLike, array: np.ndarray, header: nib.Nifti1Header, dtype: str
) -> None:
    """Writes an array with the geometry of a nibabel header; see `nifti.write_like`."""
    path = pathlib.Path(path)
    if not path.name.lower().endswith(('.nii', '.nii.gz')):
        raise UserError(f'{path}: output must end in .nii or .nii.gz')
    is_half = dtype == 'float16'
    stored = np.dtype('float32' if is_half else dtype).newbyteorder('<')
    _check_values(array, np.dtype(dtype))
    raw = _output_header(header, array.shape, stored)
    with replacing(path) as file, _maybe_gzip(path, file) as stream:
        stream.write(raw.binaryblock)
        stream.write(b'\0' * (int(raw['vox_offset']) - len(raw.binaryblock)))
        for slab in _slabs(array):
            if is_half:
                slab = np.clip(slab, -_HALF_MAX, _HALF_MAX).astype(np.float16)
            elif stored.kind in 'iu' and slab.dtype.kind == 'f':
                slab = np.rint(slab)
            stream.write(slab.T.astype(stored).tobytes())


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _SLAB_VOXELS // (array.shape[0] * array.shape[1]))
    for start in range(0, array.shape[2], step):
        yield array[:, :, start : start + step]


def _check_values(array: np.ndarray, dtype: np.dtype) -> None:
    for slab in _slabs(array):
        low, high = float(slab.min()), float(slab.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError('the array holds NaN or infinite values')
        if dtype.kind in 'iu':
            info = np.iinfo(dtype)
            if low < info.min or high > info.max:
                raise ValueError(f'values {low:g} to {high:g} do not fit into {dtype.name}')


def _output_header(
    header: nib.Nifti1Header, shape: tuple[int, ...], dtype: np.dtype
) -> nib.Nifti1Header:
    # The fields are set one by one: nibabel's setters would recompute qform and pixdim.
    out = header.as_byteswapped('<') if header.endianness != '<' else header.copy()
    is_first = out['sizeof_hdr'] == 348
    out['magic'] = b'n+1' if is_first else b'n+2\0\r\n\032\n'
    out['vox_offset'] = 352 if is_first else 544
    out['dim'] = [3, *shape, 1, 1, 1, 1]
    out['datatype'] = nib.Nifti1Header._data_type_codes.code[dtype]
    out['bitpix'] = 8 * dtype.itemsize
    out['scl_slope'], out['scl_inter'] = 1, 0
    out['pixdim'][4:] = 0
    for name in (
        'cal_max',
        'cal_min',
        'slice_duration',
        'toffset',
        'slice_code',
        'slice_start',
        'slice_end',
        'dim_info',
        'intent_code',
        'intent_p1',
        'intent_p2',
        'intent_p3',
    ):
        out[name] = 0
    for name in _TEXT:
        if name in out.keys():  # noqa: SIM118 - nibabel headers have no `in`
            out[name] = b''
    return out


@contextlib.contextmanager
def _maybe_gzip(path: pathlib.Path, file: BinaryIO) -> Iterator[BinaryIO]:
    if not path.name.lower().endswith('.gz'):
        yield file
        return
    with gzip.GzipFile('', 'wb', _LEVEL, file, mtime=0) as stream:  # no name, no time
        yield stream  # type: ignore[misc]
