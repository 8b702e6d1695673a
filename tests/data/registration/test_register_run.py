"""A whole data set: grids, labels, policies, resuming, quality; each method end to end."""

import json

import numpy as np
import pytest
import register_helper as helper
from register_cases import AFFINE, SHIFT, SMALL, load, moved, register, still

from maxquery_jax.data import nifti
from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.orientation import find_orientation
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.registration.grids import Grid
from maxquery_jax.data.registration.options import Limits
from maxquery_jax.data.registration.transforms import write_field
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.errors import UserError

sitk = pytest.importorskip('SimpleITK')


def test_phases_lie_exactly_on_the_reference(two, tmp_path):
    register(two, tmp_path / 'out', 'rigid')
    for case_id in 'ab':
        reference, first = load(two / f'imagesTr/{case_id}_0000.nii.gz')
        for channel in range(2):
            array, image = load(tmp_path / f'out/imagesTr/{case_id}_000{channel}.nii.gz')
            assert array.dtype == np.int16 and array.shape == SMALL
            np.testing.assert_array_equal(image.affine, first.affine)
            for field in ('pixdim', 'qform_code', 'sform_code', 'quatern_b', 'srow_x', 'qoffset_z'):
                np.testing.assert_array_equal(image.header[field], first.header[field])
            assert (channel == 0) == np.array_equal(array, reference)
        label, image = load(tmp_path / f'out/labelsTr/{case_id}.nii.gz')
        truth, old = load(two / f'labelsTr/{case_id}.nii.gz')
        np.testing.assert_array_equal(label, truth)
        np.testing.assert_array_equal(image.affine, old.affine)


def test_rigid_undoes_the_motion(two, tmp_path):
    """The registered phase shows at each voxel what the patient has there."""
    records = register(two, tmp_path / 'out', 'rigid')
    array, _ = load(tmp_path / 'out/imagesTr/a_0001.nii.gz')
    truth = helper.scan(SMALL, AFFINE, blood=60, noise=0)
    headers, _ = load_headers(two, tmp_path)
    inside = truth > -300
    error = {name: np.abs(np.clip(x, -250, 350) - np.clip(truth, -250, 350))[inside].mean()
             for name, x in (('rigid', array), ('headers', headers))}  # fmt: skip
    assert error['rigid'] < 0.5 * error['headers']
    entry = records[0]['phases'][1]
    assert entry['kept'] == 'rigid' and entry['folding'] == 0
    assert entry['after']['ncc'] > entry['before']['ncc']
    assert entry['after']['body_dice'] > entry['before']['body_dice']
    assert entry['displacement_mm'] == pytest.approx(np.linalg.norm(SHIFT), abs=8)


def load_headers(two, tmp_path):
    register(two, tmp_path / 'headers', 'none')
    return load(tmp_path / 'headers/imagesTr/a_0001.nii.gz')


def test_outside_the_phase_is_air(tmp_path):
    half = (24, 20, 8)
    affine = helper.centred(half, (8.0, 8.0, 12.0), shift=(0, 0, 60))
    scan = helper.scan(half, affine), affine
    helper.write_dataset(tmp_path / 'raw', {'a': [still(), scan]})
    (record,) = register(tmp_path / 'raw', tmp_path / 'out')
    array, image = load(tmp_path / 'out/imagesTr/a_0001.nii.gz')
    z = helper.grid_points(SMALL, image.affine)[..., 2]
    assert (array[z < 60 - 4 * 12 - 0.01] == -1024).all()
    assert (array[z > 60 - 4 * 12 + 12] != -1024).mean() > 0.8
    assert record['phases'][1]['after']['coverage'] < 0.8


def test_equal_grids_are_copied_exactly(tmp_path):
    scans = [still(0), still(1), still(2)]
    helper.write_dataset(tmp_path / 'raw', {'a': scans}, phases=('n', 'a', 'v'))
    register(tmp_path / 'raw', tmp_path / 'out', reference='1')
    for channel, (array, _) in enumerate(scans):
        np.testing.assert_array_equal(
            load(tmp_path / f'out/imagesTr/a_000{channel}.nii.gz')[0], array
        )


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_same_bytes_with_and_without_processes_and_from_saved_transforms(two, tmp_path):
    register(two, tmp_path / 'x', 'rigid')
    register(two, tmp_path / 'y', 'rigid', workers=2)
    assert files_of(tmp_path / 'x') == files_of(tmp_path / 'y')
    saved = str(tmp_path / 'x/transforms/{case}_{channel}.tfm')
    register(two, tmp_path / 'z', 'transforms', transforms=(saved,))
    for name in ('imagesTr/a_0001.nii.gz', 'imagesTr/b_0001.nii.gz'):
        assert (tmp_path / 'x' / name).read_bytes() == (tmp_path / 'z' / name).read_bytes()


