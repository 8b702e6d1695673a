"""Reads and writes .nii and .nii.gz, safely and without a second copy of the voxels.

The whole stream is read, so that a wrong gzip checksum is seen; the size the header promises is
compared with the file before memory is asked for; values are checked before they are cast. A
512 x 512 x 1000 int16 scan needs its 0.5 GB and a few MB.

    volume = read_image('case.nii.gz')
    image, orientation = to_canonical(volume)              # [D, H, W], RAS, spacing_mm (z, y, x)
    mask = segment(image)
    write_like('mask.nii.gz', from_canonical(mask, orientation), volume, 'uint8')
"""

import dataclasses
import os
from collections.abc import Collection

import numpy as np

from maxquery_jax.data import orientation as orientation_lib
from maxquery_jax.data.findings import Findings, Issue, validate_allow
from maxquery_jax.data.nifti_header import (
    Header,
    header_size,
    is_axis_code,
    parse_header,
)
from maxquery_jax.data.nifti_stream import COPY_AGAIN, Stream, open_stream
from maxquery_jax.data.nifti_write import write_new, write_voxels
from maxquery_jax.data.orientation import Orientation, from_canonical
from maxquery_jax.errors import UserError

__all__ = [
    'Volume',
    'from_canonical',
    'read_header',
    'read_image',
    'read_label',
    'to_canonical',
    'write_like',
    'write_new',
]

