"""Raw scans to a store: what is written, that it continues, and how it fails."""

import json
import pathlib
import shutil

import nifti_helper as helper
import numpy as np
import pytest
from scipy import ndimage

from maxquery_jax.data import convert
from maxquery_jax.data import prepare as prepare_lib
from maxquery_jax.data.check import ReadOptions
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
SHAPE = (16, 14, 10)
SPACING = (1.5, 1.5, 3.0)  # of the files, along i, j, k
SPLITS = {'train': ['a', 'b', 'c'], 'val': ['d'], 'test': ['e']}
LABELS = {'0': 'background', '5': 'liver', '2': 'liver tumour', '9': 'cyst'}


@pytest.fixture
def raw(tmp_path):
    cases = {name: helper.blob_case(i, SHAPE, (5, 2)) for i, name in enumerate('abcd')}
    cases['e'] = helper.blob_case(9, SHAPE, (5, 9))
    return helper.decathlon(tmp_path / 'raw', cases, LABELS)


OPTIONS = {
    'roles': RoleFlags(ood=('cyst',)),
    'split': SplitOptions(given=SPLITS),
    'log': lambda _: None,
}


def canonical(array):
    """The helper writes LPS: flip x and y, then z, y, x."""
    return np.flip(array, (0, 1)).transpose(2, 1, 0)


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_store_holds_the_canonical_scans(raw, tmp_path):
    manifest = prepare('decathlon', raw, tmp_path / 'store', **OPTIONS)
    store = PatchStore(tmp_path / 'store')
    assert store.manifest == manifest
    assert manifest.spacing_mm == (3, 1.5, 1.5) and manifest.channels == ('CT',)
    assert manifest.class_names == ('background', 'liver', 'liver tumour')
    assert manifest.ood_ids == (3,) and manifest.class_groups == (0, 1, 2)
    assert dict(manifest.label_map) == {'0': 0, '5': 1, '2': 2, '9': 3}
    assert {k: list(v) for k, v in manifest.splits.items()} == SPLITS
    assert set(manifest.annotated) == {'liver', 'liver tumour', 'cyst'}
    for i, name in enumerate('abcd'):
        image, label = helper.blob_case(i, SHAPE, (5, 2))
        np.testing.assert_array_equal(store.read_image(name)[..., 0], canonical(image))
        mapped = np.select([label == 5, label == 2], [1, 2]).astype(np.uint8)
        np.testing.assert_array_equal(store.read_label(name), canonical(mapped))
        assert manifest.cases[name]['voxels'] == {
            str(k): int((mapped == k).sum()) for k in range(3)}  # fmt: skip
    case = manifest.cases['a']
    assert case['source'] == {'image': ['imagesTr/a.nii.gz'], 'label': 'labelsTr/a.nii.gz'}
    assert case['native']['shape'] == list(SHAPE) and case['shape'] == [10, 14, 16]
    np.testing.assert_allclose(case['native']['affine'], helper.affine_of(SPACING, 'LPS'))
    assert set(case['sha256']) == {'imagesTr/a.nii.gz', 'labelsTr/a.nii.gz'}


def test_intensity_comes_from_the_training_foreground(raw, tmp_path):
    manifest = prepare('decathlon', raw, tmp_path / 'store', **OPTIONS)
    values = np.concatenate(
        [image[label > 0] for image, label in (helper.blob_case(i, SHAPE) for i in range(3))]
    ).astype(float)
    intensity = manifest.intensity
    assert intensity['shift'] == pytest.approx([values.mean()])
    assert intensity['scale'] == pytest.approx([values.std()])
    assert intensity['lower'] == pytest.approx([np.percentile(values, 0.5)])
    assert intensity['upper'] == pytest.approx([np.percentile(values, 99.5)])
    assert manifest.fingerprint['intensity_hu'][0]['voxels'] == len(values)


