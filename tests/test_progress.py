"""The progress line, with and without a terminal."""

import io

import pytest

from maxquery_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_plain_lines_are_rare_and_tell_the_time_left(clock):
    stream = io.StringIO()
    line = progress.Progress(
        '[1/2] x:', 40, unit='tiles', stream=stream, is_closed_by_caller=True
    )  # fmt: skip
    for _ in range(5):
        clock[0] += 5
        line.step(count=2)
    line.close('done')
    assert stream.getvalue().splitlines() == [
        '[1/2] x: 4/40 tiles, 1m30s left',
        '[1/2] x: 8/40 tiles, 1m20s left',
        '[1/2] x: done',
    ]


def test_the_last_step_ends_the_line_and_tells_the_time_taken(clock):
    stream = io.StringIO()
    line = progress.Progress('check', 3, stream=stream, every_s=1)
    for name in 'abc':
        clock[0] += 2
        line.step(name)
    assert stream.getvalue().splitlines() == [
        'check 1/3, a, 4s left',
        'check 2/3, b, 2s left',
        'check 3/3 in 6s',
    ]


def test_a_terminal_line_overwrites_itself(clock):
    stream = Terminal()
    line = progress.Progress('x', 4, stream=stream, is_closed_by_caller=True)
    for _ in range(4):
        clock[0] += 1
        line.step()
    line.close('done')
    assert stream.getvalue().count('\r') == 5 and stream.getvalue().count('\n') == 1
    assert stream.getvalue().endswith('x done\n')


def test_a_terminal_is_not_flooded(clock):
    stream = Terminal()
    line = progress.Progress('x', 1000, stream=stream)
    for _ in range(1000):
        clock[0] += 0.01
        line.step()
    assert 40 <= stream.getvalue().count('\r') <= 60
    assert stream.getvalue().endswith('x 1000/1000 in 10s\n') and stream.getvalue().count('\n') == 1


def test_lines_that_the_caller_paces(capsys):
    line = progress.Line(every_s=1000)
    line.print('one')
    line.show('too soon')
    line.print('two')
    line.end()
    assert capsys.readouterr().err == 'one\ntwo\n'


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0s'), (59.6, '1m00s'), (185, '3m05s'), (7800, '2h10m')]
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
