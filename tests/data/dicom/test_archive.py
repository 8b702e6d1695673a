"""Zip archives: the same as their folder, and safe to open."""

import stat
import zipfile

import numpy as np
import pytest

from maxquery_jax.data.dicom.files import ArchiveFiles
from maxquery_jax.data.dicom.reader import hash_series, read_image
from maxquery_jax.data.findings import FileError, Findings
from tests.data.dicom.dicom_helper import hu_volume, series_bytes, write_files, write_zip


def test_an_archive_is_its_folder(tmp_path):
    files = series_bytes(hu_volume())
    folder = read_image(write_files(tmp_path / 'folder', files))
    path = write_zip(tmp_path / 'x.zip', {f'study/{name}': data for name, data in files.items()})
    archive = read_image(path)
    np.testing.assert_array_equal(archive.array, folder.array)
    np.testing.assert_array_equal(archive.header.affine, folder.header.affine)
    assert archive.sha256 == folder.sha256 == hash_series(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder', 'x.zip']


def _member(name, **fields):
    info = zipfile.ZipInfo('placeholder')
    info.filename = name
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ('info', 'message'),
    [
        (_member('../evil.dcm'), "'../evil.dcm' leaves the archive"),
        (_member('a/../../evil.dcm'), 'leaves the archive'),
        (_member('/etc/evil.dcm'), 'leaves the archive'),
        (_member('..\\evil.dcm'), 'leaves the archive'),
        (_member('C:\\evil.dcm'), 'leaves the archive'),
        (_member('link.dcm', external_attr=(stat.S_IFLNK | 0o777) << 16), 'is a link'),
    ],
    ids=['dots', 'inner dots', 'absolute', 'backslash', 'drive', 'link'],
)
def test_unsafe_members_are_refused(tmp_path, info, message):
    path = write_zip(tmp_path / 'x.zip', series_bytes(hu_volume()))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(info, b'data')
    with pytest.raises(FileError, match='archive: ') as caught:
        read_image(path, allow=['archive'])
    assert message in str(caught.value)


def test_bombs_are_refused_by_their_ratio(tmp_path):
    bomb = bytes(1024) + bytes(300 << 10) * 10
    path = write_zip(tmp_path / 'x.zip', {**series_bytes(hu_volume()), 'bomb.dcm': bomb})
    with pytest.raises(FileError, match=r"archive: member 'bomb.dcm' unpacks from [\d,]+ to 3,0"):
        read_image(path)


def test_archives_that_unpack_to_too_much_are_refused(tmp_path):
    path = write_zip(tmp_path / 'x.zip', {'a': bytes(5000), 'b': bytes(5000)})
    ArchiveFiles(path, Findings(path), 10_000)
    with pytest.raises(FileError, match='too_large: unpacks to'):
        ArchiveFiles(path, Findings(path), 9_999)


def test_encrypted_archives_are_refused(tmp_path):
    path = write_zip(tmp_path / 'x.zip', {'a.dcm': b'secret'}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    central = data.index(b'PK\x01\x02')
    data[6] |= 1
    data[central + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="member 'a.dcm' is encrypted"):
        read_image(path)


def test_damaged_archives_never_end_in_a_traceback(tmp_path):
    path = write_zip(tmp_path / 'x.zip', series_bytes(hu_volume((4, 3, 3))))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(120):
        damaged = bytearray(data)
        if trial % 2:
            damaged = damaged[: rng.integers(len(data))]
        else:
            for at in rng.integers(0, len(data), 4):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except FileError as error:
            assert '\n' not in str(error)
    path.unlink()
    with pytest.raises(FileError, match='missing_file'):
        read_image(path)


def test_links_in_a_folder(tmp_path):
    files = series_bytes(hu_volume())
    real = write_files(tmp_path / 'store', files)
    linked = tmp_path / 'linked'
    linked.mkdir()
    for name in files:
        (linked / name).symlink_to(real / name)
    np.testing.assert_array_equal(read_image(linked).array, hu_volume())
    (real / '002.dcm').unlink()
    with pytest.raises(FileError, match='missing_file: 002.dcm is a link to nothing'):
        read_image(linked)
