"""Damage at random: one clear line, or what the bytes say; no trace, no hang, no silence.

A `.nii.gz` carries a checksum of its whole content, so every truncation and every flip is either
found or changes nothing. A bare `.nii` has no checksum: a flipped voxel is a valid file with
another voxel, which no reader can know. There only truncation and header bytes are damaged, and
what differs from the original must be reported.
"""

import collections
import gzip
import signal
import struct

import nibabel as nib
import nifti_helper as helper
import numpy as np
import pytest

from maxquery_jax.data import nifti
from maxquery_jax.data.nifti_header import AFFINE_TOLERANCE_MM, corner_distance
from maxquery_jax.errors import UserError

TRIES = 500
SECONDS = 20  # for one read; they take milliseconds
IMAGE = helper.hu_volume((20, 18, 16))
LABEL = np.zeros(IMAGE.shape, np.uint8)
LABEL[4:9, 5:11, 3:7] = 2
AFFINE = helper.affine_of((0.8, 0.8, 2.5), 'RAS', (-100, -80, 300))
GEOMETRY = {'qform_code': 1, 'quatern': (0, 0, 0), 'qoffset': (-100, -80, 300)}


@pytest.fixture
def limited():
    """Turns a read that hangs into a failure."""

    def stop(*_):
        raise TimeoutError(f'reading took over {SECONDS} s')

    previous = signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def attempt(path, data, reader, limited):
    """The volume, or None after checking that the error is one line about this file."""
    path.write_bytes(data)
    limited()
    try:
        return reader(path, max_bytes=1 << 24)
    except UserError as error:
        message = str(error)
        assert message.startswith(f'{path}: ') and '\n' not in message and message.isprintable()
        return None


def sources(array):
    """A plain gzip file, one with a name and time, and one of several members."""
    data = helper.nifti_bytes(array, AFFINE, **GEOMETRY)
    parts = [data[i : i + 4001] for i in range(0, len(data), 4001)]
    named = bytearray(gzip.compress(data, 6))
    named[3] |= 8  # FNAME: a name follows the ten bytes of the header
    named[10:10] = b'scan.nii\0'
    return [gzip.compress(data, 1), bytes(named), b''.join(gzip.compress(p, 9) for p in parts)]


def damage(data, rng):
    """Cuts the file, flips one bit or overwrites a few bytes."""
    kind = rng.choice(['cut', 'flip', 'overwrite'])
    position = int(rng.integers(len(data)))
    if rng.random() < 0.25:  # the header and the trailer are small; visit them often
        position = int(rng.choice([*range(20), *range(len(data) - 12, len(data))]))
    if kind == 'cut':
        return data[:position]
    damaged = bytearray(data)
    if kind == 'flip':
        damaged[position] ^= 1 << int(rng.integers(8))
    else:
        length = min(int(rng.integers(1, 9)), len(data) - position)
        damaged[position : position + length] = rng.bytes(length)
    return bytes(damaged)


@pytest.mark.parametrize('kind', ['image', 'label'])
def test_damaged_gzip_is_found_or_harmless(kind, tmp_path, limited):
    rng = np.random.default_rng(11)
    array, reader = {
        'image': (IMAGE, nifti.read_image),
        'label': (LABEL, nifti.read_label),
    }[kind]
    files = sources(array)
    outcomes = collections.Counter()
    for number in range(TRIES // 2):
        original = files[number % len(files)]
        damaged = damage(original, rng)
        volume = attempt(tmp_path / 'a.nii.gz', damaged, reader, limited)
        outcomes[volume is None] += 1
        if volume is not None:
            assert len(damaged) == len(original)  # every truncation is found
            np.testing.assert_array_equal(volume.array, array)
            np.testing.assert_allclose(volume.header.affine, AFFINE, atol=1e-6)
            assert not volume.issues
    assert outcomes[True] > TRIES // 4 and outcomes[False] > 5


def test_every_truncation_of_a_bare_file_is_found(tmp_path, limited):
    rng = np.random.default_rng(12)
    data = helper.nifti_bytes(IMAGE, AFFINE, **GEOMETRY)
    cuts = {*range(356), *(len(data) - n for n in range(1, 20))}
    cuts |= {int(n) for n in rng.integers(356, len(data), TRIES - len(cuts))}
    for cut in sorted(cuts):
        assert attempt(tmp_path / 'a.nii', data[:cut], nifti.read_image, limited) is None


def declared(data):
    """What a header declares, by the standard: voxels and affine."""
    shape = struct.unpack_from('<3h', data, 42)
    code, offset = struct.unpack_from('<h', data, 70)[0], struct.unpack_from('<f', data, 108)[0]
    dtype = {v: k for k, v in helper.CODES.items()}[code]
    flat = np.frombuffer(data, np.dtype(dtype).newbyteorder('<'), np.prod(shape), int(offset))
    array = flat.reshape(shape, order='F')
    slope, inter = struct.unpack_from('<2f', data, 112)
    if slope != 0 and not np.isnan(slope):
        array = (array * np.float64(slope) + inter).astype(np.float32)
    if struct.unpack_from('<h', data, 254)[0] > 0:
        affine = np.vstack(
            [np.reshape(struct.unpack_from('<12f', data, 280), (3, 4)), [0, 0, 0, 1]]
        )
    else:
        affine = nib.Nifti1Header(data[:348], check=False).get_qform()
    return array, affine


def test_damaged_header_is_found_or_harmless_or_reported(tmp_path, limited):
    """Every bit of the header that matters, then bytes at random."""
    rng = np.random.default_rng(13)
    data = helper.nifti_bytes(IMAGE, AFFINE, **GEOMETRY)
    outcomes = collections.Counter()
    ignored = [
        *range(4, 40),
        *range(116, 123),
        *range(124, 252),
        *range(328, 344),
        *range(348, 352),
    ]
    tries = [(p, data[p] ^ (1 << b)) for p in range(352) if p not in ignored for b in range(8)]
    tries += [(int(p), int(rng.integers(256))) for p in rng.choice(ignored, TRIES // 5)]
    for position, value in tries:
        damaged = bytearray(data)
        damaged[position] = value
        volume = attempt(tmp_path / 'a.nii', bytes(damaged), nifti.read_image, limited)
        if volume is None:
            outcomes['found'] += 1
            continue
        array, affine = declared(bytes(damaged))
        np.testing.assert_allclose(volume.array, array, rtol=1e-6)
        np.testing.assert_allclose(volume.header.affine, affine, atol=1e-5)
        is_same = volume.array.shape == IMAGE.shape and np.array_equal(volume.array, IMAGE)
        moved = corner_distance(volume.header.affine, AFFINE, IMAGE.shape)
        if is_same and moved <= 2 * AFFINE_TOLERANCE_MM:
            outcomes['harmless'] += 1
        else:
            outcomes['reported'] += 1  # as scl_slope = 2, a lawful header
            assert volume.issues or volume.header.scaling, (position, value)
    assert outcomes['found'] > 500 and outcomes['harmless'] > 300 and outcomes['reported']


def test_a_header_of_noise_raises_nothing_else(tmp_path, limited):
    rng = np.random.default_rng(8)
    data = helper.nifti_bytes(IMAGE, AFFINE, **GEOMETRY)
    for number in range(TRIES):
        damaged = bytearray(data)
        for position in rng.integers(0, 352, 1 + number % 6):
            damaged[position] = rng.integers(256)
        volume = attempt(tmp_path / 'a.nii', bytes(damaged), nifti.read_image, limited)
        if volume is not None:
            nifti.to_canonical(volume)