def test_deformable_twice_and_from_its_saved_field(two, tmp_path):
    (two / 'imagesTr/b_0000.nii.gz').unlink()
    for name in ('x', 'y'):
        register(two, tmp_path / name, 'deformable', missing='drop')
    assert files_of(tmp_path / 'x') == files_of(tmp_path / 'y')
    saved = str(tmp_path / 'x/transforms/{case}_{channel}.nii.gz')
    register(two, tmp_path / 'z', 'transforms', transforms=(saved,), missing='drop')
    name = 'imagesTr/a_0001.nii.gz'
    assert (tmp_path / 'x' / name).read_bytes() == (tmp_path / 'z' / name).read_bytes()


def test_given_shift_moves_by_whole_voxels(tmp_path):
    affine = helper.centred(SMALL, (8.0, 8.0, 12.0))
    first, second = helper.scan(SMALL, affine, seed=0), helper.scan(SMALL, affine, seed=1)
    helper.write_dataset(tmp_path / 'raw', {'a': [(first, affine), (second, affine)]})
    # Reference point x shows the phase's point x + (8, 0, 12) in RAS, (-8, 0, 12) in ITK's axes.
    sitk.WriteTransform(sitk.TranslationTransform(3, (-8, 0, 12)), str(tmp_path / 'a_arterial.tfm'))
    with_shift = np.full(SMALL, -1024, np.int16)
    with_shift[:-1, :, :-1] = second[1:, :, 1:]
    register(tmp_path / 'raw', tmp_path / 'headers')
    pattern = str(tmp_path / '{case}_{phase}.tfm')
    (record,) = register(tmp_path / 'raw', tmp_path / 'out', 'transforms', transforms=(pattern,))
    entry = record['phases'][1]
    assert entry['kept'] == 'headers'  # the phases agreed before, and a wrong file is noticed
    assert any('worse' in note for note in entry['notes'])
    helper.write_dataset(tmp_path / 'raw2', {'a': [(with_shift, affine), (second, affine)]})
    (record,) = register(tmp_path / 'raw2', tmp_path / 'out2', 'transforms', transforms=(pattern,))
    assert record['phases'][1]['kept'] == 'transforms'
    np.testing.assert_array_equal(load(tmp_path / 'out2/imagesTr/a_0001.nii.gz')[0], with_shift)


def test_a_folding_field_is_reported_and_strict_refuses(tmp_path):
    affine = helper.centred(SMALL, (8.0, 8.0, 12.0))
    scans = [(helper.scan(SMALL, affine, seed=s), affine) for s in (0, 1)]
    helper.write_dataset(tmp_path / 'raw', {'a': scans})
    grid = Grid.of(find_orientation(affine, SMALL))
    field = np.zeros((*grid.shape, 3))
    corner = (slice(0, 4), slice(0, 4), slice(0, 6))  # in the air: the images still agree
    field[corner][..., 0] = -2 * (grid.points()[corner][..., 0] - grid.points()[0, 0, 3, 0])
    write_field(tmp_path / 'a_arterial.nii.gz', field, grid)
    options = {'method': 'transforms', 'transforms': (str(tmp_path / '{case}_{phase}.nii.gz'),)}
    lines = []
    (record,) = register(tmp_path / 'raw', tmp_path / 'out', **options, log=lines.append)
    entry = record['phases'][1]
    assert entry['kept'] == 'transforms'
    assert entry['least_jacobian'] < 0 and entry['folding'] > 1e-3
    assert any('registration_folding' in line for line in lines)
    with pytest.raises(UserError, match='--allow=CHECK'):
        register(tmp_path / 'raw', tmp_path / 'out', **options, is_strict=True)
    assert not (tmp_path / 'out/dataset.json').exists()
    read = ReadOptions(frozenset({'registration_folding'}))
    register(tmp_path / 'raw', tmp_path / 'out', **options, is_strict=True, read=read)
    assert (tmp_path / 'out/dataset.json').exists()
    register(
        tmp_path / 'raw', tmp_path / 'out', **options, is_strict=True, limits=Limits(folding=0.5)
    )


