"""Processes find each other before JAX connects them.

JAX ends a process by a crash when another does not come, without saying which. Here process 0
listens at the coordinator's address for a moment, hears who is there and answers all of them; what
went wrong is then known by name. JAX's coordinator takes over the port afterwards.
"""

import contextlib
import json
import select
import socket
import time
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.parallel.cluster import Cluster

_RETRY_S = 0.2
_LONGEST = 1 << 16  # bytes of an answer


def meet(cluster: Cluster, timeout_s: float) -> list[str]:
    """Waits until all processes of a run are there.

    Args:
        cluster: the run as this process sees it.
        timeout_s: seconds.

    Returns:
        Host names, by process.

    Raises:
        UserError: in every process that came: some did not, two have one number, or they were
            started for different numbers of processes.
    """
    end = time.monotonic() + timeout_s
    if cluster.process_id:
        return _visit(cluster, end, timeout_s)
    return _receive(cluster, end, timeout_s)


def _receive(cluster: Cluster, end: float, timeout_s: float) -> list[str]:
    """Process 0's part."""
    hosts = {0: socket.gethostname()}
    visitors: list[socket.socket] = []
    with _listen(cluster.coordinator) as server, contextlib.ExitStack() as stack:
        problem = ''
        while len(hosts) < cluster.num_processes and not problem:
            if not select.select([server], [], [], max(end - time.monotonic(), 0.0))[0]:
                missing = [i for i in range(cluster.num_processes) if i not in hosts]
                problem = _describe_missing(missing, cluster, timeout_s)
                break
            visitor = stack.enter_context(server.accept()[0])
            visitor.settimeout(5.0)
            card = _read(visitor)
            if card.get('of') is None:
                continue  # something else that looked at the port
            visitors.append(visitor)
            problem = _check(card, hosts, cluster)
            hosts[card['process']] = card['host']
        answer = {'problem': problem, 'hosts': [hosts.get(i) for i in range(cluster.num_processes)]}
        for visitor in visitors:
            with contextlib.suppress(OSError):
                visitor.sendall(json.dumps(answer).encode() + b'\n')
    if problem:
        raise UserError(problem)
    return answer['hosts']


def _visit(cluster: Cluster, end: float, timeout_s: float) -> list[str]:
    """The part of every other process."""
    host, port = _address(cluster.coordinator)
    card = {
        'process': cluster.process_id,
        'of': cluster.num_processes,
        'host': socket.gethostname(),
    }
    reason = 'no answer'
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), max(end - time.monotonic(), 0.1)) as line:
                line.sendall(json.dumps(card).encode() + b'\n')
                line.settimeout(max(end - time.monotonic(), 0.0) + 5.0)  # process 0 may be later
                answer = _read(line)
            if answer.get('problem'):
                raise UserError(answer['problem'])
            if answer:
                return answer['hosts']
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(_RETRY_S)
    raise UserError(
        f'process {cluster.process_id}: process 0 was not reached at {cluster.coordinator} within '
        f'{timeout_s:.0f} s ({reason}); start it there, and check the address and firewalls'
    )


def _listen(address: str) -> socket.socket:
    _, port = _address(address)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, backlog=1024, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f'--coordinator={address}: process 0 cannot listen on port {port} '
            f'({error.strerror}); choose another port'
        ) from error


def _address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(':')
    return host.strip('[]'), int(port)


def _read(line: socket.socket) -> dict[str, Any]:
    """One JSON object and a newline; {} for anything else."""
    content = b''
    with contextlib.suppress(OSError, ValueError):
        while not content.endswith(b'\n') and len(content) < _LONGEST:
            part = line.recv(_LONGEST)
            if not part:
                break
            content += part
        value = json.loads(content)
        return value if isinstance(value, dict) else {}
    return {}


def _check(card: dict[str, Any], hosts: dict[int, str], cluster: Cluster) -> str:
    """What is wrong with the process that came; '' for nothing."""
    who = f'process {card["process"]} (host {card["host"]})'
    if card['of'] != cluster.num_processes:
        return f'{who} was started with --num_processes={card["of"]}, process 0 with ' + str(
            cluster.num_processes
        )
    if card['process'] in hosts:
        return (
            f'two processes were started with --process_id={card["process"]}, on hosts '
            f'{hosts[card["process"]]} and {card["host"]}'
        )
    return ''


def _describe_missing(missing: list[int], cluster: Cluster, timeout_s: float) -> str:
    names = ', '.join(str(i) for i in missing)
    return (
        f'no sign of process {names} within {timeout_s:.0f} s; start all {cluster.num_processes} '
        f'processes, each with --coordinator={cluster.coordinator} and its own --process_id'
    )
