"""Which processes a run has, which rows each reads, and what one process does alone."""

import collections
import concurrent.futures
import contextlib
import socket
import time
from typing import Any

import jax
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.parallel import processes, sharding
from maxquery_jax.parallel.cluster import Cluster, find_cluster
from maxquery_jax.parallel.mesh import MESH_AXES, make_mesh
from maxquery_jax.parallel.rendezvous import meet
from maxquery_jax.parallel.watch import ROOT, Watch

Device = collections.namedtuple('Device', 'process_index')
SLURM = {
    'SLURM_JOB_ID': '4097',
    'SLURM_STEP_NODELIST': 'node[007-010]',
    'SLURM_NTASKS': '8',
    'SLURM_PROCID': '5',
    'SLURM_LOCALID': '1',
    'SLURM_STEP_TASKS_PER_NODE': '2(x4)',
}


def mesh_of(owners, data, fsdp, spatial) -> Any:
    """A made-up mesh; owners are the processes of its devices, in the mesh's order."""
    devices = np.empty(len(owners), object)
    devices[:] = [Device(owner) for owner in owners]
    fake = collections.namedtuple('Mesh', 'devices axis_names shape')
    sizes = (data, fsdp, spatial)
    return fake(devices.reshape(sizes), MESH_AXES, dict(zip(MESH_AXES, sizes, strict=True)))


