"""Files that appear whole or not at all, and JSON objects that are checked when they are read.

A file is written under a temporary name in its own folder and renamed when it is complete, so
that a kill or a full disk never leaves half of one behind under its real name.
"""

import contextlib
import errno
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from maxquery_jax.errors import UserError

PathLike = str | os.PathLike[str]

_FIXES = {
    errno.ENOSPC: 'free disk space or choose another folder',
    errno.EDQUOT: 'free space of your quota or choose another folder',
    errno.EACCES: 'mend its permissions or choose another folder',
    errno.EPERM: 'mend its permissions or choose another folder',
    errno.EROFS: 'choose a folder that is not read-only',
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.ENOTDIR: 'one of its folders is a file; choose another folder',
    errno.EEXIST: 'one of its folders is a file; choose another folder',
    errno.EISDIR: 'a folder has that name; choose another name',
}
# Not ENOENT and its like: a path that we made up wrongly is a bug.
_SYSTEM = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
)  # fmt: skip


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when, and only when, the block succeeds.

    Folders on the way are made. A file that was there stays as it was if the block fails. The
    block may write to the file and compute, but read no other file: any `OSError` in it is taken
    for a failed write.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    # Not the process id alone: hosts that share a folder may have the same.
    part = path.with_name(f'.{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            yield file
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text whole or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """Writes JSON whole or not at all; see `replacing`."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def read_json(path: PathLike, *, fix: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file.
        fix: what the user can do when it is missing or damaged.

    Raises:
        UserError: the file is missing, unreadable or not a JSON object.
    """
    path = pathlib.Path(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; {fix}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); {fix}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON ({error}); {fix}') from error
    if not isinstance(data, dict):
        raise UserError(f'{path} holds no JSON object; {fix}')
    return data


def explain(error: OSError) -> UserError | None:
    """One line about an error of the system that only its user can mend; None for any other."""
    if error.filename is None or error.errno not in _SYSTEM:
        return None
    fix = _FIXES.get(error.errno, 'check links and mounts')
    return UserError(f'{error.filename}: {error.strerror}; {fix}')


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    fix = _FIXES.get(error.errno or 0, 'choose another folder')
    return UserError(f'{path}: cannot be written ({error.strerror or error}); {fix}')