def test_options_of_the_store(raw, tmp_path):
    manifest = prepare(
        'decathlon', raw, tmp_path / 'store', spacing_mm=(3, 3, 3), window_hu=(-175, 250), **OPTIONS
    )
    assert manifest.intensity['lower'] == [-175] and manifest.intensity['scale'] == [425]
    image, label = helper.blob_case(0, SHAPE, (5, 2))
    store = PatchStore(tmp_path / 'store')
    assert store.shape('a') == (10, 7, 8)
    expected = ndimage.zoom(
        canonical(image).astype(float), (1, 0.5, 0.5), order=3, mode='nearest', grid_mode=True
    )
    np.testing.assert_allclose(
        store.read_image('a')[..., 0], expected.clip(image.min(), image.max()), atol=0.51
    )
    halves = canonical(label == 5).reshape(10, 7, 2, 8, 2).mean((2, 4))
    found = store.read_label('a') == 1
    assert found[halves > 0.5].all() and not found[halves < 0.5].any()
    for wrong in ({'spacing_mm': (1, 2)}, {'spacing_mm': (0, 1, 1)}, {'window_hu': (3, 2)},
                  {'label_method': 'cubic'}):  # fmt: skip
        with pytest.raises(UserError, match='--'):
            prepare('decathlon', raw, tmp_path / 'other', **OPTIONS, **wrong)


def test_workers_write_the_same_store(raw, tmp_path):
    for workers in (0, 2):
        prepare('decathlon', raw, tmp_path / f'store{workers}', workers=workers, **OPTIONS)
    assert snapshot(tmp_path / 'store0') == snapshot(tmp_path / 'store2')


def test_interrupted_run_continues(raw, tmp_path, monkeypatch):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    prepare('decathlon', raw, whole, **OPTIONS)
    original = convert.convert_case
    done = []

    def killed(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.case.case_id)
        return original(task)

    monkeypatch.setattr(prepare_lib, 'convert_case', killed)
    with pytest.raises(KeyboardInterrupt):
        prepare('decathlon', raw, broken, workers=0, **OPTIONS)
    with pytest.raises(UserError, match='not finished'):
        PatchStore(broken)
    first = done.copy()

    def counted(task):
        done.append(task.case.case_id)
        return original(task)

    monkeypatch.setattr(prepare_lib, 'convert_case', counted)
    lines = []
    prepare('decathlon', raw, broken, workers=0, **{**OPTIONS, 'log': lines.append})
    assert lines[0] == '2 of 5 cases are written already'
    assert sorted(done) == list('abcde') and done[:2] == first
    assert snapshot(whole) == snapshot(broken)


def test_interrupted_run_redoes_what_changed(raw, tmp_path, monkeypatch):
    store = tmp_path / 'store'

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_lib.StoreWriter, 'finish', lambda *_: stop(None))
    with pytest.raises(KeyboardInterrupt):
        prepare('decathlon', raw, store, **OPTIONS)
    monkeypatch.undo()
    image, _ = helper.blob_case(77, SHAPE)
    affine = helper.affine_of(SPACING, 'LPS')
    helper.write(raw / 'imagesTr' / 'b.nii.gz', image, affine)
    lines = []
    prepare('decathlon', raw, store, **{**OPTIONS, 'log': lines.append})
    assert lines[0] == '4 of 5 cases are written already'
    np.testing.assert_array_equal(PatchStore(store).read_image('b')[..., 0], canonical(image))


def test_finished_store_is_kept_or_replaced_on_request(raw, tmp_path):
    store = tmp_path / 'store'
    prepare('decathlon', raw, store, **OPTIONS)
    before = snapshot(store)
    lines = []
    prepare('decathlon', raw, store, **{**OPTIONS, 'log': lines.append})
    assert lines == [f'{store}: up to date (5 cases)'] and snapshot(store) == before
    with pytest.raises(UserError, match=r'other settings \(store\).*--overwrite'):
        prepare('decathlon', raw, store, spacing_mm=(3, 3, 3), **OPTIONS)
    image, _ = helper.blob_case(77, SHAPE)
    helper.write(raw / 'imagesTr' / 'b.nii.gz', image, helper.affine_of(SPACING, 'LPS'))
    with pytest.raises(UserError, match="imagesTr/b.nii.gz of case 'b' has changed"):
        prepare('decathlon', raw, store, **OPTIONS)
    assert snapshot(store) == before
    manifest = prepare(
        'decathlon', raw, store, spacing_mm=(3, 3, 3), overwrite=True, **OPTIONS
    )  # fmt: skip
    assert PatchStore(store).manifest == manifest and manifest.spacing_mm == (3, 3, 3)


def test_overwriting_with_bad_data_keeps_the_old_store(raw, tmp_path):
    store = tmp_path / 'store'
    prepare('decathlon', raw, store, **OPTIONS)
    before = snapshot(store)
    (raw / 'imagesTr' / 'c.nii.gz').write_bytes(b'<html>')
    with pytest.raises(UserError, match='1 errors in 1 of 5 cases'):
        prepare('decathlon', raw, store, overwrite=True, **OPTIONS)
    assert snapshot(store) == before


