"""Whole-or-nothing writing and reading of the small files of a report."""

import contextlib
import json
import os
import pathlib
from typing import Any

from maxquery_jax.errors import UserError


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name in its folder, then renames it.

    Raises:
        UserError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f'{path} cannot be written ({error.strerror}); give another --output'
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def read_json(path: str | os.PathLike[str], *, fix: str) -> dict[str, Any]:
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
    except ValueError as error:
        raise UserError(f'{path} is not JSON ({error}); {fix}') from error
    if not isinstance(data, dict):
        raise UserError(f'{path} holds no JSON object; {fix}')
    return data
