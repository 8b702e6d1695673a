"""Layout of a patch store: locations, paths, arrays and the checks of both ends.

Shared by the writer and the reader in `data.store`; see there for the layout.
"""

import functools
import json
import os
import pathlib
import urllib.parse
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError

MAX_FOREGROUND = 10_000  # coordinates kept per class and case
ATTRIBUTES = 'maxquery_jax'  # key of our record in a case's group metadata

_CHUNK = (24, 48, 48)  # measured: fastest for crops of 96^3 and 154^3, lz4 decodes 110 kB each
# Measured on CT: decodes faster than lz4 with bitshuffle, for which TensorStore's blosc has no wide
# instructions, images in 0.8 and labels in 0.5 of its time; and images are a tenth smaller.
_LZ4 = {'cname': 'lz4hc', 'clevel': 5}
_MAX_SHARD_BYTES = 2**28  # a shard is written from memory in one piece

Location = str | os.PathLike | Mapping[str, Any]


def kvstore_spec(location: Location) -> dict[str, Any]:
    """TensorStore key-value store of a location, the only place that interprets one.

    Args:
        location: a folder, a URL (`gs://`, `s3://`, `memory://`, `file://`) or a TensorStore
            kvstore spec.

    Raises:
        UserError: if the URL or spec is not understood.
    """
    try:
        if isinstance(location, Mapping):
            spec = ts.KvStore.Spec(dict(location)).to_json()
        elif '://' in str(location):
            spec = ts.KvStore.Spec(str(location)).to_json()
        else:
            spec = {'driver': 'file', 'path': str(pathlib.Path(location).absolute())}
    except ValueError as error:
        raise UserError(
            f'store {location}: not a location TensorStore knows ({first_line(error)}); give a '
            'folder or a URL such as gs://bucket/store'
        ) from error
    path = spec.get('path', '')
    return {**spec, 'path': path if path.endswith('/') or not path else path + '/'}


@functools.cache
def process_context() -> ts.Context:
    """Parent of every store's context, so that `memory://` is one store per process."""
    return ts.Context()


def join(spec: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Key-value store of a path below another."""
    return {**spec, 'path': spec.get('path', '') + path}


def local_folder(spec: Mapping[str, Any]) -> pathlib.Path | None:
    """The folder of a store on a local disk, else None."""
    return pathlib.Path(spec['path']) if spec['driver'] == 'file' else None


def printable(location: Location) -> str:
    """A location as messages show it."""
    return json.dumps(dict(location)) if isinstance(location, Mapping) else str(location)


def first_line(error: Exception) -> str:
    """Start of an error's text, without TensorStore's dump of the spec."""
    return str(error).splitlines()[0].split(' [')[0][:200]


def case_path(case_id: str) -> str:
    """Path of a case inside the store; quoted so that no id can leave its folder."""
    if not case_id:
        raise UserError('a case id must not be empty')
    quoted = urllib.parse.quote(case_id, safe='')
    return f'cases/{"%2E" + quoted[1:] if quoted[0] == "." else quoted}/'


def open_kvstore(spec: Mapping[str, Any], location: str) -> ts.KvStore:
    """Opens a key-value store; UserError if that fails."""
    try:
        return ts.KvStore.open(dict(spec), context=process_context()).result()
    except (ValueError, OSError) as error:
        raise UserError(f'store {location}: cannot be opened ({first_line(error)})') from error


def read_key(kvstore: ts.KvStore, key: str, location: str) -> bytes | None:
    """Value of a key, None if it is absent; UserError if it cannot be read."""
    try:
        result = kvstore.read(key).result()
    except (ValueError, OSError) as error:
        raise UserError(
            f'store {location}: {key} cannot be read ({first_line(error)}); check the path and '
            'its permissions'
        ) from error
    return result.value if result.state == 'value' else None


def brick(shape: Sequence[int]) -> tuple[int, ...]:
    """Inner chunk of a volume: a brick over all channels, no larger than the volume."""
    return (*(min(a, b) for a, b in zip(_CHUNK, shape[:3], strict=True)), *shape[3:])


def _shard(shape: Sequence[int], chunk: Sequence[int], itemsize: int) -> list[int]:
    """The whole array in one shard, split along z where that would be too large."""
    shard = [-(-n // c) * c for n, c in zip(shape, chunk, strict=True)]
    slab = itemsize * int(np.prod(shard[1:])) * chunk[0]
    shard[0] = min(shard[0], max(1, _MAX_SHARD_BYTES // slab) * chunk[0])
    return shard


def write_array(
    spec: Mapping[str, Any], path: str, array: np.ndarray, chunk: Sequence[int]
) -> None:
    """Writes a sharded Zarr v3 array below a store."""
    shuffle = 'noshuffle' if array.itemsize == 1 else 'shuffle'
    inner = [
        {'name': 'bytes', 'configuration': {'endian': 'little'}},
        {'name': 'blosc', 'configuration': {**_LZ4, 'shuffle': shuffle}},
        {'name': 'crc32c'},
    ]
    index = [{'name': 'bytes', 'configuration': {'endian': 'little'}}, {'name': 'crc32c'}]
    sharding = {'chunk_shape': list(chunk), 'codecs': inner, 'index_codecs': index}
    shard = _shard(array.shape, chunk, array.itemsize)
    metadata = {
        'shape': list(array.shape),
        'data_type': array.dtype.name,
        'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': shard}},
        'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
    }
    target = {
        'driver': 'zarr3',
        'kvstore': join(spec, path),
        'metadata': metadata,
        'store_data_equal_to_fill_value': True,  # so that a missing chunk is always damage
    }
    ts.open(target, create=True, context=process_context()).result().write(array).result()


def write_group(kvstore: ts.KvStore, path: str, attributes: Mapping[str, Any]) -> None:
    """Writes the metadata of a Zarr v3 group."""
    group = {'zarr_format': 3, 'node_type': 'group', 'attributes': attributes}
    kvstore.write(path + 'zarr.json', json.dumps(group).encode()).result()


def count_voxels(label: np.ndarray) -> np.ndarray:
    """[256] voxels per id; slice by slice, as bincount widens its input to 64 bits."""
    counts = np.zeros(256, np.int64)
    for plane in label:
        counts += np.bincount(plane.ravel(), minlength=256)
    return counts


def sample_coordinates(label: np.ndarray, class_id: int, case_id: str) -> np.ndarray:
    """Up to MAX_FOREGROUND voxels of a class, drawn from the case's own stream."""
    flat = np.flatnonzero(label == class_id)
    if len(flat) > MAX_FOREGROUND:
        rng = np.random.default_rng([zlib.crc32(case_id.encode()), class_id])
        flat = np.sort(rng.choice(flat, MAX_FOREGROUND, replace=False, shuffle=False))
    return np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32)


