"""Several processes train as one: real runs on the CPU, connected as hosts of a cluster would be.

All runs have the same four devices, in one, two or four processes, and the same mesh.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES, STEPS, LATE = 4, 70, 60
TOLERANCE = 1e-5  # relative: all-reduces between processes add in another order, by about 2e-7
TINY = [
    '--config=configs/maxquery.py:demo',
    "--config.stages=('pretrain',)",
    '--config.mesh.data=2',
    '--config.mesh.spatial=2',
    '--config.data.phantom.num_train=3',
    '--config.data.phantom.num_val=0',
    '--config.data.phantom.num_test_inlier=0',
    '--config.data.phantom.num_test_ood=0',
    '--config.data.phantom.shape_zyx=(16,32,32)',
    '--config.data.phantom.spacing_mm=(10.0,8.0,8.0)',
    '--config.data.patch_size=(16,16,16)',
    '--config.data.batch_size=2',
    '--config.model.backbone.base_features=2',
    '--config.model.backbone.convs_per_stage=1',
    '--config.model.backbone.max_stages=2',
    '--config.model.conv_form=plain',
    '--config.pretrain.epochs=1',
    '--config.pretrain.optim.learning_rate=0.001',
    f'--config.pretrain.steps_per_epoch={STEPS}',
    f'--config.checkpoint.every_steps={LATE}',
    '--config.log.every_steps=1',
]
pytestmark = pytest.mark.integration


def free_port():
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(python, workdirs, logs, *extra, count=None):
    """One process per entry of `workdirs`, numbered from 0, that share the devices."""
    count = count or len(workdirs)
    address = f'127.0.0.1:{free_port()}'
    with contextlib.ExitStack() as stack:
        children = []
        for index, (workdir, log) in enumerate(zip(workdirs, logs, strict=True)):
            flags = [f'--coordinator={address}', f'--num_processes={count}']
            command = [python, '-m', 'launch.train', *TINY, f'--workdir={workdir}', *extra]
            command += [*flags, f'--process_id={index}'] if count > 1 else []
            devices = {'JAX_NUM_CPU_DEVICES': str(DEVICES // count)}
            env = {**os.environ, **devices}
            children.append(stack.enter_context(processes.started(command, log, cwd=ROOT, env=env)))
        yield children


def run(python, workdirs, folder, *extra, count=None):
    """Exit codes and what was printed, by process."""
    folder.mkdir()
    logs = [folder / f'log{i}.txt' for i in range(len(workdirs))]
    with started(python, workdirs, logs, *extra, count=count) as children:
        codes = [child.wait(processes.LIMIT_S) for child in children]
    return codes, [log.read_text() for log in logs]


def losses(workdir):
    """Loss by step; every step of the run must be there once, in order."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == list(range(1, len(rows) + 1))
    return [row['loss'] for row in rows]


@pytest.fixture(scope='module')
def whole(python, tmp_path_factory):
    """A run of one process from the first step to the last."""
    folder = tmp_path_factory.mktemp('whole')
    codes, logs = run(python, [folder / 'run'], folder / 'logs')
    assert codes == [0], logs
    return folder / 'run'


def test_sigterm_to_one_process_stops_both_and_one_continues(python, whole, tmp_path):
    workdir, logs = tmp_path / 'run', [tmp_path / 'log0.txt', tmp_path / 'log1.txt']
    with started(python, [workdir] * 2, logs) as children:
        assert processes.wait_until(lambda: ' loss ' in logs[0].read_text(), children[0])
        children[1].send_signal(signal.SIGTERM)
        codes = [child.wait(processes.LIMIT_S) for child in children]
    first, second = (log.read_text() for log in logs)
    assert codes == [2, 2], first + second
    stops = [re.search(r'saving step (\d+)', text) for text in (first, second)]
    assert 'another process' in first and 'signal 15' in second and all(stops), first + second
    steps = {int(stop[1]) for stop in stops if stop}
    assert len(steps) == 1 and max(steps) < STEPS
    assert ' loss ' not in second and 'cohort' not in second  # the log is process 0's
    assert len(losses(workdir)) == max(steps)

    codes, printed = run(python, [workdir], tmp_path / 'alone')
    assert codes == [0] and f'resuming at step {max(steps)}' in printed[0], printed
    assert losses(workdir) == pytest.approx(losses(whole), rel=TOLERANCE)


def test_four_processes_continue_what_one_began(python, whole, tmp_path):
    """Patches and parameters are split between processes now; every process reads every row."""
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / 'checkpoints' / 'pretrain' / str(STEPS))
    mesh = ['--config.mesh.data=1', '--config.mesh.fsdp=2']
    codes, printed = run(python, [workdir] * 4, tmp_path / 'logs', *mesh)
    assert codes == [0] * 4 and f'resuming at step {LATE}' in printed[0], printed
    assert losses(workdir) == pytest.approx(losses(whole), rel=TOLERANCE)
    assert not any(' loss ' in text for text in printed[1:])


@pytest.fixture(scope='module')
def failures(python, tmp_path_factory):
    """Two runs that cannot begin, at the same time: a process is missing, folders are local."""
    folder = tmp_path_factory.mktemp('failures')
    logs = [folder / f'log{i}.txt' for i in range(4)]
    shared, local = [folder / 'shared'], [folder / 'host0', folder / 'host1']
    limit = '--cluster_timeout_s=3'
    with (
        started(python, shared, logs[:1], limit, count=2) as missing,
        started(python, local, logs[1:3]) as apart,
    ):
        codes = [child.wait(processes.LIMIT_S) for child in (*missing, *apart)]
    return folder, codes, [log.read_text() for log in logs[:3]]


def errors(text):
    return [line for line in text.splitlines() if line.startswith('error: ')]


def test_a_missing_process_is_named(failures):
    _, codes, logs = failures
    assert codes[0] == 2 and errors(logs[0]) == [logs[0].splitlines()[-1]]
    assert 'no sign of process 1 within 3 s' in logs[0]


def test_a_local_workdir_is_refused_by_the_host_that_does_not_see_it(failures):
    folder, codes, logs = failures
    assert codes[1:] == [2, 2], logs
    for text in logs[1:]:
        (line,) = errors(text)
        assert f'--workdir {folder}/host1 is not on storage that all hosts share' in line
        assert f'process 1 (host {socket.gethostname()}) does not see' in line
    assert not (folder / 'host1').exists()
    assert [path.name for path in (folder / 'host0').iterdir()] == ['.lock']
