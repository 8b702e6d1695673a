"""The progress line of a prediction, with and without a terminal."""

import io

import pytest

from maxquery_jax.inference import progress


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
    line = progress.Progress('[1/2] x', 40, stream)
    for _ in range(10):
        clock[0] += 2.5
        line.add(1)
    line.close('done')
    assert stream.getvalue().splitlines() == [
        '[1/2] x: 4/40 tiles, 1m30s left',
        '[1/2] x: 8/40 tiles, 1m20s left',
        '[1/2] x: done',
    ]


def test_a_terminal_line_overwrites_itself(clock):
    stream = Terminal()
    line = progress.Progress('x', 4, stream)
    for _ in range(4):
        clock[0] += 1
        line.add(1)
    line.close('done')
    assert stream.getvalue().count('\r') == 5 and stream.getvalue().count('\n') == 1


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0s'), (59.6, '1m00s'), (185, '3m05s'), (7800, '2h10m')]
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