@pytest.fixture
def no_job(monkeypatch):
    """An environment without any job."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name in ('OMPI_MCA_orte_hnp_uri', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_laptop_needs_no_coordinator(no_job):
    assert find_cluster(environment={}) is None


def test_flags_come_before_the_environment():
    environment = {
        'JAX_COORDINATOR_ADDRESS': 'other:1',
        'JAX_NUM_PROCESSES': '4',
        'JAX_PROCESS_ID': '3',
    }
    found = find_cluster(coordinator='host:8476', process_id=1, environment=environment)
    assert found == Cluster('host:8476', 4, 1)
    assert find_cluster(environment=environment) == Cluster('other:1', 4, 3)
    assert find_cluster('none', environment=environment) is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'coordinator': 'a:1'}, 'num_processes'),
        ({'num_processes': 2, 'process_id': 0}, 'JAX_COORDINATOR_ADDRESS'),
        ({'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2}, 'process_id=2'),
        ({'coordinator': 'a:1', 'num_processes': 2, 'process_id': -1}, 'process_id=-1'),
        ({'coordinator': 'host', 'num_processes': 2, 'process_id': 0}, 'HOST:PORT'),
        ({'coordinator': 'host:http', 'num_processes': 2, 'process_id': 0}, 'HOST:PORT'),
        ({'coordinator': 'host:70000', 'num_processes': 2, 'process_id': 0}, 'HOST:PORT'),
        ({'method': 'pigeons'}, 'slurm'),
        ({'method': 'slurm', 'process_id': 1}, 'drop'),
        ({'method': 'slurm'}, 'srun'),
        ({'method': 'tpu'}, 'every worker'),
    ],
)
def test_impossible_settings_are_refused(settings, message, no_job):
    with pytest.raises(UserError, match=message):
        find_cluster(**settings, environment={})


def test_the_environment_must_hold_numbers():
    environment = {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': 'two',
        'JAX_PROCESS_ID': '0',
    }
    with pytest.raises(UserError, match='whole numbers'):
        find_cluster(environment=environment)


@pytest.mark.parametrize(
    ('change', 'devices'),
    [
        ({}, (1,)),  # one of the GPUs of its host, all of which it sees
        ({'CUDA_VISIBLE_DEVICES': '3'}, None),  # Slurm gave it one GPU already
        ({'SLURM_STEP_TASKS_PER_NODE': '1(x8)'}, None),  # one task per host takes all GPUs
    ],
)
def test_a_slurm_step(change, devices, no_job):
    environment = {**SLURM, **change}
    for name, value in environment.items():
        no_job.setenv(name, value)
    for method in ('auto', 'slurm'):
        found = find_cluster(method, environment=environment)
        assert found is not None
        host, port = found.coordinator.split(':')
        assert host == 'node007' and 1024 < int(port) < 2**16
        assert (found.num_processes, found.process_id) == (8, 5)
        assert found.local_device_ids == devices


def test_a_slurm_step_of_one_task_is_a_laptop(no_job):
    for name, value in {**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}.items():
        no_job.setenv(name, value)
    assert find_cluster(environment={}) is None
    assert find_cluster('slurm', environment={}) is None


@pytest.mark.parametrize(
    ('owners', 'sizes', 'expected'),
    [
        ([0, 0, 1, 1], (4, 1, 1), ['0123', '4567']),
        ([0, 0, 1, 1], (2, 2, 1), ['0123', '4567']),
        ([0, 0, 1, 1], (2, 1, 2), ['0123', '4567']),
        ([0, 0, 1, 1], (1, 1, 4), ['01234567'] * 2),  # one patch over both hosts
        ([0, 0, 1, 1, 2, 2, 3, 3], (2, 1, 4), ['0123', '0123', '4567', '4567']),
        ([1, 1, 0, 0], (4, 1, 1), ['4567', '0123']),  # the mesh's order, not the processes'
        ([0, 1, 1, 0], (4, 1, 1), ['0167', '2345']),  # a ring: not neighbours
        ([0, 0, 0, 1], (4, 1, 1), ['012345', '67']),
        ([0, 0, 0, 1, 1, 1], (2, 1, 3), ['0123', '4567']),
        ([0, 0, 0, 0, 1, 1, 1, 1], (1, 4, 2), ['0123', '4567']),
    ],
)
def test_rows_of_a_process(owners, sizes, expected):
    mesh = mesh_of(owners, *sizes)
    rows = [sharding.process_rows(mesh, 8, process) for process in range(len(expected))]
    assert [''.join(map(str, found)) for found in rows] == expected


def test_a_process_without_a_device_is_refused():
    with pytest.raises(UserError, match='no device of process 1'):
        sharding.process_rows(mesh_of([0, 0], 2, 1, 1), 8, 1)


def test_alone_all_rows_are_read():
    assert sharding.process_rows(make_mesh(data=4, fsdp=2), 8) == tuple(range(8))
    assert sharding.process_rows(make_mesh(data=2, spatial=2), 2) == (0, 1)


def test_alone_nothing_is_waited_for(capsys, tmp_path):
    with processes.joined(None):
        processes.barrier('anything', timeout_s=0.0)
        assert processes.is_first() and processes.decide(7) == 7
        assert processes.agree(True) and not processes.agree(False)
        assert processes.should_stop(True) and not processes.should_stop(False)
        processes.require_same('it', 'text', 'fix')
        processes.require_shared(tmp_path / 'absent', '--workdir')
        processes.say('hello')
    assert capsys.readouterr().out == 'hello\n'
    assert not jax.distributed.is_initialized()


class Store:
    """The coordinator's key-value store."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.values and not allow_overwrite:
            raise RuntimeError('ALREADY_EXISTS')
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    def blocking_key_value_get(self, key, timeout_ms):
        del timeout_ms
        return self.values[key]

    def wait_at_barrier(self, key, timeout_ms):
        del timeout_ms
        came = len(self.key_value_dir_get(f'{key}/'))
        if came < 3:
            raise RuntimeError('DEADLINE_EXCEEDED')


@pytest.fixture
def second_of_three(monkeypatch):
    """This process as number 1 of 3; what the others say is put into the store."""
    store = Store()
    member = processes._Member(1, 3, store, ['north', 'east', 'south'], watch=None)  # pyright: ignore
    monkeypatch.setattr(processes, '_member', member)
    return store


def test_a_barrier_names_who_is_missing(second_of_three):
    second_of_three.values[f'{ROOT}/barrier/1/0'] = ''
    with pytest.raises(UserError, match=r'the cohort: no sign of process 2 \(host south\)'):
        processes.barrier('the cohort', 0.1)


def test_the_second_of_three_follows_the_first(second_of_three, capsys, tmp_path):
    values = second_of_three.values
    values |= {f'{ROOT}/share/1': '42', f'{ROOT}/share/2': 'its config'}
    processes.say('not said')
    assert processes.decide(7) == 42 and capsys.readouterr().out == '' and not processes.is_first()
    with pytest.raises(UserError, match=r'the config of process 1 \(host east\) differs .* north'):
        processes.require_same('the config', 'my config', 'use the same flags')


