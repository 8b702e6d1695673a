"""Label maps as folders of .png slices beside a DICOM series: the CT part of CHAOS.

A .png file holds neither position nor spacing. The rule is that of the CHAOS organisers' own
evaluation code (github.com/emrekavur/CHAOS-evaluation, `Data_3D` and its readers): files in the
order of their names belong to DICOM files in the order of theirs, `Ground/liver_GT_000.png` to
`DICOM_anon/i0000,0000b.dcm`, row by row and column by column. Numbers in names are compared as
numbers. One-bit images are read as 0 and 255, as 8-bit readers show them.
"""

import hashlib
import os
import pathlib
import re

import numpy as np

from maxquery_jax.data.dicom.library import require
from maxquery_jax.data.dicom.reader import SeriesHeader, read_header
from maxquery_jax.data.findings import Findings
from maxquery_jax.data.nifti import MAX_BYTES, Volume

_MODES = {'1': np.uint8, 'L': np.uint8, 'P': np.uint8, 'I;16': np.uint16, 'I': np.int32}


def is_png_stack(folder: str | os.PathLike) -> bool:
    """Whether a path is a folder that holds .png files."""
    folder = pathlib.Path(folder)
    return folder.is_dir() and bool(_png_files(folder))


def hash_png_stack(folder: str | os.PathLike) -> str:
    """SHA-256 of the files' own hashes in the order of their names."""
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in _png_files(folder)]
    return hashlib.sha256(b''.join(digests)).hexdigest()


def read_png_stack(
    folder: str | os.PathLike,
    image: str | os.PathLike | None,
    *,
    series: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Volume:
    """Reads slices on the grid of a DICOM series.

    Args:
        folder: of the .png files.
        image: folder or .zip of the series.
        series: which one, where there are several.
        max_bytes: largest array to allocate.

    Returns:
        A label map [i, j, k] in the order of the series.

    Raises:
        FileError: another number or size of slices, a damaged file, or an image that is no
            DICOM series.
    """
    findings = Findings(folder)
    header = _header_of(image, series, findings)
    files = _png_files(folder)
    stack = header.stack
    if any(item.num_frames > 1 for item in stack.slices) or len(files) != len(stack.slices):
        raise findings.fatal(
            'shape_mismatch',
            f'{len(files)} .png files for {len(stack.slices)} slices of {image}',
            'give one .png file per DICOM file',
        )
    by_name = sorted(range(len(files)), key=lambda k: _natural(stack.slices[k].file))
    first = _read_png(files[0], findings, stack.shape[:2])
    if first.dtype.itemsize * first.size * len(files) > max_bytes:
        raise findings.fatal('too_large', f'{len(files)} slices', 'use fewer workers')
    target = np.empty((len(files), *first.shape), first.dtype)
    digests = []
    for path, k in zip(files, by_name, strict=True):
        values = _read_png(path, findings, stack.shape[:2])
        target = target if np.can_cast(values.dtype, target.dtype) else target.astype(values.dtype)
        target[k] = values
        digests.append(hashlib.sha256(path.read_bytes()).digest())
    return Volume(
        target.transpose(2, 1, 0),
        header,
        hashlib.sha256(b''.join(digests)).hexdigest(),
        float(target.min()),
        float(target.max()),
        False,
        (),
    )


def _header_of(
    image: str | os.PathLike | None, series: str | None, findings: Findings
) -> SeriesHeader:
    if image is None or pathlib.Path(image).name.lower().endswith(('.nii', '.nii.gz')):
        raise findings.fatal(
            'affine_mismatch',
            '.png slices have no place of their own, and the image is no DICOM series',
            'give the image as the DICOM folder the slices were drawn on',
        )
    return read_header(image, series=series, allow=('dicom_modality', 'scaling'))


def _read_png(path: pathlib.Path, findings: Findings, shape: tuple[int, int]) -> np.ndarray:
    """[rows, columns] of one file."""
    pillow = require('PIL.Image', 'reading .png labels')
    try:
        with pillow.open(path, formats=['PNG']) as picture:
            mode, size = picture.mode, picture.size
            if size != shape:
                raise findings.fatal(
                    'shape_mismatch', f'{path.name} is {size}, the image is {shape}', 'export again'
                )
            if mode not in _MODES:
                raise findings.fatal(
                    'dtype', f'{path.name} is a picture of mode {mode}', 'store one id per pixel'
                )
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise findings.fatal(
            'corrupt', f'{path.name}: {type(error).__name__}', 'copy or export it again'
        ) from error
    return values.astype(_MODES[mode]) * (255 if mode == '1' else 1)


def _png_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    found = (
        path
        for path in pathlib.Path(folder).iterdir()
        if path.name.lower().endswith('.png') and not path.name.startswith('.')
    )
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that compares runs of digits as numbers."""
    parts = re.split(r'(\d+)', name)
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts] + [(-1, name)]