def test_foreign_folder_is_refused(raw, tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.txt').touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r'thesis\.txt'):
            prepare('decathlon', raw, tmp_path / 'home', overwrite=overwrite, **OPTIONS)
    assert (tmp_path / 'home' / 'thesis.txt').exists()


def test_bad_data_is_refused_with_the_table(raw, tmp_path):
    for name in 'bd':
        path = raw / 'imagesTr' / f'{name}.nii.gz'
        path.write_bytes(path.read_bytes()[:-50])
    lines = []
    options = {**OPTIONS, 'log': lines.append, 'json_path': tmp_path / 'rows.json'}
    with pytest.raises(UserError, match='2 errors in 2 of 5 cases'):
        prepare('decathlon', raw, tmp_path / 'store', **options)
    assert 'imagesTr/b.nii.gz' in lines[0] and 'imagesTr/d.nii.gz' in lines[0]
    assert [row['case'] for row in json.loads((tmp_path / 'rows.json').read_text())] == ['b', 'd']
    assert not (tmp_path / 'store' / 'manifest.json').exists()
    for accept in ({'check': False}, {'read': ReadOptions(frozenset({'truncated'}))}):
        target = tmp_path / f'store_{len(accept)}{"check" in accept}'
        manifest = prepare('decathlon', raw, target, **options, **accept)
        assert sorted(manifest.cases) == ['a', 'c', 'e'] and manifest.splits['val'] == ()
        assert any('2 cases cannot be used: b, d' in line for line in lines)


def test_nothing_usable(raw, tmp_path):
    for path in (raw / 'imagesTr').iterdir():
        path.write_bytes(b'')
    with pytest.raises(UserError, match='no case can be used'):
        prepare('decathlon', raw, tmp_path / 'store', check=False, **OPTIONS)


def test_accepted_faults_become_voxels(tmp_path):
    image, label = helper.blob_case(0, SHAPE)
    image = image.astype(np.float32)
    image[0, 0, 0], image[1, 0, 0], image[2, 0, 0] = np.nan, 70000, 12.6
    label = label.astype(np.int16)
    label[0, 0, :2] = 300
    raw = helper.decathlon(tmp_path / 'raw', {'a': (image, label)})
    allow = frozenset({'nonfinite', 'value_range', 'label_unknown'})
    prepare('decathlon', raw, tmp_path / 'store', read=ReadOptions(allow), log=lambda _: None)
    store = PatchStore(tmp_path / 'store')
    stored = canonical(store.read_image('a')[..., 0].transpose(2, 1, 0)).transpose(2, 1, 0)
    assert stored[0, 0, 0] == -1024 and stored[1, 0, 0] == 32767 and stored[2, 0, 0] == 13
    assert store.manifest.cases['a']['voxels'] == {
        '0': int((label == 0).sum()) + 2, '1': int((label == 1).sum()),
        '2': int((label == 2).sum())}  # fmt: skip


def test_one_case_trains(tmp_path):
    raw = helper.decathlon(tmp_path / 'raw', {'a': helper.blob_case(0, SHAPE)})
    lines = []
    manifest = prepare('decathlon', raw, tmp_path / 'store', log=lines.append)
    assert manifest.splits == {'train': ('a',), 'val': (), 'test': ()}
    assert any('only case trains' in line for line in lines)


def test_default_split_keeps_ood_cases_for_testing(tmp_path):
    cases = {f'{i:02d}': helper.blob_case(i, SHAPE, (1, 3) if i < 4 else (1, 2)) for i in range(24)}
    raw = helper.decathlon(tmp_path / 'raw', cases)
    manifest = prepare('decathlon', raw, tmp_path / 'store', roles=RoleFlags(ood=('cyst',)),
                       log=lambda _: None)  # fmt: skip
    assert {'00', '01', '02', '03'} <= set(manifest.splits['test'])
    assert [len(manifest.splits[name]) for name in ('train', 'val', 'test')] == [13, 3, 8]


def test_several_phases_and_unlabelled_cases(tmp_path):
    affine = helper.affine_of(SPACING, 'LPS')
    for i, case in enumerate('ab'):
        for phase in ('art', 'ven'):
            helper.write(tmp_path / f'{case}_{phase}.nii', helper.hu_volume(SHAPE, i), affine)
    helper.write(tmp_path / 'a_seg.nii', helper.blob_case(0, SHAPE)[1], affine)
    pairs = PairOptions(('*_art.nii', '*_ven.nii'), '*_seg.nii', '1:liver,2:tumour', ('art', 'ven'))
    manifest = prepare(
        'pairs', tmp_path, tmp_path / 'store', pairs=pairs,
        read=ReadOptions(frozenset({'missing_label'})), log=lambda _: None,
    )  # fmt: skip
    store = PatchStore(tmp_path / 'store')
    assert manifest.channels == ('art', 'ven') and len(manifest.intensity['scale']) == 2
    assert manifest.splits == {'train': ('a',), 'val': (), 'test': ('b',)}
    assert store.read_image('a').shape == (10, 14, 16, 2)
    assert store.has_label('a') and not store.has_label('b')


def test_sheared_scan_is_straightened_with_its_label(tmp_path):
    image, label = helper.blob_case(0, (20, 20, 20))
    affine = np.eye(4)
    affine[1, 2] = 0.2
    raw = helper.decathlon(tmp_path / 'raw', {'a': (image, label)})
    for sub, array in (('imagesTr', image), ('labelsTr', label)):
        helper.write(raw / sub / 'a.nii.gz', array, affine)
    prepare('decathlon', raw, tmp_path / 'store', log=lambda _: None)
    store = PatchStore(tmp_path / 'store')
    assert store.read_image('a').shape[:3] == store.read_label('a').shape != (20, 20, 20)
    sizes = store.manifest.cases['a']['voxels']
    assert sizes['1'] == pytest.approx((label == 1).sum(), rel=0.1)


def test_file_that_changes_meanwhile_is_noticed(raw, tmp_path, monkeypatch):
    original = prepare_lib.survey_dataset

    def survey_then_change(*args, **kwargs):
        result = original(*args, **kwargs)
        shutil.copy(raw / 'imagesTr' / 'a.nii.gz', raw / 'imagesTr' / 'b.nii.gz')
        return result

    monkeypatch.setattr(prepare_lib, 'survey_dataset', survey_then_change)
    with pytest.raises(UserError, match=r'b\.nii\.gz: changed while it was prepared'):
        prepare('decathlon', raw, tmp_path / 'store', **OPTIONS)


def test_store_that_cannot_be_written(raw, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file/store.*cannot be written'):
        prepare('decathlon', raw, tmp_path / 'file' / 'store', **OPTIONS)


def test_phantom_cohort_is_written_first(tmp_path):
    spec = {'num_train': 1, 'num_val': 0, 'num_test_inlier': 0, 'num_test_ood': 1,
            'shape_zyx': (16, 32, 32), 'phases': 'venous'}  # fmt: skip
    options = {'workers': 0, 'log': lambda _: None}
    source, store = tmp_path / 'raw', tmp_path / 'store'
    manifest = prepare('phantom', source, store, phantom=spec, **options)
    assert [len(manifest.splits[name]) for name in ('train', 'val', 'test')] == [1, 0, 1]
    assert manifest.ood_ids and manifest.labels[1]['role'] == 'organ'
    assert prepare('phantom', source, store, **options) == manifest
    for wrong, words in [({'num_trian': 1}, 'num_trian'), ({**spec, 'seed': 1}, 'another data set'),
                         ({'num_train': 'x'}, 'num_train')]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            prepare('phantom', source, store, phantom=wrong, **options)
    with pytest.raises(UserError, match='--phantom belongs'):
        prepare('decathlon', source, store, phantom=spec, **options)


# The commands.


def launch(python, verb, *args):
    return processes.run(
        [python, '-m', f'launch.{verb}', *args], cwd=ROOT,
    )  # fmt: skip


@pytest.mark.integration
def test_commands(raw, tmp_path, python):
    store = tmp_path / 'store'
    source = ['--dataset=decathlon', f'--source={raw}', '--ood=cyst']
    done = launch(python, 'prepare', *source, f'--store={store}', '--spacing=3,3,3')
    assert done.returncode == 0, done.stderr
    assert PatchStore(store).manifest.spacing_mm == (3, 3, 3)
    (raw / 'imagesTr' / 'a.nii.gz').write_bytes(b'')
    bad = launch(python, 'check', *source, f'--json={tmp_path / "rows.json"}')
    assert bad.returncode == 2 and 'imagesTr/a.nii.gz' in bad.stdout
    errors = [line for line in bad.stderr.splitlines() if line.startswith('error:')]
    assert len(errors) == 1 and 'Traceback' not in bad.stderr
    assert json.loads((tmp_path / 'rows.json').read_text())[0]['check'] == 'format'
