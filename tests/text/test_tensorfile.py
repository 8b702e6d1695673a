"""Oracle: the peer's package `safetensors`, which wrote tests/golden/bert and reads our files."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.text.tensorfile import read_tensors, write_tensors

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'bert' / 'model.safetensors'


def tensors():
    rng = np.random.default_rng(0)
    return {
        'b': rng.standard_normal((3, 4)).astype(np.float32),
        'a': rng.integers(0, 9, (2, 0, 5)),
        'scalar': np.array(2.5, np.float16),
        'half': np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)),
        'flag': np.array([True, False]),
    }


def test_round_trip_and_same_bytes(tmp_path):
    write_tensors(tmp_path / 'x', tensors(), {'k': 'é', 'a': ''})
    write_tensors(tmp_path / 'y', dict(reversed(tensors().items())), {'a': '', 'k': 'é'})
    assert (tmp_path / 'x').read_bytes() == (tmp_path / 'y').read_bytes()
    loaded, metadata = read_tensors(tmp_path / 'x', fix='')
    assert metadata == {'k': 'é', 'a': ''}
    assert set(loaded) == set(tensors())
    for name, array in tensors().items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_peer_reads_ours_and_we_read_the_peers(tmp_path):
    peer = pytest.importorskip('safetensors.numpy')
    write_tensors(tmp_path / 'x', tensors(), {'k': 'v'})
    loaded = peer.load_file(tmp_path / 'x')
    for name, array in tensors().items():
        np.testing.assert_array_equal(np.asarray(loaded[name], array.dtype), array)
    theirs, ours = peer.load_file(GOLDEN), read_tensors(GOLDEN, fix='')[0]
    assert set(theirs) == set(ours)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def encode(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


def entry(shape, first, last, dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [first, last]}


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (b'', 'cut off'),
        (b'\xff' * 8 + b'{}', 'cut off'),
        (encode(b'{', b''), 'not JSON'),
        (encode(b'[]', b''), 'no JSON object'),
        (encode({'__metadata__': {'a': 1}}, b''), 'metadata'),
        (encode({'x': 3}, b''), 'entry of x'),
        (encode({'x': entry([2], 0, 8)}, b'\0' * 7), 'x is cut off'),
        (encode({'x': entry([2], 0, 8)}, b'\0' * 9), 'bytes follow'),
        (encode({'x': entry([3], 0, 8)}, b'\0' * 8), 'does not fit its shape'),
        (encode({'x': entry([-2], 0, 8)}, b'\0' * 8), 'odd shape'),
        (encode({'x': entry([1], 0, 1, 'F8_E4M3')}, b'\0'), 'F8_E4M3'),
        (encode({'x': entry([2], 0, 8), 'y': entry([1], 4, 8)}, b'\0' * 8), 'overlap'),
        (encode({'x': entry([1], 0, 4), 'y': entry([1], 8, 12)}, b'\0' * 12), 'gaps'),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, problem):
    (tmp_path / 'x').write_bytes(content)
    with pytest.raises(UserError, match=f'x is no sound safetensors file .*{problem}.*; mend'):
        read_tensors(tmp_path / 'x', fix='mend it')


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match='does not exist; mend'):
        read_tensors(tmp_path / 'x', fix='mend it')
    with pytest.raises(UserError, match='cannot be read'):
        read_tensors(tmp_path, fix='mend it')
