"""Files appear whole or not at all, and a failure says which file and what to do."""

import errno
import json
import os

import pytest

from maxquery_jax import files
from maxquery_jax.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_files_with_their_folders(tmp_path):
    files.write_text(tmp_path / 'a' / 'b' / 'x.txt', 'Fälle\n')
    files.write_bytes(str(tmp_path / 'x.bin'), b'\0\1')
    files.write_json(tmp_path / 'x.json', {'a': [1]})
    assert (tmp_path / 'a' / 'b' / 'x.txt').read_bytes() == 'Fälle\n'.encode()
    assert (tmp_path / 'x.bin').read_bytes() == b'\0\1'
    assert files.read_json(tmp_path / 'x.json', fix='') == {'a': [1]}
    assert names(tmp_path) == ['a', 'x.bin', 'x.json']


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / 'x'
    path.write_text('old')
    with files.replacing(path) as file:
        file.write(b'new')
        file.flush()
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'


@pytest.mark.parametrize('error', [ValueError('bug'), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_no_part(error, tmp_path):
    (tmp_path / 'x').write_text('old')
    with pytest.raises(type(error)), files.replacing(tmp_path / 'x') as file:
        file.write(b'half')
        raise error
    assert names(tmp_path) == ['x'] and (tmp_path / 'x').read_text() == 'old'


@pytest.mark.parametrize(
    ('code', 'words'),
    [(errno.ENOSPC, 'free disk space'), (errno.EACCES, 'permissions'), (errno.EIO, 'choose')],
)
def test_system_errors_name_the_file_and_the_fix(code, words, tmp_path):
    with pytest.raises(UserError) as caught, files.replacing(tmp_path / 'x'):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f'{tmp_path / "x"}: cannot be written ({os.strerror(code)}')
    assert words in message and '\n' not in message and names(tmp_path) == []


def test_impossible_places(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    for path in ('file/x', 'folder', 'y' * 300):
        with pytest.raises(UserError, match='cannot be written'):
            files.write_text(tmp_path / path, '')
    assert names(tmp_path) == ['file', 'folder'] and names(tmp_path / 'folder') == []


@pytest.mark.parametrize(
    ('content', 'words'),
    [(None, 'does not exist'), ('{', 'is not JSON'), ('[1]', 'no JSON object'),
     ('[' * 100_000, 'is not JSON'), (b'\xff\xfe\x00', 'is not JSON')],
)  # fmt: skip
def test_json_that_cannot_be_used(content, words, tmp_path):
    path = tmp_path / 'x.json'
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        files.read_json(path, fix='write it again')
    assert str(path) in str(caught.value) and str(caught.value).endswith('; write it again')


def test_json_round_trip_of_text(tmp_path):
    files.write_json(tmp_path / 'x', {'Größe': '日本'})
    assert json.loads((tmp_path / 'x').read_text()) == {'Größe': '日本'}