def check_arrays(kvstore: ts.KvStore, manifest: Manifest, location: str) -> None:
    """Compares the arrays' metadata of every case with the manifest.

    Raises:
        UserError: naming the first bad case and how many there are.
    """
    problems = []
    cases = list(manifest.cases.items())
    for first in range(0, len(cases), 256):  # overlap the reads, bound the open requests
        pending = []
        for case_id, case in cases[first : first + 256]:
            names = ('', 'image/', 'label/') if case['voxels'] else ('', 'image/')
            reads = [kvstore.read(f'{case_path(case_id)}{n}zarr.json') for n in names]
            pending.append((case_id, case, names, reads))
        for case_id, case, names, reads in pending:
            try:
                contents = [read.result().value for read in reads]
                problem = _check_case(manifest, case, dict(zip(names, contents, strict=True)))
            except (ValueError, KeyError, TypeError, OSError) as error:
                problem = f'has unreadable metadata ({first_line(error)})'
            if problem:
                problems.append(f'case {case_id!r} {problem}')
    if problems:
        more = f' (and {len(problems) - 1} more cases)' if len(problems) > 1 else ''
        raise UserError(
            f'store {location}: {problems[0]}{more}; copy the store again or prepare it again'
        )


def _check_case(manifest: Manifest, case, contents: Mapping[str, bytes]) -> str | None:
    missing = [name.rstrip('/') or 'group' for name, content in contents.items() if not content]
    if missing:
        return f'has no {missing[0]}'
    metadata = {name: json.loads(content) for name, content in contents.items()}
    shape = list(case['shape'])
    expected = {'image/': ([*shape, len(manifest.channels)], 'int16'), 'label/': (shape, 'uint8')}
    for name, (want_shape, want_dtype) in expected.items():
        if name in metadata:
            got = metadata[name]['shape'], metadata[name]['data_type']
            if got != (want_shape, want_dtype):
                return f'has {name[:-1]} {got[0]} {got[1]}, not {want_shape} {want_dtype}'
    written = metadata['']['attributes'][ATTRIBUTES]['voxels']
    if {k: n for k, n in written.items() if n} != {k: n for k, n in case['voxels'].items() if n}:
        return 'has other voxel counts than the manifest'
    return None
