"""Tiles shared out to the devices of a host give what one device gives."""

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from threshold_model import make_threshold_model, phantom_hu, save_scan

from maxquery_jax.inference.predict import default_batch_size, predict
from maxquery_jax.inference.tile_program import TileProgram

PATCH = (4, 6, 8)
NAMES = ('query_logit',)


@pytest.fixture(scope='module')
def params():
    draw = np.random.default_rng(0).normal
    return {'kernel': jnp.asarray(0.2 * draw(size=(3, 3, 3, 2, 5)), jnp.float32)}


def forward(params, tiles):
    """A network whose answer at a voxel depends on its whole tile, and on no other tile."""
    x = tiles.astype(jnp.float32) / 100
    x = jax.lax.conv_general_dilated(
        x, params['kernel'], (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
    )
    x = jax.nn.relu(x - x.mean(axis=(1, 2, 3), keepdims=True))
    return x, {'query_logit': -x.max(axis=-1)}


def _program(count, **options):
    return TileProgram(forward, NAMES, PATCH, devices=jax.local_devices()[:count], **options)


@pytest.fixture(scope='module')
def tiles():
    return np.random.default_rng(1).integers(-200, 300, (6, *PATCH, 2)).astype(np.int16)


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize(('count', 'used'), [(2, 2), (4, 3), (8, 6)])
def test_devices_share_the_tiles_and_change_nothing(params, tiles, count, used, mirror):
    one = np.asarray(_program(1, mirror=mirror)(params, tiles))
    found = _program(count, mirror=mirror)(params, tiles)
    assert len(found.sharding.device_set) == used
    np.testing.assert_allclose(found, one, rtol=1e-6, atol=1e-6)


def test_nothing_is_communicated(params, tiles):
    text = _program(8)._compile(params, tiles.shape, tiles.dtype).as_text()
    assert 'num_partitions=6' in text
    for collective in ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all'):
        assert collective not in text


def test_parameters_are_copied_to_the_devices_once(params, tiles):
    program = _program(2)
    program(params, tiles)
    (copy,) = program._copies.values()
    program(params, tiles)
    assert program._copies[2] is copy
    other = {'kernel': -params['kernel']}
    expected = np.asarray(_program(1)(other, tiles))
    np.testing.assert_allclose(program(other, tiles), expected, rtol=1e-6, atol=1e-6)


def test_memory_is_that_of_all_devices(params, tiles):
    assert _program(2).memory_bytes(params, tiles.shape, np.int16) > 2 * tiles.nbytes
    few = _program(1).memory_bytes(params, (3, *tiles.shape[1:]), np.int16)
    assert _program(2).memory_bytes(params, tiles.shape, np.int16) == pytest.approx(
        2 * few, rel=0.2
    )


def test_a_scan_is_the_same_with_any_batch(tmp_path):
    """8 virtual devices, batches of one (one device) and of four (four devices)."""
    scan = save_scan(tmp_path / 'x.nii.gz', phantom_hu((11, 14, 9)), np.eye(4))
    assert default_batch_size() == 1
    for folder, options in (('one', {}), ('four', {'batch_size': 4})):
        predict(make_threshold_model(), scan, tmp_path / folder, step_size=0.5, **options)
    for name in ('x_seg.nii.gz', 'x_ood.nii.gz'):
        one, four = (np.asanyarray(nib.load(tmp_path / f / name).dataobj) for f in ('one', 'four'))
        np.testing.assert_array_equal(one, four)
