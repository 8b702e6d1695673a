"""The processes of a run: one on a laptop, one per host of a cluster, one or more per GPU host.

Agreement goes over the key-value store of JAX's coordinator, never over the devices: it costs a
step nothing, works while devices are busy, and has timeouts that can name who is missing. With a
single process every function here returns at once and no coordinator exists.
"""

import atexit
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.parallel.cluster import Cluster
from maxquery_jax.parallel.rendezvous import meet
from maxquery_jax.parallel.watch import ROOT, Watch

WAIT_S = 600.0
"""How long processes wait for each other by default; compiling takes minutes at most."""
_SHARED_S = 10.0  # a file system that hosts share shows a new file within seconds
_EXIT_USER = 2


@dataclasses.dataclass
class _Member:
    """This process among the others of the run.

    Attributes:
        index: number of this process.
        count: number of processes.
        client: of the coordinator.
        hosts: name of each process's host.
        watch: looks for failures and requests to stop.
        calls: how often each kind of agreement was made; gives every one a name of its own.
    """

    index: int
    count: int
    client: Any
    hosts: list[str]
    watch: Watch
    calls: dict[str, int] = dataclasses.field(default_factory=dict)

    def next_key(self, kind: str) -> str:
        self.calls[kind] = self.calls.get(kind, 0) + 1
        return f'{ROOT}/{kind}/{self.calls[kind]}'

    def name(self, index: int) -> str:
        """`process 1 (host node7)`."""
        return f'process {index} (host {self.hosts[index]})'


_member: _Member | None = None


def is_first() -> bool:
    """Whether this is process 0: the one that writes logs, config, rows and pictures."""
    return _member is None or _member.index == 0


def say(text: str) -> None:
    """Prints a line, from process 0 only."""
    if is_first():
        print(text, flush=True)


@contextlib.contextmanager
def joined(cluster: Cluster | None, timeout_s: float = 300.0) -> Iterator[None]:
    """Runs a block as one of several processes; None runs it alone.

    Must be entered before anything else asks JAX for a device. A failure in the block is told to
    the other processes, which end with one line that names it and exit code 2. If a process dies
    without a word, the others end within JAX's heartbeat time.

    Args:
        cluster: see `cluster.find_cluster`.
        timeout_s: within which all processes must have come.

    Raises:
        UserError: the coordinator or some processes could not be reached; or another process
            failed while this one was in the block.
    """
    if cluster is None:
        yield
        return
    _join(cluster, timeout_s)
    stopped = None
    try:
        try:
            yield
        except StoppedError as error:  # all processes stop after the same step
            stopped = error
        _part()
    except BaseException as error:
        cause = _abandon(error)
        if cause:
            raise UserError(cause) from error
        raise
    if stopped:
        raise stopped


def barrier(name: str, timeout_s: float = WAIT_S) -> None:
    """Waits until every process has come here.

    Args:
        name: what they have done then, for the message.
        timeout_s: seconds.

    Raises:
        UserError: names the processes that did not come, and their hosts.
    """
    if _member is None:
        return
    key = _member.next_key('barrier')
    _member.client.key_value_set(f'{key}/{_member.index}', '')
    try:
        _member.client.wait_at_barrier(key, int(timeout_s * 1000))
    except RuntimeError as error:
        missing = _missing(_member, key)
        who = ', '.join(_member.name(i) for i in missing) or 'the coordinator'
        raise UserError(
            f'{name}: no sign of {who} within {timeout_s:.0f} s; see the log of that process'
        ) from error


def decide(value: int) -> int:
    """Process 0's value, for all of them.

    Raises:
        UserError: process 0 does not answer.
    """
    return int(share(str(value)))


def share(text: str, timeout_s: float = WAIT_S) -> str:
    """Process 0's text, for all of them.

    Raises:
        UserError: process 0 does not answer.
    """
    if _member is None:
        return text
    key = _member.next_key('share')
    if _member.index == 0:
        _member.client.key_value_set(key, text)
        return text
    try:
        return _member.client.blocking_key_value_get(key, int(timeout_s * 1000))
    except RuntimeError as error:
        raise UserError(
            f'{_member.name(0)} did not answer within {timeout_s:.0f} s; see its log'
        ) from error


def agree(value: bool) -> bool:
    """Whether it is true in every process.

    Raises:
        UserError: a process does not answer.
    """
    return all(answer == 'yes' for answer in gather('yes' if value else 'no'))


def gather(text: str) -> list[str]:
    """Every process's text, in the order of the processes.

    Raises:
        UserError: a process does not answer.
    """
    if _member is None:
        return [text]
    key = _member.next_key('gather')
    _member.client.key_value_set(f'{key}/{_member.index}', text)
    barrier('exchange')
    answers = _member.client.key_value_dir_get(f'{key}/')
    return [answer for _, answer in sorted(answers, key=lambda pair: _number(pair[0]))]


