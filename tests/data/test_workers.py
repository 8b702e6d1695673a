"""The process pool: every result, and a dead process named by its case."""

import multiprocessing
import os
import signal

import pytest

from maxquery_jax.data.workers import map_cases
from maxquery_jax.errors import UserError


def square(number):
    if number == 7:
        raise UserError('seven')
    if number == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 9:
        os._exit(3)
    if number == 10:
        raise KeyError('ten')
    return number * number


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_pool_returns_every_result(workers):
    tasks = [(f'n{i}', i) for i in range(6)]
    assert dict(map_cases(square, tasks, workers=workers)) == {f'n{i}': i * i for i in range(6)}
    assert list(map_cases(square, [], workers=workers)) == []


@pytest.mark.parametrize(
    ('number', 'error', 'words'),
    [
        (7, UserError, 'seven'),
        (8, UserError, "case 'bad': its worker process ended with signal SIGKILL, most likely"),
        (9, UserError, "case 'bad': its worker process ended with exit code 3"),
        (10, RuntimeError, "KeyError: 'ten'"),
    ],
)
def test_dead_worker_is_named_by_its_case(number, error, words):
    tasks = [('good', 1), ('bad', number), ('other', 2)]
    with pytest.raises(error) as caught:
        list(map_cases(square, tasks, workers=2))
    assert words in str(caught.value)
    assert error is UserError or "case 'bad'" in str(caught.value)


def nested(_):
    return dict(map_cases(square, [('a', 3), ('b', 4)], workers=2))


def test_works_inside_a_daemonic_process():
    """Such a process cannot have children (schedulers start jobs this way)."""
    ((_, result),) = map_cases(nested, [('outer', 0)], workers=1)
    assert result == {'a': 9, 'b': 16}


def test_no_process_is_left_behind():
    before = len(multiprocessing.active_children())
    results = map_cases(square, [(f'n{i}', i) for i in range(6)], workers=2)
    next(results)
    results.close()  # the caller stops early
    assert len(multiprocessing.active_children()) == before
