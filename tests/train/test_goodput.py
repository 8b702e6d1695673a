"""Where the time goes: spans, restarts, lost work, and files that are none."""

import json

import pytest

from maxquery_jax.train import goodput
from maxquery_jax.train.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, 'perf_counter', lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def seconds(file):
    return {k: v for k, v in json.loads(file.read_text())['seconds'].items() if v}


def train(book, clock, first, last, saves=()):
    """Steps of 3 s, 1 s of it for the data."""
    with book.span('step'):
        book.begin('a', first)
        for step in range(first + 1, last + 1):
            with book.span('data_wait'):
                clock(1)
            clock(2)
            book.finished_step()
            if step in saves:
                book.mark('a', step)
            book.beat()


def test_inner_spans_are_not_counted_twice(tmp_path, clock):
    file = tmp_path / 'goodput.json'
    book = Goodput(file, age_s=5)
    clock(1)
    with book.span('compile'):
        clock(10)
    train(book, clock, 0, 4)
    table = book.end('finished')
    assert seconds(file) == {'init': 6, 'compile': 10, 'data_wait': 4, 'step': 8}
    record = json.loads(file.read_text())
    assert record['total_s'] == 28 and record['percent']['data_wait'] == 14.29
    [start] = record['starts']
    assert (start['first_step_s'], start['ended'], start['from_step']) == (19, 'finished', 0)
    assert 'goodput: 28 s in 1 start, first step after 19.0 s' in table
    assert '  data_wait        4.0 s  14.3 %' in table.splitlines()


def test_work_after_the_step_that_a_restart_continues_from_is_lost(tmp_path, clock):
    file = tmp_path / 'goodput.json'
    killed = Goodput(file)
    clock(7)
    train(killed, clock, 0, 5, saves=(3,))  # killed after step 5: steps 4 and 5 are done again
    again = Goodput(file)
    clock(2)
    train(again, clock, 3, 6)
    again.end('stopped')
    assert seconds(file) == {'init': 9, 'data_wait': 6, 'step': 12, 'lost': 6}
    first, second = json.loads(file.read_text())['starts']
    assert first['ended'] is None and (second['ended'], second['lost_s']) == ('stopped', 6)
    # A restart further back, as after a damaged checkpoint, throws the new steps away too.
    back = Goodput(file)
    train(back, clock, 0, 1)
    back.end('finished')
    assert seconds(file) == {'init': 9, 'data_wait': 1, 'step': 2, 'lost': 24}


def test_a_start_that_trains_nothing_leaves_the_record_alone(tmp_path, clock):
    file = tmp_path / 'goodput.json'
    assert Goodput(file).end('finished') == '' and not file.exists()
    file.write_text('{"format": "other"}')
    book = Goodput(file)  # not ours: begins anew
    train(book, clock, 0, 1)
    book.end('finished')
    assert seconds(file) == {'data_wait': 1, 'step': 2}


def test_a_run_directory_that_vanished_is_not_made_again(tmp_path, clock):
    book = Goodput(tmp_path / 'gone' / 'goodput.json')
    train(book, clock, 0, 1)
    assert 'goodput: 3 s' in book.end('failed')
    assert not (tmp_path / 'gone').exists()


def test_the_file_is_written_now_and_then_only(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr(goodput, 'write_json', lambda file, value: written.append(value))
    book = Goodput(tmp_path / 'goodput.json')
    with book.span('step'):
        book.begin('a', 0)
        for _ in range(1000):
            clock(0.01)
            book.beat()
    assert 3 <= len(written) <= 6


def test_the_age_of_a_process_is_that_of_the_process():
    first = goodput.process_age_s()
    assert 0 < first < 24 * 3600 and goodput.process_age_s() - first < 10
