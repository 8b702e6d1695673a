"""A CT series as a volume: what `nifti.read_image` is for a file.

    volume = read_image('study_folder')           # or 'study.zip'
    volume.array                                  # [column, row, slice] int16 HU
    volume.header.affine                          # to world mm, Right Anterior Superior

No tag about the patient, the study or the hospital is kept: the header holds geometry and UIDs,
and messages name a series by a hash.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterator

import nibabel as nib
import numpy as np

from maxquery_jax.data.dicom.files import ArchiveFiles, FolderFiles, open_files
from maxquery_jax.data.dicom.geometry import Stack, stack_slices
from maxquery_jax.data.dicom.pixels import (
    check_scaling,
    hash_files,
    read_voxels,
    voxel_dtype,
)
from maxquery_jax.data.dicom.series import choose_series, list_series
from maxquery_jax.data.findings import CHECKS, Findings, validate_allow
from maxquery_jax.data.nifti import MAX_BYTES, Volume
from maxquery_jax.data.nifti_header import Header

_LARGEST_EDGE = 32767  # voxels along an axis of NIfTI-1


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesHeader(Header):
    """A header made from a series.

    Attributes:
        stack: the slices, as DICOM describes them.
        series_id: hash of the SeriesInstanceUID.
    """

    stack: Stack = dataclasses.field(repr=False)
    series_id: str


def read_image(
    path: str | os.PathLike,
    *,
    series: str | None = None,
    allow: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
    strict: bool = True,
) -> Volume:
    """Reads the CT series of a folder or a .zip.

    Args:
        path: of the folder or archive; folders are searched to any depth.
        series: which one, where there are several; see `series.choose_series`.
        allow: names of errors (`findings.CHECKS`) that are to count as warnings.
        max_bytes: largest array to allocate.
        strict: raise on the first error found; otherwise errors that do not prevent reading are
            left in `issues`.

    Raises:
        FileError: one line with file, problem and fix.
        UserError: pydicom is not installed.
    """
    findings = Findings(path, validate_allow(allow))
    with _open_series(path, series, findings, max_bytes) as (files, header):
        if strict:
            findings.raise_first_error()
        voxels = read_voxels(files, header.stack, findings, max_bytes=max_bytes)
    if strict:
        findings.raise_first_error()
    return Volume(
        voxels.array,
        header,
        voxels.sha256,
        voxels.minimum,
        voxels.maximum,
        voxels.is_fractional,
        tuple(findings.issues),
    )


def read_header(
    path: str | os.PathLike, *, series: str | None = None, allow: Collection[str] = ()
) -> SeriesHeader:
    """Reads shape and geometry only; the voxels are not decoded.

    Raises:
        FileError: as `read_image`.
    """
    findings = Findings(path, validate_allow(allow))
    with _open_series(path, series, findings, MAX_BYTES) as (_, header):
        findings.raise_first_error()
    return header


def hash_series(path: str | os.PathLike, *, series: str | None = None) -> str:
    """The hash that `read_image` gives, without decoding the voxels.

    Raises:
        FileError: as `read_header`.
    """
    findings = Findings(path, CHECKS)  # judged before
    with _open_series(path, series, findings, MAX_BYTES) as (files, header):
        return hash_files(files, header.stack)


@contextlib.contextmanager
def _open_series(
    path: str | os.PathLike, series: str | None, findings: Findings, max_bytes: int
) -> Iterator[tuple[FolderFiles | ArchiveFiles, SeriesHeader]]:
    # An archive may hold other series beside the one that must fit.
    with open_files(pathlib.Path(path), findings, max(max_bytes, MAX_BYTES)) as files:
        chosen = choose_series(list_series(files, findings), series, findings)
        stack = stack_slices(chosen.slices, findings)
        check_scaling(stack, findings)
        yield files, _header(stack, chosen.id, findings)


def _header(stack: Stack, series_id: str, findings: Findings) -> SeriesHeader:
    kind = nib.Nifti1Header if max(stack.shape) <= _LARGEST_EDGE else nib.Nifti2Header
    raw, dtype = kind(), voxel_dtype(stack)
    raw.set_data_shape(stack.shape)
    raw.set_data_dtype(dtype)
    raw.set_sform(stack.affine, code='scanner')
    raw.set_qform(stack.affine, code='scanner', strip_shears=True)
    raw.set_xyzt_units('mm')
    return SeriesHeader(
        path=str(findings.path),
        raw=raw,
        shape=stack.shape,
        dtype=np.dtype(dtype),
        affine=stack.affine,
        offset=0,
        scaling=None,
        issues=tuple(findings.issues),
        stack=stack,
        series_id=series_id,
    )
