"""Reads and writes safetensors files with NumPy alone, so that no extra is needed to train.

A file is the length of its header (8 bytes, little endian), the header in JSON (name to dtype,
shape and byte range, and `__metadata__` from strings to strings), and the bytes of all arrays.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxquery_jax import files
from maxquery_jax.errors import UserError
from maxquery_jax.files import PathLike

_DTYPES = {
    'F64': np.dtype('<f8'),
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(jnp.bfloat16),
    'I64': np.dtype('<i8'),
    'I32': np.dtype('<i4'),
    'I16': np.dtype('<i2'),
    'I8': np.dtype('i1'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8  # of the first array


class _DamagedError(Exception):
    """What is wrong with a file."""


def read_tensors(path: PathLike, *, fix: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a whole file.

    Args:
        path: of the file.
        fix: what the user can do when it is missing or damaged.

    Returns:
        Name to array (read-only), and the metadata.

    Raises:
        UserError: the file is missing, unreadable or no sound safetensors file.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; {fix}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); {fix}') from error
    try:
        return _parse(content)
    except _DamagedError as error:
        raise UserError(f'{path} is no sound safetensors file ({error}); {fix}') from None


def write_tensors(
    path: PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and metadata whole or not at all; the same input gives the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    header: dict[str, Any] = {'__metadata__': dict(sorted(metadata.items()))}
    offset, parts = 0, []
    for name, array in sorted(tensors.items()):
        dtype = array.dtype.newbyteorder('<') if array.dtype.isbuiltin == 1 else array.dtype
        part = np.ascontiguousarray(array, dtype).tobytes()
        header[name] = {
            'dtype': _NAMES[dtype],
            'shape': list(array.shape),
            'data_offsets': [offset, offset + len(part)],
        }
        offset += len(part)
        parts.append(part)
    encoded = json.dumps(header, separators=(',', ':')).encode()
    encoded += b' ' * (-len(encoded) % _ALIGNMENT)
    files.write_bytes(path, b''.join([len(encoded).to_bytes(8, 'little'), encoded, *parts]))


def _parse(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    start = 8 + int.from_bytes(content[:8], 'little')
    if len(content) < 8 or start > len(content):
        raise _DamagedError('its header is cut off')
    try:
        header = json.loads(content[8:start])
    except (ValueError, RecursionError):
        raise _DamagedError('its header is not JSON') from None
    if not isinstance(header, dict):
        raise _DamagedError('its header is no JSON object')
    metadata = header.pop('__metadata__', None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _DamagedError('its metadata are not strings')
    tensors, ranges = {}, []
    for name, entry in header.items():
        dtype, shape, first, last = _parse_entry(name, entry)
        if start + last > len(content):
            raise _DamagedError(f'{name} is cut off')
        count = math.prod(shape)
        flat = np.frombuffer(content, dtype, count=count, offset=start + first)
        tensors[name] = flat.reshape(shape)
        ranges.append((first, last))
    end = 0
    for first, last in sorted(ranges):
        if first != end:
            raise _DamagedError('its arrays overlap or leave gaps')
        end = last
    if start + end != len(content):
        raise _DamagedError('bytes follow the last array')
    return tensors, metadata


def _parse_entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """dtype, shape, first byte and end of an array, all consistent."""
    try:
        kind, shape, (first, last) = entry['dtype'], tuple(entry['shape']), entry['data_offsets']
        numbers = (*shape, first, last)
    except (TypeError, KeyError, ValueError):
        raise _DamagedError(f'the entry of {name} is not understood') from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _DamagedError(f'the entry of {name} has an odd shape or range')
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _DamagedError(f'{name} has dtype {kind}, which is not supported')
    dtype = _DTYPES[kind]
    if last - first != math.prod(shape) * dtype.itemsize:
        raise _DamagedError(f'the range of {name} does not fit its shape')
    return dtype, shape, first, last
