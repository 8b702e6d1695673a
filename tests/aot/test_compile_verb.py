"""launch.compile on virtual devices: the report of a real compilation, and its errors."""

import importlib.util
import json
import sys

import pytest

from tests import processes

TINY = (
    '--config=configs/maxquery.py:demo',
    '--config.data.patch_size=(8,16,16)',
    '--config.data.batch_size=4',
    '--config.augment.enabled=True',
    '--config.model.backbone.base_features=4',
    '--config.model.backbone.max_stages=2',
    '--config.model.decoder.output_strides=(2,)',
    '--config.model.decoder.query_dim=16',
    '--config.model.decoder.embed_dim=8',
    '--config.model.decoder.num_heads=2',
    '--config.model.decoder.ffn_dim=16',
)


def launch(*arguments, limit_s=300.0):
    command = [sys.executable, '-m', 'launch.compile', *TINY, *arguments]
    return processes.run(command, limit_s=limit_s)


def test_a_step_for_virtual_devices(tmp_path):
    file = tmp_path / 'report.json'
    done = launch('--topology=cpu:4', '--config.mesh.spatial=2', f'--json={file}')
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report['mesh'] == {'data': 2, 'fsdp': 1, 'spatial': 2}
    assert report['fits'] and report['parameters'] > 1000 and report['tflop_per_step'] > 0
    assert set(report['programs']) == {'step', 'augment'}
    step = report['programs']['step']
    assert step['memory_gib']['temporary'] > 0
    # Halos of the split depth, and sums of gradients and norms; nothing is gathered.
    assert step['collectives']['collective-permute']['count'] > 0
    assert step['collectives']['all-reduce']['count'] > 0
    assert 'all-gather' not in step['collectives'] and 'all-to-all' not in step['collectives']
    assert report['programs']['augment']['collectives'] == {}
    assert 'it fits' in done.stdout and 'data 2 x fsdp 1 x spatial 2' in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'name the hardware with --topology'),
        (('--topology=v5e',), 'write v5e:4x4'),
        (('--topology=cpu:3',), 'must be a multiple of accumulate x data x fsdp'),
        (('--topology=cpu:2', '--stage=pretrane'), '--stage=pretrane is not one of'),
    ],
)
def test_errors_are_one_line(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="the extra 'aot' is missing")
def test_a_step_for_a_tpu_slice(tmp_path):
    file = tmp_path / 'report.json'
    done = launch('--topology=v5e:2x2', '--config.model.dtype=bfloat16', f'--json={file}')
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report['step_s'] > 0 and 0 < report['mfu'] < 1
    assert list(report['programs']['step']['collectives']) == ['all-reduce']
