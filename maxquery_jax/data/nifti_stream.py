"""The bytes of a .nii or .nii.gz file: decompressed, verified to the end, hashed."""

import hashlib
import io
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator

from maxquery_jax.data.findings import FileError, Findings
from maxquery_jax.data.nifti_header import show

COPY_AGAIN = 'copy or download the file again'
_CHUNK_BYTES = 1 << 20
_MAX_REST = 64 * 2**20  # bytes after the last voxel
_DEFLATE_RATIO = 1032  # no deflate stream expands further


class Stream:
    """The decompressed bytes of a file, hashed and counted as they pass."""

    def __init__(self, path: pathlib.Path, file: io.BufferedReader, findings: Findings):
        self.findings = findings
        self.file_size = os.fstat(file.fileno()).st_size
        self._file = file
        self._sha256 = hashlib.sha256()
        self._pending = memoryview(b'')
        start = file.peek(32)[:32]
        is_gzip = start[:2] == b'\x1f\x8b'
        _check_name(path, start, is_gzip, findings)
        self._chunks = self._inflate() if is_gzip else self._raw()
        self.size_limit = self.file_size * (_DEFLATE_RATIO if is_gzip else 1)

    def __enter__(self) -> 'Stream':
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far."""
        return self._sha256.hexdigest()

    def readinto(self, target: memoryview) -> int:
        """Fills `target`; returns fewer bytes only at the end of the data."""
        filled = 0
        while filled < len(target):
            if not self._pending:
                self._pending = memoryview(next(self._chunks, b''))
                if not self._pending:
                    break
            piece = self._pending[: len(target) - filled]
            target[filled : filled + len(piece)] = piece
            self._pending = self._pending[len(piece) :]
            filled += len(piece)
        return filled

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        target = bytearray(size)
        return bytes(target[: self.readinto(memoryview(target))])

    def drain(self) -> tuple[int, bool]:
        """Reads to the end, which checks the checksum.

        Returns:
            Number of bytes left, and whether one of them is not zero.

        Raises:
            FileError: they are damaged, or too many to be padding.
        """
        left, is_data = len(self._pending), _holds_data(self._pending)
        self._pending = memoryview(b'')
        for chunk in self._chunks:
            left += len(chunk)
            is_data = is_data or _holds_data(chunk)
            if left > _MAX_REST:  # a small file can decompress to terabytes
                raise self.findings.fatal(
                    'trailing_bytes',
                    f'over {_MAX_REST:,} bytes follow the last voxel',
                    'the shape in the header is wrong, or the file is no scan: export it again',
                )
        return left, is_data

    def _raw(self) -> Iterator[bytes]:
        try:
            while data := self._file.read(_CHUNK_BYTES):
                self._sha256.update(data)
                yield data
        except OSError as error:
            raise self.findings.fatal(
                'unreadable', error.strerror or str(error), COPY_AGAIN
            ) from error

    def _inflate(self) -> Iterator[bytes]:
        inflate, done = zlib.decompressobj(31), 0
        for data in self._raw():
            while data:
                if inflate.eof:  # a further member, or the zeros that pad a tape block
                    data = data.lstrip(b'\0')
                    if not data:
                        break
                    inflate = zlib.decompressobj(31)
                try:
                    piece = inflate.decompress(data, _CHUNK_BYTES)
                except zlib.error as error:
                    raise self.findings.fatal(
                        'corrupt',
                        f'gzip data damaged after {done:,} decompressed bytes ({error})',
                        COPY_AGAIN,
                    ) from error
                done += len(piece)
                data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                if piece:
                    yield piece
        if not inflate.eof:
            raise self.findings.fatal(
                'truncated',
                f'the gzip stream of {self.file_size:,} bytes stops after '
                f'{done:,} decompressed bytes',
                COPY_AGAIN,
            )


def _holds_data(piece: bytes | memoryview) -> bool:
    return bool(bytes(piece).strip(b'\0'))


def open_stream(path: str | os.PathLike, findings: Findings) -> Stream:
    """Opens a file by its name and first bytes.

    Raises:
        FileError: it is absent, cannot be opened, or is not what its name says.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise findings.fatal('unreadable', 'is a folder', 'give a .nii or .nii.gz file')
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for ever
            raise findings.fatal('unreadable', 'is a pipe or a device', 'give a real file')
        file = path.open('rb')
    except FileNotFoundError:
        raise findings.fatal('missing_file', 'does not exist', 'check the path') from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: loop, Python < 3.13
        reason = getattr(error, 'strerror', None) or str(error)
        raise findings.fatal('unreadable', reason, 'check links and permissions') from error
    try:
        return Stream(path, file, findings)
    except FileError:
        file.close()
        raise


def _check_name(path: pathlib.Path, start: bytes, is_gzip: bool, findings: Findings) -> None:
    name = path.name.lower()
    if not name.endswith(('.nii', '.nii.gz')):
        raise findings.fatal(
            'format',
            f'{path.suffix or "no"} extension',
            'give .nii or .nii.gz; convert others with SimpleITK or dcm2niix',
        )
    if start.startswith(b'version https://git-'):
        raise findings.fatal('format', 'a Git LFS pointer, not the data', 'run "git lfs pull"')
    if name.endswith('.gz') and not is_gzip:
        raise findings.fatal(
            'format',
            f'not a gzip file (starts with {show(start)})',
            COPY_AGAIN + ', or rename it if it is an uncompressed .nii',
        )
    if name.endswith('.nii') and is_gzip:
        raise findings.fatal('format', 'is compressed', 'rename it to .nii.gz')