def should_stop(wanted: bool) -> bool:
    """Whether all processes stop after this step, whichever of them wants it.

    To be called once per step, in every process, and the same number of times. They agree in the
    background on a step that none of them has passed, so that nobody waits for a device and it
    does not matter how far one is ahead.

    Args:
        wanted: whether this process was asked to end.
    """
    return wanted if _member is None else _member.watch.should_stop(wanted)


def require_same(what: str, text: str, fix: str) -> None:
    """Compares a text with process 0's.

    Raises:
        UserError: `what` differs there.
    """
    if share(text) != text:
        assert _member is not None
        raise UserError(
            f'{what} of {_member.name(_member.index)} differs from that of {_member.name(0)}; {fix}'
        )


def require_shared(folder: pathlib.Path, flag: str, timeout_s: float = _SHARED_S) -> None:
    """Makes sure that every process means the same folder by a path.

    Process 0, in which it must exist, puts a file there that the others look for.

    Args:
        folder: the path in this process.
        flag: the option that names it.
        timeout_s: a shared file system may lag by so much.

    Raises:
        UserError: in every process, if one does not see process 0's file.
    """
    if _member is None:
        return
    name = share(f'.seen-by-all-{uuid.uuid4().hex}')
    if _member.index == 0:
        (folder / name).touch()
    share('written')
    end = time.monotonic() + timeout_s
    while not _holds(folder, name) and time.monotonic() < end:
        time.sleep(0.2)
    blind = gather('' if _holds(folder, name) else str(folder))
    if _member.index == 0:
        (folder / name).unlink(missing_ok=True)
    for index, path in enumerate(blind):
        if path:
            raise UserError(
                f'{flag} {path} is not on storage that all hosts share: {_member.name(index)} does '
                f"not see process 0's folder; use a shared one and the same path everywhere"
            )


def _holds(folder: pathlib.Path, name: str) -> bool:
    """Looks for the name and lists the folder: NFS keeps either answer for a while, once given."""
    try:
        return (folder / name).exists() or name in os.listdir(folder)
    except OSError:
        return False


def _join(cluster: Cluster, timeout_s: float) -> None:
    global _member
    # It would take SIGTERM for itself from here on, also where no step is there to stop at.
    jax.config.update('jax_enable_preemption_service', False)
    hosts = meet(cluster, timeout_s)
    atexit.register(_leave_at_exit)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            None if cluster.local_device_ids is None else list(cluster.local_device_ids),
            cluster_detection_method='deactivate',
            initialization_timeout=max(int(timeout_s), 1),
        )
    except RuntimeError as error:
        _exit_with(_EXIT_USER)
        raise UserError(
            f'--coordinator={cluster.coordinator}: {" ".join(str(error).split())[:300]}'
        ) from error
    client, index, count = _client(), cluster.process_id, cluster.num_processes
    _member = _Member(index, count, client, hosts, Watch(client, index, hosts))
    say(f'{count} processes on {len(set(hosts))} hosts')


def _client() -> Any:
    """The coordinator's client. JAX shows it nowhere in public: its public barriers are programs
    for the devices, without a timeout."""
    from jax._src import distributed

    return distributed.global_state.client


def _part() -> None:
    """Ends together with the others."""
    assert _member is not None
    barrier('end of the run')
    _member.watch.close()
    jax.distributed.shutdown()


def _abandon(error: BaseException) -> str:
    """Tells the others why this process ends.

    Returns:
        What ended another one before, for which this one's collective failed; '' if it did not.
    """
    assert _member is not None
    known = isinstance(error, UserError)
    reason = str(error) if known else f'{type(error).__name__}: {error}'
    other = _member.watch.abandon(' '.join(reason.split())[:400])
    if isinstance(error, jax.errors.JaxRuntimeError) and not other:
        silent = _member.watch.wait_for_others()
        if silent:
            names = ', '.join(_member.name(i) for i in silent)
            other = f'{names} ended without a word, killed or by a crash; see its log'
    cause = other if isinstance(error, jax.errors.JaxRuntimeError) else ''
    _exit_with(_EXIT_USER if known or cause else 1)
    return cause


_exit_code: int | None = None


def _exit_with(code: int) -> None:
    global _exit_code
    _exit_code = code


def _leave_at_exit() -> None:
    """After a failure, JAX's own hook would wait for processes that do not come any more."""
    if _exit_code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        if _member is not None:
            _member.watch.leave()
        os._exit(_exit_code)


def _missing(member: _Member, key: str) -> list[int]:
    came = {_number(name) for name, _ in member.client.key_value_dir_get(f'{key}/')}
    return [i for i in range(member.count) if i not in came]


def _number(key: str) -> int:
    """The process that a key ends with."""
    return int(key.rpartition('/')[2])