@pytest.mark.parametrize(('last', 'agreed'), [('yes', True), ('no', False)])
def test_all_must_agree(second_of_three, last, agreed):
    for kind, answers in (('gather', ('yes', last)), ('barrier', ('', ''))):
        first, third = answers
        second_of_three.values |= {f'{ROOT}/{kind}/1/0': first, f'{ROOT}/{kind}/1/2': third}
    assert processes.agree(True) is agreed


def test_a_folder_that_one_host_does_not_see_is_refused(second_of_three, tmp_path):
    values = second_of_three.values
    values |= {f'{ROOT}/share/1': '.token', f'{ROOT}/share/2': 'written'}
    values |= {f'{ROOT}/barrier/1/0': '', f'{ROOT}/barrier/1/2': ''}
    values |= {f'{ROOT}/gather/1/0': '', f'{ROOT}/gather/1/2': '/scratch/run'}
    (tmp_path / '.token').touch()
    with pytest.raises(UserError, match=r'--workdir /scratch/run .* process 2 \(host south\)'):
        processes.require_shared(tmp_path, '--workdir', timeout_s=0.1)


def test_all_stop_after_the_same_step_wherever_they_are():
    store = Store()
    watches = [Watch(store, i, 'abc', look_s=0.01) for i in range(3)]

    def train(index):
        """Steps of different lengths, without anything that keeps processes together."""
        steps = 1
        while not watches[index].should_stop(wanted=index == 2 and steps >= 9):
            assert steps < 10_000
            time.sleep((0.001, 0.004, 0.002)[index])
            steps += 1
        return steps

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        last = list(pool.map(train, range(3)))
    for watch in watches:
        watch.close()
    assert len(set(last)) == 1 and last[0] > 9


def test_the_first_failure_is_told_to_the_others():
    store = Store()
    first, second = (Watch(store, i, 'abc', look_s=60.0) for i in range(2))
    assert first.abandon('no space left') == ''
    assert second.abandon('broken pipe') == 'process 0 (host a): no space left'


def test_a_process_without_a_sign_has_failed():
    store = Store()
    watch = Watch(store, 0, ['node1', 'node2'], look_s=0.01, leave_s=0.0, lost_s=0.2)
    watch._end = lambda reason: ended.append(reason)
    ended = []
    end = time.monotonic() + 30
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
    watch.close()
    assert ended and 'process 1 (host node2) has given no sign' in ended[0]


def meet_all(clusters, timeout_s=20.0):
    """What each process hears: the hosts, or the error."""

    def one(cluster):
        try:
            return meet(cluster, timeout_s)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(one, clusters))


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(('', 0))
        return f'127.0.0.1:{probe.getsockname()[1]}'


def test_processes_meet_in_any_order(address):
    heard = meet_all([Cluster(address, 3, i) for i in (2, 1, 0)])
    assert heard == [[socket.gethostname()] * 3] * 3


@pytest.mark.parametrize(
    ('runs', 'message'),
    [
        ([(4, 0), (4, 3)], 'no sign of process 1, 2 within'),
        ([(3, 0), (3, 1), (3, 1)], 'two processes were started with --process_id=1'),
        ([(2, 0), (3, 1)], '--num_processes=3, process 0 with 2'),
    ],
)
def test_all_that_came_hear_what_is_wrong(runs, message, address):
    heard = meet_all([Cluster(address, count, index) for count, index in runs], timeout_s=1.0)
    assert all(message in text for text in heard), heard


def test_an_absent_or_busy_coordinator(address):
    assert 'process 0 was not reached' in meet_all([Cluster(address, 2, 1)], timeout_s=0.5)[0]
    with socket.create_server(('', int(address.rpartition(':')[2]))):
        assert 'choose another port' in meet_all([Cluster(address, 2, 0)], timeout_s=0.5)[0]


def test_a_stranger_at_the_port_does_no_harm(address):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, Cluster(address, 2, 0), 20.0)
        host, _, port = address.rpartition(':')
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as line:
                line.sendall(b'GET / HTTP/1.1\r\n\r\n')
                break
            time.sleep(0.05)
        second = pool.submit(meet, Cluster(address, 2, 1), 20.0)
        assert first.result() == second.result() == [socket.gethostname()] * 2
