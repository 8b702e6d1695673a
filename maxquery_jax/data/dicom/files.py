"""The files below a folder or inside a .zip, by relative name; nothing is extracted to disk."""

import io
import lzma
import os
import pathlib
import stat
import zipfile
import zlib
from typing import BinaryIO

from maxquery_jax.data.findings import FileError, Findings
from maxquery_jax.data.raw import leaves_folder

# CT compresses two- to fourfold, air and padding included; a member above this is a bomb. Small
# members may be constant slices.
_MAX_RATIO, _SMALL_BYTES = 200, 1 << 20
_MAX_MEMBERS = 200_000
PREAMBLE = 132  # bytes before the first tag, the name DICM at their end
EXTENSIONS = ('.dcm', '.dicom', '.ima')
_BARE_STARTS = (b'\x02\x00', b'\x08\x00')  # groups that may begin a file without a preamble
_ENCRYPTED = 1  # bit of a member's flags
_COPY_AGAIN = 'copy or download the file again'
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # an exotic compression method
    RuntimeError,  # a password, despite the flag
    OSError,
    ValueError,
)


class FolderFiles:
    """Regular files below a folder; hidden ones are left out, links to folders not followed."""

    def __init__(self, path: pathlib.Path, findings: Findings):
        self._path = path
        self._findings = findings
        self.names = tuple(sorted(self._walk()))

    def __enter__(self) -> 'FolderFiles':
        return self

    def __exit__(self, *_) -> None:
        pass

    def _walk(self) -> list[str]:
        names = []
        for folder, subfolders, files in os.walk(self._path, onerror=self._refuse):
            subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
            for name in files:
                path = pathlib.Path(folder, name)
                if _is_hidden(name) or not (path.is_file() or path.is_symlink()):
                    continue
                if not path.exists():
                    raise self._findings.fatal(
                        'missing_file',
                        f'{self._relative(path)} is a link to nothing',
                        'fetch the file it stands for, or remove the link',
                    )
                names.append(self._relative(path))
        return names

    def _relative(self, path: pathlib.Path) -> str:
        return path.relative_to(self._path).as_posix()

    def _refuse(self, error: OSError) -> None:
        raise self._findings.fatal(
            'unreadable', f'{error.filename}: {error.strerror}', 'check links and permissions'
        )

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading.

        Raises:
            FileError: it cannot be opened.
        """
        try:
            return (self._path / name).open('rb')
        except OSError as error:
            raise self._findings.fatal(
                'unreadable', f'{name}: {error.strerror}', 'check links and permissions'
            ) from error

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileError: it cannot be read.
        """
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise self._findings.fatal(
                    'unreadable', f'{name}: {error.strerror}', _COPY_AGAIN
                ) from error

    def start(self, name: str, size: int) -> bytes:
        """The first `size` bytes of a file."""
        with self.open(name) as file:
            return file.read(size)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self._path / name).stat().st_size


class ArchiveFiles:
    """Members of a .zip, read from memory.

    Raises:
        FileError: the archive is damaged or encrypted, a member has an absolute path, climbs with
            `..` or is a link, or the members would unpack to an implausible size.
    """

    def __init__(self, path: pathlib.Path, findings: Findings, max_bytes: int):
        self._findings = findings
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise self._damaged(error) from error
        try:
            members = self._zip.infolist()
            self._check_all(members, max_bytes)
            for member in members:
                self._check(member)
        except FileError:
            self._zip.close()
            raise
        self._members = {
            member.filename: member
            for member in members
            if not member.is_dir() and not any(map(_is_hidden, member.filename.split('/')))
        }
        self.names = tuple(sorted(self._members))

    def __enter__(self) -> 'ArchiveFiles':
        return self

    def __exit__(self, *_) -> None:
        self._zip.close()

    def _check_all(self, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
        if len(members) > _MAX_MEMBERS:
            raise self._unsafe(f'{len(members):,} members', 'give one study per archive')
        unpacked = sum(member.file_size for member in members)
        if unpacked > max_bytes:
            raise self._findings.fatal(
                'too_large',
                f'unpacks to {unpacked / 2**30:.2f} GiB, the limit is {max_bytes / 2**30:.2f} GiB',
                'give one series per archive, or more memory',
            )

    def _check(self, member: zipfile.ZipInfo) -> None:
        name = ascii(member.filename)
        if leaves_folder(member.filename) or '\\' in member.filename:
            raise self._unsafe(f'member {name} leaves the archive')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise self._unsafe(f'member {name} is a link')
        if member.flag_bits & _ENCRYPTED:
            raise self._unsafe(f'member {name} is encrypted', 'unpack it with its password')
        if member.file_size > max(_SMALL_BYTES, _MAX_RATIO * member.compress_size):
            raise self._unsafe(
                f'member {name} unpacks from {member.compress_size:,} to {member.file_size:,} bytes'
            )

    def _unsafe(self, value: str, fix: str = 'pack the DICOM folder again') -> FileError:
        return self._findings.fatal('archive', value, fix)

    def _damaged(self, error: Exception) -> FileError:
        if isinstance(error, FileNotFoundError):
            return self._findings.fatal('missing_file', 'does not exist', 'check the path')
        if isinstance(error, OSError) and error.strerror:
            return self._findings.fatal('unreadable', error.strerror, 'check permissions')
        return self._findings.fatal('archive', f'damaged ({type(error).__name__})', _COPY_AGAIN)

    def open(self, name: str) -> BinaryIO:
        """A member's bytes as a file."""
        return io.BytesIO(self.read(name))

    def read(self, name: str) -> bytes:
        """All bytes of a member, checked against its checksum.

        Raises:
            FileError: the member is damaged.
        """
        return self._read(name, -1)

    def start(self, name: str, size: int) -> bytes:
        """The first `size` bytes of a member."""
        return self._read(name, size)

    def _read(self, name: str, size: int) -> bytes:
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(size)
        except _ZIP_ERRORS as error:
            raise self._damaged(error) from error

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._members[name].file_size


def open_files(
    path: pathlib.Path, findings: Findings, max_bytes: int
) -> FolderFiles | ArchiveFiles:
    """Lists the files of a folder or a .zip.

    Args:
        path: of the folder or archive.
        findings: names the path in errors.
        max_bytes: largest unpacked size of an archive.

    Raises:
        FileError: absent, unreadable, damaged or unsafe.
    """
    if path.is_dir():
        return FolderFiles(path, findings)
    return ArchiveFiles(path, findings, max_bytes)


def holds_dicom(folder: pathlib.Path, *, at_any_depth: bool = False) -> bool:
    """Whether a folder holds a DICOM file; only visible files count."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return False
    visible = [path for path in entries if not _is_hidden(path.name)]
    if any(path.is_file() and _is_dicom_file(path) for path in visible):
        return True
    return at_any_depth and any(
        holds_dicom(path, at_any_depth=True)
        for path in visible
        if path.is_dir() and not path.is_symlink()
    )


def _is_dicom_file(path: pathlib.Path) -> bool:
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with path.open('rb') as file:
            return is_dicom(file.read(PREAMBLE))
    except OSError:
        return False


def is_dicom(start: bytes) -> bool:
    """Whether a file's first `PREAMBLE` bytes are those of a DICOM file."""
    return start[128:132] == b'DICM' or start[:2] in _BARE_STARTS


def _is_hidden(name: str) -> bool:
    return name.startswith('.') or name == '__MACOSX'
