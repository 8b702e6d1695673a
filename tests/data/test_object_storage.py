"""Stores that are not folders: TensorStore's memory and file drivers, and S3 by a local server."""

import importlib.util
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid

import numpy as np
import pytest
from store_helper import build_store, make_case

from maxquery_jax.data.pipeline import build_batches
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError
from tests import processes

OPTIONS = {'crop_size': (8, 10, 12), 'batch_size': 4, 'seed': 7}


@pytest.fixture(scope='module')
def s3_server(tmp_path_factory):
    """Address of a moto server on this machine, with one bucket."""
    if importlib.util.find_spec('moto') is None or importlib.util.find_spec('flask') is None:
        pytest.skip('the S3 server of moto[server] is not installed')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
    address = f'http://127.0.0.1:{port}'
    with processes.started(command, tmp_path_factory.mktemp('s3') / 'log.txt'):
        for _ in range(150):
            try:
                bucket = urllib.request.Request(f'{address}/bucket', method='PUT')
                urllib.request.urlopen(bucket, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        else:
            pytest.skip('the S3 server of moto did not start')
        yield address


@pytest.fixture(params=['memory', 'memory_url', 'file', 'file_url', 's3'])
def location(request, tmp_path, monkeypatch):
    """A location that does not exist yet, per kind."""
    name = f'{uuid.uuid4().hex}/store'
    if request.param == 's3':
        address = request.getfixturevalue('s3_server')
        for key in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
            monkeypatch.setenv(key, 'test')
        return {
            'driver': 's3',
            'bucket': 'bucket',
            'path': f'{name}/',
            'endpoint': address,
            'aws_region': 'us-east-1',
            'aws_credentials': {'type': 'environment'},
        }
    return {
        'memory': {'driver': 'memory', 'path': f'{name}/'},
        'memory_url': f'memory://{name}/',
        'file': {'driver': 'file', 'path': str(tmp_path / 'store/')},
        'file_url': f'file://{tmp_path}/store/',
    }[request.param]


def test_batches_equal_those_of_a_folder(location, tmp_path):
    local = PatchStore(build_store(tmp_path / 'local', 3))
    remote = PatchStore(build_store(location, 3))
    assert remote.manifest == local.manifest
    np.testing.assert_array_equal(remote.read_image('c1'), make_case(1)[0])
    with (
        build_batches([local], **OPTIONS) as expected,
        build_batches([remote], **OPTIONS, start_step=1) as got,
    ):
        next(expected)
        for _ in range(4):
            want, batch = next(expected), next(got)
            for key in want:
                np.testing.assert_array_equal(batch[key], want[key])


def test_an_unfinished_store_continues_and_a_finished_one_is_kept(location):
    writer = StoreWriter(location)
    writer.write_case('c0', *make_case(0))
    with pytest.raises(UserError, match='was not finished'):
        PatchStore(location)
    assert StoreWriter(location).attributes('c0')['shape'] == [20, 24, 28]
    build_store(location, 2)
    with pytest.raises(UserError, match='is complete already'):
        StoreWriter(location)
    assert PatchStore(location).case_ids('train') == ('c0', 'c1')


def test_a_place_without_a_store_is_explained(location):
    with pytest.raises(UserError, match='no patch store there'):
        PatchStore(location)


def test_workers_read_s3(s3_server, monkeypatch):
    """Worker processes open the store anew, from its spec alone."""
    for key in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.setenv(key, 'test')
    location = {
        'driver': 's3',
        'bucket': 'bucket',
        'path': f'{uuid.uuid4().hex}/',
        'endpoint': s3_server,
        'aws_region': 'us-east-1',
        'aws_credentials': {'type': 'environment'},
    }
    store = PatchStore(build_store(location, 2))
    with build_batches([store], **OPTIONS) as here:
        expected = next(here)
    with build_batches([store], **OPTIONS, num_workers=1) as there:
        np.testing.assert_array_equal(next(there)['image'], expected['image'])
