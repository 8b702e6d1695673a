"""Label maps as .png slices beside a series."""

import numpy as np
import pytest
from PIL import Image  # comes with matplotlib

from maxquery_jax.data import volumes
from maxquery_jax.data.findings import FileError
from tests.data.dicom.dicom_helper import Place, hu_volume, write_series


def write_pngs(folder, label, *, mode='L', name='liver_GT_{:03d}.png'):
    """Writes [i, j, k] as slices, file k for slice k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(label.shape[2]):
        plane = np.ascontiguousarray(label[:, :, k].T)
        picture = Image.fromarray(plane)
        picture.convert(mode).save(folder / name.format(k))
    return folder


def _label(shape=(7, 6, 5)):
    return (np.random.default_rng(3).random(shape) > 0.6).astype(np.uint8) * 255


@pytest.mark.parametrize('mode', ['1', 'L'])
@pytest.mark.parametrize('names', ['i{:04d},0000b.dcm', 'IM{}'], ids=['padded', 'bare numbers'])
def test_files_pair_by_the_order_of_their_names(tmp_path, mode, names):
    """As CHAOS: the first DICOM file is the topmost slice, so positions fall with the number."""
    hu, label = hu_volume((7, 6, 12)), _label((7, 6, 12))
    place = Place(np.diag([1, 1, -1]))
    image = write_series(tmp_path / 'DICOM_anon', hu, place, name=names)
    folder = write_pngs(tmp_path / 'Ground', label, mode=mode)
    volume = volumes.read_label(folder, like=image)
    np.testing.assert_array_equal(volume.array, label[:, :, ::-1])
    np.testing.assert_array_equal(volumes.read_image(image).array, hu[:, :, ::-1])
    np.testing.assert_array_equal(volume.header.affine, volumes.read_image(image).header.affine)
    assert volume.sha256 == volumes.hash_input(folder)


def test_stacks_that_do_not_fit(tmp_path):
    image = write_series(tmp_path / 'a', hu_volume())
    folder = write_pngs(tmp_path / 'b', _label((7, 6, 4)))
    with pytest.raises(FileError, match='shape_mismatch: 4 .png files for 5 slices'):
        volumes.read_label(folder, like=image)
    folder = write_pngs(tmp_path / 'c', _label((6, 7, 5)))
    with pytest.raises(FileError, match=r'shape_mismatch: liver_GT_000.png is \(6, 7\)'):
        volumes.read_label(folder, like=image)
    folder = write_pngs(tmp_path / 'd', _label(), mode='RGB')
    with pytest.raises(FileError, match='dtype: liver_GT_000.png is a picture of mode RGB'):
        volumes.read_label(folder, like=image)
    folder = write_pngs(tmp_path / 'e', _label())
    path = folder / 'liver_GT_002.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FileError, match='corrupt: liver_GT_002.png'):
        volumes.read_label(folder, like=image)
    with pytest.raises(FileError, match='no place of their own'):
        volumes.read_label(folder, like=tmp_path / 'x.nii.gz')
