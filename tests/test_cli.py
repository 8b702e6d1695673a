"""What a verb's failure becomes: one line and exit code 2, or a traceback for a bug of ours."""

import errno
import os

import pytest

from launch import _cli
from maxquery_jax.errors import StoppedError, UserError


def failing(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (UserError('scan.nii:\n  is bad'), 'error: scan.nii: is bad'),
        (StoppedError('stopped at step 3'), 'error: stopped at step 3'),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), '/data/scans'),
         'error: /data/scans: Permission denied; mend its permissions'),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/out'),
         'error: /data/out: No space left on device; free disk space'),
    ],
)  # fmt: skip
def test_the_users_faults_are_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli._guard(failing(error))
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count('\n') == 1


@pytest.mark.parametrize(
    'error',
    [ValueError('bug'), FileNotFoundError(errno.ENOENT, 'No such file', 'made/up'),
     OSError(errno.EACCES, 'no file is named')],
)  # fmt: skip
def test_our_faults_keep_their_traceback(error):
    with pytest.raises(type(error)):
        _cli._guard(failing(error))
