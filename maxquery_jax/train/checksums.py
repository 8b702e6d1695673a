"""Sizes and checksums of the files of a folder, so that damage is found before they are used."""

import json
import os
import pathlib
import zlib
from collections.abc import Iterator

from maxquery_jax.files import write_json

FILE = 'checksums.json'

_BLOCK = 2**22


def write_checksums(folder: pathlib.Path) -> None:
    """Reads all files below a folder and writes their sizes and CRC-32 into it.

    Raises:
        OSError: a file cannot be read.
        UserError: the list cannot be written.
    """
    found = {name: _measure(folder / name) for name in sorted(_names(folder))}
    write_json(folder / FILE, {'files': found})


def find_damage(folder: pathlib.Path) -> str:
    """What is wrong with a folder that `write_checksums` vouched for.

    A folder without a list, as a kill right after a save leaves it, is trusted unless it is empty.

    Returns:
        A few words, empty if nothing is wrong.
    """
    try:
        names = set(_names(folder))
        if not names:
            return 'the folder is empty'
        if not (folder / FILE).is_file():
            return ''
        expected = json.loads((folder / FILE).read_bytes())['files']
        for name, (size, checksum) in expected.items():
            if name not in names:
                return f'the file {name} is missing'
            actual = _measure(folder / name)
            if actual != [size, checksum]:
                what = f'has {actual[0]} of {size} bytes' if actual[0] != size else 'is corrupt'
                return f'the file {name} {what}'
    except OSError as error:
        return f'{error.filename}: {error.strerror}'
    except (ValueError, KeyError, TypeError, AttributeError):
        return f'the file {FILE} is corrupt'
    return ''


def _names(folder: pathlib.Path) -> Iterator[str]:
    """Files below a folder, but for the list itself."""
    for path, _, files in os.walk(folder):
        for file in files:
            name = str((pathlib.Path(path) / file).relative_to(folder))
            if name != FILE:
                yield name


def _measure(file: pathlib.Path) -> list[int]:
    """Size in bytes and CRC-32."""
    size = checksum = 0
    with file.open('rb') as content:
        while block := content.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
