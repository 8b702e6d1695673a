"""Reads an image or a label map, whatever it is stored as.

- a .nii or .nii.gz file: image or label map;
- a folder or .zip of DICOM files: image; needs the extra `dicom`;
- a folder of NAME.nii.gz masks: label map, merged by `masks`;
- a folder of .png slices: label map on the grid of the DICOM image beside it.
"""

import os
import pathlib
from collections.abc import Collection, Mapping

from maxquery_jax.data import masks as masks_lib
from maxquery_jax.data import nifti
from maxquery_jax.data.dicom import png_labels, reader
from maxquery_jax.data.dicom.files import EXTENSIONS
from maxquery_jax.data.findings import Findings
from maxquery_jax.data.nifti_header import Header
from maxquery_jax.data.raw import hash_file, strip_extension

PathLike = str | os.PathLike[str]


def is_dicom(path: PathLike) -> bool:
    """Whether an image's path is read as DICOM: a folder or a .zip."""
    path = pathlib.Path(path)
    return path.is_dir() or path.name.lower().endswith('.zip')


def stem(path: PathLike) -> str:
    """A file's name without .nii, .nii.gz or .zip; a folder's name as it is."""
    path = pathlib.Path(path)
    if path.is_dir():
        return path.name or path.resolve().name
    name = strip_extension(path.name)
    return name[: -len('.zip')] if name.lower().endswith('.zip') else name


def read_image(
    path: PathLike,
    *,
    series: str | None = None,
    allow: Collection[str] = (),
    nan_policy: str = 'error',
    assume_orientation: str | None = None,
    max_bytes: int = nifti.MAX_BYTES,
    strict: bool = True,
) -> nifti.Volume:
    """Reads a 3D image.

    Args:
        path: of a NIfTI file, or of a folder or .zip with a CT series.
        series: which series, where there are several (`dicom.series.choose_series`).
        allow: names of errors (`findings.CHECKS`) that are to count as warnings.
        nan_policy: 'error' or 'fill'; DICOM holds no NaN.
        assume_orientation: axis codes for NIfTI files without an affine.
        max_bytes: largest array to allocate.
        strict: raise on the first error found; otherwise errors that do not prevent reading are
            left in `issues`.

    Raises:
        FileError: one line with file, problem and fix.
        UserError: it is DICOM, and pydicom is not installed.
    """
    if is_dicom(path):
        return reader.read_image(
            path, series=series, allow=allow, max_bytes=max_bytes, strict=strict
        )
    _refuse_slice(path)
    return nifti.read_image(
        path,
        allow=allow,
        nan_policy=nan_policy,
        assume_orientation=assume_orientation,
        max_bytes=max_bytes,
        strict=strict,
    )


def read_header(
    path: PathLike,
    *,
    series: str | None = None,
    allow: Collection[str] = (),
    assume_orientation: str | None = None,
) -> Header:
    """Reads shape and geometry of an image only; a `reader.SeriesHeader` if it is DICOM.

    Raises:
        FileError: as `read_image`.
    """
    if is_dicom(path):
        return reader.read_header(path, series=series, allow=allow)
    _refuse_slice(path)
    return nifti.read_header(path, allow=allow, assume_orientation=assume_orientation)


def read_label(
    path: PathLike,
    *,
    masks: Mapping[str, int] | None = None,
    like: PathLike | None = None,
    series: str | None = None,
    allow: Collection[str] = (),
    assume_orientation: str | None = None,
    max_bytes: int = nifti.MAX_BYTES,
    strict: bool = True,
) -> nifti.Volume:
    """Reads a 3D label map as integers.

    Args:
        path: of a NIfTI file, a folder of masks or a folder of .png slices.
        masks: name of a mask to id, in painting order, for a folder of masks.
        like: the case's first image; .png slices lie on its grid.
        series: which series of `like`.
        allow: as in `read_image`.
        assume_orientation: as in `read_image`.
        max_bytes: as in `read_image`.
        strict: as in `read_image`.

    Raises:
        FileError: one line with file, problem and fix.
    """
    if png_labels.is_png_stack(path):
        return png_labels.read_png_stack(path, like, series=series, max_bytes=max_bytes)
    kwargs = {
        'allow': allow,
        'assume_orientation': assume_orientation,
        'max_bytes': max_bytes,
        'strict': strict,
    }
    if pathlib.Path(path).is_dir() and masks is not None:
        return masks_lib.merge_masks(path, masks, **kwargs)
    return nifti.read_label(path, **kwargs)


def hash_input(path: PathLike, *, series: str | None = None) -> str:
    """The `sha256` of the volume that is read from a path.

    Raises:
        UserError: a series or its files cannot be read.
        OSError: a file cannot be read.
    """
    path = pathlib.Path(path)
    if png_labels.is_png_stack(path):
        return png_labels.hash_png_stack(path)
    if path.is_dir() and masks_lib.find_masks(path):
        return masks_lib.hash_masks(path)
    return reader.hash_series(path, series=series) if is_dicom(path) else hash_file(path)


def count_bytes(path: PathLike) -> int:
    """Bytes of a file, or of the files below a folder.

    Raises:
        OSError: the path cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob('*') if file.is_file())


def _refuse_slice(path: PathLike) -> None:
    if pathlib.Path(path).suffix.lower() in EXTENSIONS:
        raise Findings(path).fatal(
            'format', 'is one DICOM file', 'give the folder or .zip that holds its series'
        )