def test_missing_phases_are_all_listed(two, tmp_path):
    (two / 'imagesTr/a_0001.nii.gz').unlink()
    (two / 'imagesTr/b_0000.nii.gz').unlink()
    lines, rows = [], tmp_path / 'rows.json'
    with pytest.raises(UserError, match='2 errors in 2 cases'):
        register(two, tmp_path / 'out', log=lines.append, json_path=rows)
    assert not (tmp_path / 'out').exists()
    assert [(row['case'], row['check']) for row in json.loads(rows.read_text())] == [
        ('a', 'phase_missing'), ('b', 'phase_missing')]  # fmt: skip
    assert "phase 'arterial'" in lines[0] and '(the reference)' in lines[0]


def test_missing_phases_dropped(two, tmp_path):
    (two / 'imagesTr/a_0001.nii.gz').unlink()
    register(two, tmp_path / 'out', missing='drop')
    raw = read_decathlon(tmp_path / 'out')
    assert [case.case_id for case in raw.cases] == ['b']
    assert raw.splits == {'train': (), 'val': ('b',), 'test': ()}
    assert json.loads((tmp_path / 'out/registration.json').read_text())['dropped'] == ['a']


def test_missing_phases_copied_and_recorded(two, tmp_path):
    (two / 'imagesTr/a_0001.nii.gz').unlink()
    register(two, tmp_path / 'out', missing='copy')
    first, second = (load(tmp_path / f'out/imagesTr/a_000{i}.nii.gz')[0] for i in range(2))
    np.testing.assert_array_equal(first, second)
    summary = json.loads((tmp_path / 'out/registration.json').read_text())
    listing = json.loads((tmp_path / 'out/dataset.json').read_text())
    assert summary['copied'] == {'a': ['arterial']}
    assert listing['maxquery_jax']['registration']['copied'] == {'a': ['arterial']}
    (two / 'imagesTr/b_0000.nii.gz').unlink()  # a reference cannot be replaced
    with pytest.raises(UserError, match='1 errors in 1 cases'):
        register(two, tmp_path / 'out2', missing='copy')


def test_loose_files_with_a_missing_phase(two, tmp_path):
    names = {'imagesTr/a_0000': 'a_ven', 'imagesTr/b_0000': 'b_ven', 'imagesTr/b_0001': 'b_art'}
    for old, new in {**names, 'labelsTr/a': 'a_seg', 'labelsTr/b': 'b_seg'}.items():
        (two / f'{old}.nii.gz').rename(two / f'{new}.nii.gz')
    pairs = PairOptions(
        ('*_ven.nii.gz', '*_art.nii.gz'), '*_seg.nii.gz', '1:liver,2:tumour', ('ven', 'art')
    )
    options = {'pairs': pairs, 'reference': 'VEN'}
    with pytest.raises(UserError, match='1 errors in 1 cases'):
        register(two, tmp_path / 'out', **options)
    register(two, tmp_path / 'out', **options, missing='copy')
    raw = read_decathlon(tmp_path / 'out')
    assert [case.case_id for case in raw.cases] == ['a', 'b']
    assert (raw.channels, raw.raw_labels) == (
        ('ven', 'art'),
        {0: 'background', 1: 'liver', 2: 'tumour'},
    )


def test_cases_without_a_label_go_to_the_test_folder(tmp_path):
    helper.write_dataset(tmp_path / 'raw', {'a': [still(), moved()]}, labels=False)
    for path in (tmp_path / 'raw/imagesTr').iterdir():
        path.rename(tmp_path / 'raw' / path.name)
    pairs = PairOptions(('*_0000.nii.gz', '*_0001.nii.gz'))
    register(tmp_path / 'raw', tmp_path / 'out', pairs=pairs, reference='0')
    assert sorted(p.name for p in (tmp_path / 'out/imagesTs').iterdir()) == [
        'a_0000.nii.gz', 'a_0001.nii.gz']  # fmt: skip