MAX_BYTES = 64 * 2**30
AIR_HU = -1024  # replaces NaN and Inf under nan_policy='fill'
_MAX_PADDING = 10240  # bytes of a tape block
_CHUNK_BYTES = 1 << 20
_CHUNK_VOXELS = 1 << 20
_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A volume as its file stores it.

    Attributes:
        array: [i, j, k] values along the file's own axes. Images: the stored integer type (up to
            32 bits) or float32. Labels: integers.
        header: the checked header.
        sha256: of the file's bytes.
        minimum: smallest finite value.
        maximum: largest finite value.
        is_fractional: whether any value is not a whole number.
        issues: findings of header and voxels.
    """

    array: np.ndarray
    header: Header
    sha256: str
    minimum: float
    maximum: float
    is_fractional: bool
    issues: tuple[Issue, ...]

    @property
    def warnings(self) -> list[str]:
        """One line per finding."""
        return [f'{self.header.path}: {issue}' for issue in self.issues]


def read_image(
    path: str | os.PathLike,
    *,
    allow: Collection[str] = (),
    nan_policy: str = 'error',
    assume_orientation: str | None = None,
    max_bytes: int = MAX_BYTES,
    strict: bool = True,
) -> Volume:
    """Reads a 3D image.

    Args:
        path: of a .nii or .nii.gz file.
        allow: names of errors (`findings.CHECKS`) that are to count as warnings.
        nan_policy: 'error', or 'fill' to replace NaN and Inf by -1024 (air).
        assume_orientation: axis codes such as 'LPS' for a file that holds no affine.
        max_bytes: largest array to allocate.
        strict: raise on the first error found; otherwise errors that do not prevent reading are
            left in `issues`.

    Raises:
        FileError: one line with file, problem and fix.
    """
    return _read(path, 'image', allow, nan_policy, assume_orientation, max_bytes, strict)


def read_label(
    path: str | os.PathLike,
    *,
    allow: Collection[str] = (),
    assume_orientation: str | None = None,
    max_bytes: int = MAX_BYTES,
    strict: bool = True,
) -> Volume:
    """Reads a 3D label map as integers; a float file must hold whole numbers.

    Arguments and errors are those of `read_image`.
    """
    return _read(path, 'label', allow, 'error', assume_orientation, max_bytes, strict)


def read_header(
    path: str | os.PathLike,
    *,
    allow: Collection[str] = (),
    assume_orientation: str | None = None,
) -> Header:
    """Reads shape and geometry only; the voxels are not checked.

    Raises:
        FileError: as `read_image`.
    """
    findings = Findings(path, validate_allow(allow))
    with open_stream(path, findings) as stream:
        header = _read_header(stream, findings, assume_orientation)
        _check_promise(stream, header, findings)
    findings.raise_first_error()
    return header


def to_canonical(volume: Volume) -> tuple[np.ndarray, Orientation]:
    """A view [D, H, W] of a volume with indices growing towards S, A, R, and how to go back.

    `from_canonical` undoes it exactly. A sheared grid stays sheared: see `orientation.rectify`.
    """
    found = orientation_lib.find_orientation(volume.header.affine, volume.header.shape)
    return orientation_lib.apply(volume.array, found), found


def write_like(
    path: str | os.PathLike, array: np.ndarray, like: Volume | Header, dtype: str
) -> None:
    """Writes an array in the grid of a file that was read.

    Shape, affine, qform, sform and their codes, voxel size and units are the input's; scaling is
    reset, and free text, which may name a patient, is dropped. The file appears complete or not
    at all; equal arrays give equal bytes.

    Args:
        path: ends in .nii or .nii.gz.
        array: [i, j, k] along the input's own axes, as `from_canonical` returns it.
        like: the input.
        dtype: of the stored voxels. 'float16' stores float32 rounded to half precision, which
            compresses to half the size (NIfTI has no 16-bit float).

    Raises:
        UserError: the path has another extension.
        ValueError: the shape differs or values do not fit into `dtype`.
    """
    header = like.header if isinstance(like, Volume) else like
    if array.shape != header.shape:
        raise ValueError(f"array {array.shape} is not of the input's shape {header.shape}")
    write_voxels(path, array, header.raw, dtype)


def _read(path, kind, allow, nan_policy, assume_orientation, max_bytes, strict) -> Volume:
    if nan_policy not in ('error', 'fill'):
        raise UserError(f"nan_policy is {nan_policy!r}; use 'error' or 'fill'")
    allow = validate_allow(allow)
    findings = Findings(path, allow)
    with open_stream(path, findings) as stream:
        header = _read_header(stream, findings, assume_orientation)
        if strict:
            findings.raise_first_error()
        decoder = _Decoder(header, kind, fill=nan_policy == 'fill' or 'nonfinite' in allow)
        _check_promise(stream, header, findings)
        _check_size(header, decoder.dtype, max_bytes, findings)
        array = decoder.read(stream)
        _check_rest(*stream.drain(), header, findings)
    decoder.report(findings)
    if strict:
        findings.raise_first_error()
    return Volume(
        array,
        header,
        stream.sha256,
        decoder.minimum,
        decoder.maximum,
        decoder.is_fractional,
        tuple(findings.issues),
    )


def _read_header(stream: Stream, findings: Findings, assume_orientation: str | None) -> Header:
    if assume_orientation is not None and not is_axis_code(assume_orientation):
        raise UserError(
            f'assume_orientation is {assume_orientation!r}; give three letters, one '
            'of R/L, A/P and S/I each, such as LPS'
        )
    start = stream.read(4)
    size = header_size(start, findings)
    data = start + stream.read(size - 4)
    if len(data) < size:
        raise findings.fatal('truncated', f'{len(data)} of {size} header bytes', COPY_AGAIN)
    with np.errstate(all='ignore'):  # damaged headers hold any bit pattern
        header = parse_header(data, findings, assume_orientation)
    skipped = 0
    while skipped < header.offset - size:
        piece = len(stream.read(min(_CHUNK_BYTES, header.offset - size - skipped)))
        if not piece:
            raise findings.fatal(
                'truncated',
                f'voxels should start at byte {header.offset:,}, the '
                f'data end at {size + skipped:,}',
                COPY_AGAIN,
            )
        skipped += piece
    return header


def _check_promise(stream: Stream, header: Header, findings: Findings) -> None:
    promised = header.num_voxels * header.dtype.itemsize
    if promised + header.offset > stream.size_limit:
        raise findings.fatal(
            'truncated',
            f'shape {header.shape} of {header.dtype.name} needs {promised:,} bytes, '
            f'a file of {stream.file_size:,} bytes cannot hold them',
            COPY_AGAIN,
        )


def _check_size(header: Header, dtype: np.dtype, max_bytes: int, findings: Findings) -> None:
    needed = header.num_voxels * dtype.itemsize
    if needed > max_bytes:
        raise findings.fatal(
            'too_large',
            f'shape {header.shape} needs {needed / 2**30:.2f} GiB, the limit is '
            f'{max_bytes / 2**30:.2f} GiB',
            'crop the scan, or use fewer workers or more memory',
        )


def _check_rest(size: int, is_data: bool, header: Header, findings: Findings) -> None:
    """A few zeros after the voxels are padding; anything else may be voxels of another shape."""
    if is_data or size > _MAX_PADDING:
        findings.error(
            'trailing_bytes',
            f'{size:,} bytes follow the last voxel of shape {header.shape}',
            'the shape in the header is wrong: export again; if it is right, '
            '--allow=trailing_bytes',
        )
    elif size:
        findings.warn(
            'trailing_bytes', f'{size:,} zero bytes follow the last voxel', 'nothing to do'
        )


class _Decoder:
    """Stored voxels to an array, a chunk at a time: scaling, checks, then the cast."""

    def __init__(self, header: Header, kind: str, *, fill: bool):
        self._header = header
        self._kind = kind
        self._fill = fill
        self.dtype = _target_dtype(header, kind)
        self.minimum, self.maximum = np.inf, -np.inf
        self.is_fractional = False
        self._nan = self._inf = self._fractions = self._outside = 0

    def read(self, stream: Stream) -> np.ndarray:
        """Fills [i, j, k] from the stream, which must stand at the first voxel.

        Raises:
            FileError: the data end early or are damaged.
        """
        count, stored = self._header.num_voxels, self._header.dtype
        try:
            flat = np.empty(count, self.dtype)
        except MemoryError:
            raise stream.findings.fatal(
                'too_large',
                f'no memory for {count * self.dtype.itemsize:,} bytes',
                'close other programs or use fewer workers',
            ) from None
        is_direct = self._header.scaling is None and stored.newbyteorder('=') == self.dtype
        buffer = flat[:0] if is_direct else np.empty(min(count, _CHUNK_VOXELS), stored)
        for start in range(0, count, _CHUNK_VOXELS):
            target = flat[start : start + _CHUNK_VOXELS]
            chunk = target.view(stored) if is_direct else buffer[: target.size]
            got = stream.readinto(chunk.view(np.uint8).data)
            if got < chunk.nbytes:
                raise stream.findings.fatal(
                    'truncated',
                    f'{start * stored.itemsize + got:,} of {count * stored.itemsize:,} voxel bytes',
                    COPY_AGAIN,
                )
            if is_direct and not stored.isnative:
                target.byteswap(inplace=True)
            self._decode(chunk, target, is_direct)
        return flat.reshape(self._header.shape[::-1]).T  # the first axis is the fastest

    def _decode(self, chunk: np.ndarray, target: np.ndarray, is_direct: bool) -> None:
        values = target if is_direct else chunk.astype(chunk.dtype.newbyteorder('='))
        with np.errstate(all='ignore'):
            if self._header.scaling is not None:
                slope, inter = self._header.scaling
                values = values.astype(np.float64) * slope + inter
            if values.dtype == np.float64 and self.dtype == np.float32:
                values = values.astype(np.float32)  # beyond its range becomes Inf, counted below
        if values.dtype.kind == 'f':
            values = self._check_floats(values, writable=is_direct)
        if self.dtype.kind != 'f' and not np.can_cast(values.dtype, self.dtype):
            values = np.rint(values) if values.dtype.kind == 'f' else values
            outside = (values < _INT32.min) | (values > _INT32.max)
            self._outside += int(np.count_nonzero(outside))
            values = np.where(outside, 0, values)
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        if not is_direct:
            target[:] = values

    def _check_floats(self, values: np.ndarray, writable: bool) -> np.ndarray:
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.count_nonzero(np.isnan(values)))
            self._nan += nan
            self._inf += int(np.count_nonzero(~finite)) - nan
            filler = values.dtype.type(AIR_HU if self._kind == 'image' else 0)
            if writable:
                values[~finite] = filler
            else:
                values = np.where(finite, values, filler)
        if self._kind == 'label' or not self.is_fractional:
            fractions = int(np.count_nonzero(values != np.rint(values)))
            self._fractions += fractions
            self.is_fractional |= fractions > 0
        return values

    def report(self, findings: Findings) -> None:
        """Records what was wrong with the values."""
        total = self._header.num_voxels
        bad = self._nan + self._inf
        if self._kind == 'label' and (bad or self._fractions):
            findings.error(
                'label_not_integer',
                f'{self._fractions:,} fractions, {self._nan:,} NaN and '
                f'{self._inf:,} Inf of {total:,} voxels',
                'save the label map as integers; it was interpolated or scaled',
            )
        elif bad:
            value = f'{self._nan:,} NaN and {self._inf:,} Inf of {total:,} voxels'
            if self._fill:
                findings.warn('nonfinite', value, f'replaced by {AIR_HU}')
            else:
                findings.error(
                    'nonfinite',
                    value,
                    f'repair the file, or --nan_policy=fill to set them to {AIR_HU}',
                )
        if self._outside:
            findings.error(
                'value_range',
                f'{self._outside:,} voxels are outside 32-bit integers',
                'the file is damaged or holds no CT',
            )


def _target_dtype(header: Header, kind: str) -> np.dtype:
    stored = header.dtype.newbyteorder('=')
    if kind == 'image' and (header.scaling is not None or stored.kind == 'f'):
        return np.dtype(np.float32)  # never float64: eight times the bytes of uint8
    if header.scaling is None and np.can_cast(stored, np.int32):
        return stored
    return np.dtype(np.int32)
