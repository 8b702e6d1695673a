"""Any kind of input through one door: `volumes`, and data sets of DICOM through `prepare`."""

import json
import pathlib

import nibabel as nib
import numpy as np
import pytest

from maxquery_jax.data import nifti, volumes
from maxquery_jax.data.check import check_dataset
from maxquery_jax.data.findings import FileError
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from tests import processes
from tests.data.dicom.dicom_helper import (
    SECRETS,
    Place,
    hu_volume,
    series_bytes,
    write_files,
    write_series,
    write_zip,
)

ROOT = pathlib.Path(__file__).parents[2]


def _save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_each_kind_of_image_is_the_same_volume(tmp_path):
    hu, place = hu_volume(), Place()
    file = _save(tmp_path / 'x.nii.gz', hu, place.ras)
    files = series_bytes(hu, place)
    folder = write_files(tmp_path / 'x.nested' / 'dicom', files).parent
    archive = write_zip(tmp_path / 'X.ZIP', files)
    for path in (file, folder, archive):
        volume, header = volumes.read_image(path), volumes.read_header(path)
        np.testing.assert_array_equal(volume.array, hu)
        np.testing.assert_allclose(header.affine, place.ras, atol=1e-5)
        assert volumes.hash_input(path) == volume.sha256
        assert volumes.is_dicom(path) == (path != file)
    assert volumes.count_bytes(folder) == sum(map(len, files.values()))
    assert [volumes.stem(path) for path in (file, folder, archive)] == ['x', 'x.nested', 'X']


def test_one_slice_is_not_a_scan(tmp_path):
    write_series(tmp_path, hu_volume())
    with pytest.raises(FileError, match='is one DICOM file; give the folder or .zip'):
        volumes.read_image(tmp_path / '000.dcm')


def test_each_kind_of_label(tmp_path):
    label, affine = (hu_volume() > 0).astype(np.uint8), Place().ras
    file = _save(tmp_path / 'seg.nii.gz', label, affine)
    _save(tmp_path / 'masks' / 'liver.nii.gz', label, affine)
    masks = volumes.read_label(tmp_path / 'masks', masks={'liver': 7})
    np.testing.assert_array_equal(masks.array, label * 7)
    np.testing.assert_array_equal(volumes.read_label(file).array, label)
    assert volumes.hash_input(tmp_path / 'masks') == masks.sha256


def _cohort(folder, *, archives=False):
    """Four cases: a DICOM folder or .zip, and a label map in another axis order."""
    labels = {}
    for number in range(4):
        hu = hu_volume((20, 18, 12), seed=number)
        hu[5:12, 4:11, 3:9] += 500
        place = Place(np.diag([1, 1, -1 if number % 2 else 1]))
        label = np.zeros(hu.shape, np.uint8)
        label[5:12, 4:11, 3:9] = 1
        label[7:9, 6:8, 4:6] = 2
        files = series_bytes(hu, place)
        if archives:
            write_zip(folder / f'case{number}.zip', files)
        else:
            write_files(folder / f'case{number}' / 'dicom', files)
        affine = place.ras @ np.diag([-1, 1, 1, 1.0])
        affine[:3, 3] = (place.ras @ [19, 0, 0, 1])[:3]
        _save(folder / f'case{number}_seg.nii.gz', label[::-1], affine)
        labels[f'case{number}'] = label
    return labels


def _pairs(images):
    return PairOptions((images,), '*_seg.nii.gz', '1:liver,2:liver_tumour')


@pytest.mark.parametrize('archives', [False, True], ids=['folders', 'archives'])
def test_prepare_reads_dicom_as_it_reads_nifti(tmp_path, archives):
    source = tmp_path / 'raw'
    labels = _cohort(source, archives=archives)
    images = '*.zip' if archives else '*/dicom'
    lines = []
    options = {'pairs': _pairs(images), 'workers': 0, 'log': lines.append}
    options['spacing_mm'] = (2.5, 0.9, 0.8)
    manifest = prepare('pairs', source, tmp_path / 'store', json_path=tmp_path / 'f', **options)
    assert sorted(manifest.cases) == sorted(labels)
    store = PatchStore(tmp_path / 'store')
    for case, label in labels.items():
        path = source / manifest.cases[case]['source']['image'][0]
        volume = volumes.read_image(path)
        expected, place = nifti.to_canonical(volume)
        shape = store.shape(case)
        assert shape == place.shape
        np.testing.assert_array_equal(store.read_image(case, (0, 0, 0), shape)[..., 0], expected)
        stored = store.read_label(case, (0, 0, 0), shape)
        assert [(stored == i).sum() for i in (1, 2)] == [(label == i).sum() for i in (1, 2)]
        assert expected[stored == 1].mean() > expected[stored == 0].mean() + 300
    prepare('pairs', source, tmp_path / 'store', **options)
    assert 'up to date' in lines[-1]
    _assert_private(tmp_path / 'store', tmp_path / 'f')