def test_a_finished_case_is_not_done_again(two, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    register(two, out)
    before = files_of(out)
    times = {p: p.stat().st_mtime_ns for p in (out / 'imagesTr').iterdir()}
    lines = []
    register(two, out, log=lines.append)
    assert lines[0] == '2 of 2 cases are registered already'
    assert {p: p.stat().st_mtime_ns for p in (out / 'imagesTr').iterdir()} == times
    (out / 'imagesTr/b_0001.nii.gz').write_bytes(b'spoilt')  # and one with other input is
    nifti.write_new(two / 'imagesTr/a_0001.nii.gz', *moved(9))
    (out / 'imagesTr/.a_0001.nii.gz.77.part').write_bytes(b'of a run that was killed')
    register(two, out, log=lines.append)
    after = files_of(out)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        'imagesTr/a_0001.nii.gz', 'records/a.json', 'registration.json'}  # fmt: skip


def test_a_case_that_is_gone_is_removed(two, tmp_path):
    out = tmp_path / 'out'
    register(two, out)
    for path in (*(two / 'imagesTr').glob('b_*'), two / 'labelsTr/b.nii.gz', two / 'dataset.json'):
        content = path.read_text() if path.suffix == '.json' else ''
        path.unlink()
    listing = {**json.loads(content), 'numTraining': 1}
    del listing['maxquery_jax']
    (two / 'dataset.json').write_text(json.dumps(listing))
    register(two, out)
    assert [case.case_id for case in read_decathlon(out).cases] == ['a']
    assert not [path for path in out.rglob('b*') if path.name.startswith(('b_', 'b.'))]


def test_other_settings_and_other_folders_are_refused(two, tmp_path):
    out = tmp_path / 'out'
    register(two, out)
    with pytest.raises(UserError, match='other settings .method.*--overwrite'):
        register(two, out, 'rigid')
    register(two, out, 'rigid', overwrite=True)
    assert (out / 'transforms/a_0001.tfm').exists()
    with pytest.raises(UserError, match='holds something else'):
        register(two, two)


def test_bad_files_are_all_listed_and_the_rest_is_kept(two, tmp_path):
    path = two / 'imagesTr/b_0001.nii.gz'
    good = path.read_bytes()
    path.write_bytes(good[:-300])
    lines = []
    with pytest.raises(UserError, match='1 errors in 1 cases.*run again'):
        register(two, tmp_path / 'out', log=lines.append)
    assert 'truncated' in lines[-1] and 'b_0001' in lines[-1]
    assert not (tmp_path / 'out/dataset.json').exists()
    path.write_bytes(good)
    register(two, tmp_path / 'out', log=lines.append)
    assert '1 of 2 cases are registered already' in lines


@pytest.mark.parametrize(
    ('array', 'words'),
    [
        (still()[0].astype(np.float32) / 1e5, 'normalised'),
        (still()[0].astype(np.int32) * 100, 'value_range'),
    ],
)
def test_values_that_are_no_hu_are_refused(two, tmp_path, array, words):
    nifti.write_new(two / 'imagesTr/a_0000.nii.gz', array, AFFINE)
    lines = []
    with pytest.raises(UserError):
        register(two, tmp_path / 'out', log=lines.append)
    assert words in lines[-1]


def test_a_label_of_another_phase_is_refused_with_its_name(two, tmp_path):
    lines = []
    with pytest.raises(UserError, match='2 errors in 2 cases'):
        register(two, tmp_path / 'out', reference='arterial', log=lines.append)
    assert "it lies on phase 'venous'" in lines[-1] and '--reference' in lines[-1]


def test_missing_transforms_are_all_listed(two, tmp_path):
    lines = []
    with pytest.raises(UserError, match='2 errors in 2 cases'):
        register(two, tmp_path / 'out', 'transforms', transforms=('none/{case}_{phase}.tfm',),
                 log=lines.append)  # fmt: skip
    assert lines[0].count('no transform for phase') == 2


def test_the_result_can_be_prepared(two, tmp_path):
    register(two, tmp_path / 'out', 'rigid')
    manifest = prepare(
        'decathlon', tmp_path / 'out', tmp_path / 'store', workers=0, log=lambda _: None
    )
    assert manifest.channels == ('venous', 'arterial')
    assert manifest.splits == {'train': ('a',), 'val': ('b',), 'test': ()}
    assert manifest.class_names == ('background', 'liver', 'tumour')


def test_nothing_left_is_an_error(two, tmp_path):
    for case_id in 'ab':
        (two / f'imagesTr/{case_id}_0001.nii.gz').unlink()
    with pytest.raises(UserError, match='nothing is left'):
        register(two, tmp_path / 'out', missing='drop')
