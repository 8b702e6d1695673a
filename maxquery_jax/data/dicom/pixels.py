"""Voxels of a stack of slices: decoded, rescaled to HU, written into one array.

Stored values become HU by each slice's own rescale slope and intercept (PS3.3 C.11.1). Pixels
that the scanner marked as padding (PS3.3 C.7.5.1.1.2) become air where the mark cannot be tissue.
"""

import collections
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np

from maxquery_jax.data.dicom.files import ArchiveFiles, FolderFiles
from maxquery_jax.data.dicom.geometry import Stack
from maxquery_jax.data.dicom.library import quiet, require
from maxquery_jax.data.dicom.slices import Slice
from maxquery_jax.data.findings import FileError, Findings
from maxquery_jax.data.nifti import AIR_HU

_INT16 = np.iinfo(np.int16)
_LEAST_HU, _MOST_HU = -990, 3071  # what a measurement in the body may be; padding lies outside
_MAX_SCALE = 1e6
_UNPACK = {  # encodings that pydicom does not decode by itself: what does
    '1.2.840.10008.1.2.4.57': 'pylibjpeg pylibjpeg-libjpeg',
    '1.2.840.10008.1.2.4.70': 'pylibjpeg pylibjpeg-libjpeg',
    '1.2.840.10008.1.2.4.80': 'pyjpegls',
    '1.2.840.10008.1.2.4.81': 'pyjpegls',
    '1.2.840.10008.1.2.4.90': 'pillow',
    '1.2.840.10008.1.2.4.91': 'pillow',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Voxels:
    """What was read.

    Attributes:
        array: [i, j, k] HU, int16, or int32 or float32 where 16 bits do not hold it.
        sha256: of the files' own hashes, in the order of the hashed SOPInstanceUIDs.
        minimum: smallest value.
        maximum: largest value.
        is_fractional: whether any value is not a whole number.
    """

    array: np.ndarray
    sha256: str
    minimum: float
    maximum: float
    is_fractional: bool


def voxel_dtype(stack: Stack) -> np.dtype:
    """int16 where slopes and intercepts are whole numbers, else float32."""
    numbers = {n for s in stack.slices for n in (s.slope or 1.0, s.intercept or 0.0)}
    return np.dtype(np.int16 if all(n == int(n) for n in numbers) else np.float32)


def check_scaling(stack: Stack, findings: Findings) -> None:
    """Judges the rescale tags.

    Raises:
        FileError: a slope or intercept that no CT has.
    """
    for item in stack.slices:
        if item.slope is None or item.intercept is None:
            findings.error(
                'scaling',
                f'{item.file}: no usable RescaleSlope and RescaleIntercept',
                'export the series with them; --allow=scaling takes the stored values as HU',
            )
            return
        if not (0 < abs(item.slope) < _MAX_SCALE and abs(item.intercept) < _MAX_SCALE):
            raise findings.fatal(
                'scaling',
                f'{item.file}: slope {item.slope:g}, intercept {item.intercept:g}',
                'export the series again',
            )


def check_decoders(stack: Stack, findings: Findings) -> None:
    """Makes sure that every encoding of the stack can be read here.

    Raises:
        FileError: `dicom_syntax`, with what to install.
    """
    decoders = require('pydicom.pixels', 'reading DICOM')
    uids = require('pydicom.uid', 'reading DICOM')
    for syntax in {item.syntax for item in stack.slices}:
        with quiet():
            name = uids.UID(syntax).name if uids.UID(syntax).is_transfer_syntax else syntax
            try:
                is_readable = decoders.get_decoder(syntax).is_available
            except (NotImplementedError, ValueError):
                is_readable = False
        if not is_readable:
            package = _UNPACK.get(syntax)
            fix = 'convert the series to an uncompressed encoding, as with gdcmconv --raw'
            fix = f'pip install {package}, or {fix}' if package else fix
            raise findings.fatal('dicom_syntax', f'encoded as {name[:80]!a}', fix)


def read_voxels(
    files: FolderFiles | ArchiveFiles, stack: Stack, findings: Findings, *, max_bytes: int
) -> Voxels:
    """Reads all slices of a stack.

    Args:
        files: that hold them.
        stack: their order.
        findings: receives warnings.
        max_bytes: largest array to allocate.

    Raises:
        FileError: a file is damaged or cannot be decoded, the array is too large, or two slices
            at one place differ.
    """
    check_decoders(stack, findings)
    target = _allocate(stack, findings, max_bytes)
    reader = _Reader(files, stack, findings)
    low, high, is_fractional = np.inf, -np.inf, False
    for k, values in reader.run():
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if target.dtype == np.int16 and (low < _INT16.min or high > _INT16.max):
            target = target.astype(np.int32)  # rare: the stored type had room for more than CT has
        if not is_fractional and values.dtype.kind == 'f':
            is_fractional = bool((values != np.rint(values)).any())
        target[k] = values
    reader.report()
    array = target.transpose(2, 1, 0)  # [slice, row, column] to [i, j, k]
    return Voxels(array, reader.sha256, low, high, is_fractional)


def hash_files(files: FolderFiles | ArchiveFiles, stack: Stack) -> str:
    """The `sha256` that `read_voxels` gives, without decoding anything."""
    digests = {
        item.file: (item.sop_uid, hashlib.sha256(files.read(item.file)).digest())
        for item in _one_per_file(stack)
    }
    return _combine(digests.values())


def _one_per_file(stack: Stack) -> list[Slice]:
    return list({item.file: item for item in stack.slices}.values())


def _combine(digests: Any) -> str:
    keyed = sorted((hashlib.sha256(uid.encode()).digest(), digest) for uid, digest in digests)
    return hashlib.sha256(b''.join(digest for _, digest in keyed)).hexdigest()


def _allocate(stack: Stack, findings: Findings, max_bytes: int) -> np.ndarray:
    columns, rows, count = stack.shape
    dtype = voxel_dtype(stack)
    needed = columns * rows * count * dtype.itemsize
    if needed > max_bytes:
        raise findings.fatal(
            'too_large',
            f'shape {stack.shape} needs {needed / 2**30:.2f} GiB, the limit is '
            f'{max_bytes / 2**30:.2f} GiB',
            'crop the scan, or use fewer workers or more memory',
        )
    try:
        return np.empty((count, rows, columns), dtype)
    except MemoryError:
        raise findings.fatal(
            'too_large', f'no memory for {needed:,} bytes', 'close other programs'
        ) from None


class _Reader:
    """Decodes the files of a stack one after the other."""

    def __init__(self, files: FolderFiles | ArchiveFiles, stack: Stack, findings: Findings):
        self._files = files
        self._stack = stack
        self._findings = findings
        self._digests: dict[str, tuple[str, bytes]] = {}
        self._tissue_padding: set[float] = set()
        self._num_equal = 0

    @property
    def sha256(self) -> str:
        """Of the files read."""
        return _combine(self._digests.values())

    def run(self):
        """Yields (k, HU [rows, columns])."""
        by_file: dict[str, list[tuple[int, Slice]]] = collections.defaultdict(list)
        for k, item in enumerate(self._stack.slices):
            by_file[item.file].append((k, item))
        for name, entries in by_file.items():
            data = self._files.read(name)
            self._digests[name] = entries[0][1].sop_uid, hashlib.sha256(data).digest()
            dataset = self._parse(data, name)
            for k, item in entries:
                values = self._decode(dataset, item)
                self._compare(k, values)
                yield k, values

    def report(self) -> None:
        """Records what was noticed on the way."""
        if self._num_equal:
            self._findings.warn(
                'dicom_duplicate',
                f'{self._num_equal} slices were there twice, with equal voxels',
                'one of each is used; nothing to do',
            )
        for value in sorted(self._tissue_padding):
            self._findings.warn(
                'hu_suspicious',
                f'padding is marked by {value:g} HU, which tissue may have',
                'left as it is; look at a picture of the scan',
            )

    def _compare(self, k: int, values: np.ndarray) -> None:
        for other in self._stack.duplicates.get(k, ()):
            again = self._decode(self._parse(self._files.read(other.file), other.file), other)
            if not np.array_equal(values, again):
                raise self._findings.fatal(
                    'dicom_duplicate',
                    f'{self._stack.slices[k].file} and {other.file} lie at one place and differ',
                    'take the phases or reconstructions apart into folders',
                )
            self._num_equal += 1

    def _parse(self, data: bytes, name: str) -> Any:
        pydicom = require('pydicom', 'reading DICOM')
        try:
            with quiet():
                return pydicom.dcmread(io.BytesIO(data), force=True)
        except Exception as error:  # see slices.parse_slices
            raise self._broken(name, error) from None

    def _broken(self, name: str, error: Exception) -> FileError:
        return self._findings.fatal(
            'corrupt',
            f'{name}: voxels cannot be decoded ({type(error).__name__})',
            'export it again',
        )

    def _decode(self, dataset: Any, item: Slice) -> np.ndarray:
        """HU [rows, columns] of one frame."""
        self._require_length(dataset, item)
        decoders = require('pydicom.pixels', 'reading DICOM')
        try:
            with quiet():
                if not getattr(dataset.file_meta, 'TransferSyntaxUID', None):
                    dataset.file_meta.TransferSyntaxUID = item.syntax
                if not dataset.get('PhotometricInterpretation'):
                    dataset.PhotometricInterpretation = 'MONOCHROME2'
                index = item.frame if item.num_frames > 1 else None
                stored = decoders.pixel_array(dataset, index=index)
        except Exception as error:  # plugins of any origin decode here
            raise self._broken(item.file, error) from None
        columns, rows = item.shape
        if stored.shape != (rows, columns):
            raise self._findings.fatal(
                'dicom_geometry',
                f'{item.file}: image of {stored.shape}, the header says {(rows, columns)}',
                'export it again',
            )
        return self._rescale(stored, item)

    def _require_length(self, dataset: Any, item: Slice) -> None:
        pixels = dataset.get('PixelData')
        columns, rows = item.shape
        is_native = item.syntax in ('1.2.840.10008.1.2', '1.2.840.10008.1.2.1')
        promised = columns * rows * item.num_frames * item.bits[0] // 8 if is_native else 1
        if pixels is None or len(pixels) < promised:
            raise self._findings.fatal(
                'truncated',
                f'{item.file}: {len(pixels or b""):,} of {promised:,} voxel bytes',
                'copy or export it again',
            )

    def _rescale(self, stored: np.ndarray, item: Slice) -> np.ndarray:
        slope, intercept = item.slope or 1.0, item.intercept or 0.0
        if stored.dtype.kind in 'iu' and slope == int(slope) and intercept == int(intercept):
            values = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32)
            values = values * int(slope) + int(intercept)
        else:
            values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        if item.padding is not None:
            marked = (stored >= item.padding[0]) & (stored <= item.padding[1])
            for edge in {n * slope + intercept for n in item.padding}:
                if _LEAST_HU <= edge <= _MOST_HU:
                    if marked.any():
                        self._tissue_padding.add(edge)
                    return values
            values[marked] = AIR_HU
        return values