def test_a_changed_series_is_noticed(tmp_path):
    source = tmp_path / 'raw'
    _cohort(source)
    options = {'pairs': _pairs('*/dicom'), 'workers': 0, 'log': print}
    prepare('pairs', source, tmp_path / 'store', **options)
    write_series(source / 'case1' / 'dicom', hu_volume((20, 18, 12), seed=9))
    with pytest.raises(UserError, match="case1/dicom of case 'case1' has changed"):
        prepare('pairs', source, tmp_path / 'store', **options)


def test_check_lists_every_bad_series(tmp_path):
    _cohort(tmp_path)
    (tmp_path / 'case0' / 'dicom' / '005.dcm').unlink()
    write_series(tmp_path / 'case2' / 'dicom' / 'more', hu_volume(), uid='1.2.66')
    rows = check_dataset('pairs', tmp_path, pairs=_pairs('*/dicom'), workers=0)
    found = {(row.case, row.check) for row in rows if row.severity == 'error'}
    assert found == {('case0', 'dicom_gap'), ('case2', 'dicom_series')}
    assert not any(secret in str(row) for row in rows for secret in SECRETS)


def test_png_labels_of_chaos(tmp_path):
    from tests.data.dicom.test_png_labels import write_pngs

    for number in range(3):
        hu, label = hu_volume((16, 16, 10), seed=number), np.zeros((16, 16, 10), np.uint8)
        label[4:9, 5:9, 2:7] = 255
        hu[label > 0] = 1200
        case = tmp_path / 'CT' / str(number)
        write_series(case / 'DICOM_anon', hu, Place(np.diag([1, 1, -1])), name='i{:04d},0000b.dcm')
        write_pngs(case / 'Ground', label, mode='1')
    pairs = PairOptions(('*/DICOM_anon',), '*/Ground', '255:liver')
    options = {'workers': 0, 'spacing_mm': (2.5, 0.9, 0.8), 'pairs': pairs}
    manifest = prepare('pairs', tmp_path / 'CT', tmp_path / 'store', log=print, **options)
    assert sorted(manifest.cases) == ['0', '1', '2']
    assert all(case['voxels']['1'] == 100 for case in manifest.cases.values())
    store = PatchStore(tmp_path / 'store')
    image = store.read_image('1', (0, 0, 0), store.shape('1'))[..., 0]
    assert (image[store.read_label('1', (0, 0, 0), store.shape('1')) == 1] == 1200).all()


def test_commands(tmp_path, python):
    _cohort(tmp_path / 'raw')
    write_series(tmp_path / 'raw' / 'case3' / 'dicom' / 'b', hu_volume(), uid='1.2.66')
    flags = [
        '--dataset=pairs', f'--source={tmp_path / "raw"}', '--images=*/dicom',
        '--labels=*_seg.nii.gz', '--label_names=1:liver,2:liver_tumour', '--workers=0',
    ]  # fmt: skip
    check = [python, '-m', 'launch.check', *flags, f'--json={tmp_path / "findings.json"}']
    run = processes.run(check, cwd=ROOT)
    assert run.returncode == 2 and 'dicom_series' in run.stdout
    (row,) = [
        r for r in json.loads((tmp_path / 'findings.json').read_text()) if 'series' in r['check']
    ]
    assert row['case'] == 'case3'
    store = [python, '-m', 'launch.prepare', *flags, f'--store={tmp_path / "store"}', '--series=1']
    done = processes.run(store, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for text in (run.stdout, run.stderr, done.stdout, done.stderr):
        assert not any(secret in text for secret in SECRETS)
    _assert_private(tmp_path / 'store', tmp_path / 'findings.json')


def _assert_private(*paths):
    files = [f for p in paths for f in (p.rglob('*') if p.is_dir() else [p]) if f.is_file()]
    assert files
    for file in files:
        data = file.read_bytes()
        assert not any(secret.encode() in data for secret in SECRETS), file
