"""predict with a model whose answers are known: geometry, files, record, skipping, bad input."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from threshold_model import (
    expected_label,
    make_threshold_model,
    phantom_hu,
    save_scan,
)

from maxquery_jax.errors import UserError
from maxquery_jax.inference.predict import predict

SHAPE = (11, 14, 9)


def _affine(axes=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), degrees=0.0, shear=0.0):
    """File axis k runs along world axis axes[k] in direction signs[k], then turned about z, x."""
    matrix = np.zeros((3, 3))
    for k, (axis, sign, size) in enumerate(zip(axes, signs, spacing, strict=True)):
        matrix[axis, k] = sign * size
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -s], [0, s, c]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ matrix
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = [-31.5, 12.25, 700]
    return affine


def _load(path):
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image


def _all_orientations():
    return [
        pytest.param(
            axes,
            signs,
            id=''.join('RAS'[a] + '-+'[s > 0] for a, s in zip(axes, signs, strict=True)),
        )
        for axes in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


@pytest.fixture(scope='module')
def model():
    return make_threshold_model()


@pytest.mark.parametrize(('axes', 'signs'), _all_orientations())
def test_every_orientation_comes_back_voxel_for_voxel(tmp_path, model, axes, signs):
    hu = phantom_hu(SHAPE)
    affine = _affine(axes, signs, degrees=7)
    predict(model, save_scan(tmp_path / 'x.nii', hu, affine), tmp_path / 'out', step_size=0.6)
    label, image = _load(tmp_path / 'out' / 'x_seg.nii.gz')
    np.testing.assert_array_equal(label, expected_label(hu))
    score, score_image = _load(tmp_path / 'out' / 'x_ood.nii.gz')
    np.testing.assert_allclose(score, hu / 100, atol=1e-3)
    for found in (image, score_image):
        np.testing.assert_allclose(found.affine, affine, atol=1e-4)
        assert found.header['sform_code'] == 1 and found.header['qform_code'] == 1
    assert image.get_data_dtype() == np.uint8 and score_image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(score, score.astype(np.float16))


@pytest.mark.parametrize(
    'affine',
    [
        _affine((0, 1, 2), (-1, -1, 1), (0.7, 0.7, 2.5), degrees=12),
        _affine((2, 0, 1), (1, -1, -1), (3.0, 0.6, 0.9)),
        _affine(shear=0.3),
    ],
    ids=['oblique-thick', 'sagittal', 'sheared'],
)
def test_other_spacings_return_to_the_same_grid(tmp_path, model, affine):
    """A large smooth object keeps its place; only voxels at its border may change."""
    shape = (26, 30, 24)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    radius = np.sqrt((grid**2 * np.array([1, 1.5, 1.2]).reshape(3, 1, 1, 1)).sum(0))
    radius += 0.2 * grid[0] + 0.1 * grid[1]  # no symmetry that would hide a flip
    hu = np.round(200 * (0.75 - radius)).astype(np.int16)
    predict(model, save_scan(tmp_path / 'x.nii.gz', hu, affine), tmp_path / 'out', step_size=0.6)
    label, image = _load(tmp_path / 'out' / 'x_seg.nii.gz')
    score, _ = _load(tmp_path / 'out' / 'x_ood.nii.gz')
    assert label.shape == hu.shape
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    expected = expected_label(hu)
    inner = (slice(3, -3),) * 3
    wrong = label[inner] != expected[inner]
    distance = np.minimum(np.abs(hu - 20), np.abs(hu - 80))[inner]
    assert wrong.mean() < 0.04 and distance[wrong].max() < 25
    np.testing.assert_allclose(score[inner], np.clip(hu, -200, 200)[inner] / 100, atol=0.12)


def test_record_holds_what_the_files_say(tmp_path, model):
    hu = phantom_hu(SHAPE)
    affine = _affine((0, 1, 2), (-1, -1, 1))
    path = save_scan(tmp_path / 'case 1.nii.gz', hu, affine)
    scores = ('category_softmax', 'query_logit')
    (record,) = predict(model, path, tmp_path / 'out', scores=scores)
    content = json.loads(record.read_text())
    assert content['format'] == 'maxquery_jax/prediction' and content['version'] == 1
    assert content['files'] == {
        'seg': 'case 1_seg.nii.gz',
        'category_softmax': 'case 1_ood.nii.gz',
        'query_logit': 'case 1_ood-query_logit.nii.gz',
    }
    label, score = expected_label(hu), np.float16(-np.clip(hu, -200, 200) / 100).astype(float)
    assert content['volumes_ml'] == pytest.approx(
        {'liver': (label == 1).sum() / 1000, 'hcc': (label == 2).sum() / 1000}
    )
    (lesion,) = content['lesions']
    assert lesion['class'] == 'hcc' and lesion['voxels'] == (label == 2).sum()
    centre = affine @ [*np.argwhere(label == 2).mean(0), 1]
    np.testing.assert_allclose(lesion['centre_mm'], centre[:3], atol=1e-3)
    assert lesion['mean_score'] == pytest.approx(score[label == 2].mean(), abs=1e-3)
    assert content['case_ood_score'] == pytest.approx(score[label == 2].mean(), abs=1e-3)
    assert content['case_ood_fallback'] is None and content['primary_score'] == 'category_softmax'
    assert content['scores']['query_logit']['case'] == pytest.approx(1.2, abs=1e-3)
    assert content['labels'][2] == {'id': 2, 'name': 'hcc', 'role': 'tumour'}
    assert content['label_map'] == {'0': 0, '1': 1, '2': 2, '7': 3}
    assert content['model'] == {'name': model.description, 'params_sha256': 'ab' * 32}
    (source,) = content['input']
    assert source['file'] == 'case 1.nii.gz' and len(source['sha256']) == 64
    assert content['timings']['total_s'] > 0 and content['peak_memory_bytes'] > 1e6
    other, _ = _load(tmp_path / 'out' / 'case 1_ood-query_logit.nii.gz')
    np.testing.assert_allclose(other, -_load(tmp_path / 'out' / 'case 1_ood.nii.gz')[0])
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(
        [*content['files'].values(), 'case 1.json']
    )


@pytest.mark.parametrize(('organ', 'fallback'), [(50, 'organ'), (0, 'volume')])
def test_case_without_tumour_says_what_it_fell_back_to(tmp_path, model, organ, fallback):
    hu = np.zeros(SHAPE, np.int16)
    hu[3:6, 4:9, 2:7] = organ
    (record,) = predict(model, save_scan(tmp_path / 'x.nii', hu, np.eye(4)), tmp_path / 'out')
    content = json.loads(record.read_text())
    assert content['case_ood_fallback'] == fallback and content['lesions'] == []
    assert content['case_ood_score'] == pytest.approx(organ / 100, abs=1e-3)


def test_finished_scans_are_skipped_unless_told_otherwise(tmp_path, model, capsys):
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    out = tmp_path / 'out'
    (record,) = predict(model, path, out)
    before = record.stat().st_mtime_ns
    capsys.readouterr()
    assert predict(model, path, out) == [record]
    assert 'skipped' in capsys.readouterr().out and record.stat().st_mtime_ns == before
    predict(model, path, out, overwrite=True)
    assert record.stat().st_mtime_ns > before
    (out / 'x_seg.nii.gz').unlink()
    predict(model, path, out)
    assert (out / 'x_seg.nii.gz').exists()
    predict(model, path, out, scores=('query_logit', 'category_softmax'))
    assert (out / 'x_ood-category_softmax.nii.gz').exists()


def test_what_changed_is_predicted_again_and_leaves_nothing_behind(tmp_path, model):
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    out = tmp_path / 'out'
    predict(model, path, out, scores=('query_logit', 'category_softmax'))
    (record,) = predict(model, path, out, scores=('query_logit',))
    names = ['x.json', 'x_ood.nii.gz', 'x_seg.nii.gz']
    assert sorted(found.name for found in out.iterdir()) == names
    predict(model, path, out, scores=('query_logit',), step_size=0.9)
    assert json.loads(record.read_text())['settings']['step_size'] == 0.9
    hu = phantom_hu(SHAPE, seed=8)
    save_scan(path, hu, np.eye(4))
    predict(model, path, out, scores=('query_logit',), step_size=0.9)
    np.testing.assert_array_equal(_load(out / 'x_seg.nii.gz')[0], expected_label(hu))
    path.write_bytes(b'')
    with pytest.raises(UserError, match='x.nii'):
        predict(model, path, out, scores=('query_logit',), step_size=0.9)
    assert list(out.iterdir()) == []


def test_predictions_of_another_model_are_not_taken_for_ours(tmp_path, model):
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    predict(model, path, tmp_path / 'out')
    other = make_threshold_model(params_sha256='cd' * 32)
    with pytest.raises(UserError, match='another model; give --overwrite'):
        predict(other, path, tmp_path / 'out')
    (tmp_path / 'out' / 'x.json').write_text('{}')
    with pytest.raises(UserError, match='not a record'):
        predict(model, path, tmp_path / 'out')
    predict(other, path, tmp_path / 'out', overwrite=True)


def test_bad_files_are_named_and_the_others_predicted(tmp_path, model, capsys):
    folder = tmp_path / 'scans'
    folder.mkdir()
    save_scan(folder / 'a.nii.gz', phantom_hu(SHAPE), np.eye(4))
    (folder / 'b.nii.gz').write_bytes(b'<html>not found</html>')
    whole = save_scan(folder / 'c.nii.gz', phantom_hu(SHAPE), np.eye(4)).read_bytes()
    (folder / 'c.nii.gz').write_bytes(whole[: len(whole) // 2])
    nan = phantom_hu(SHAPE).astype(float)
    nan[3, 3, 3] = np.nan
    save_scan(folder / 'd.nii.gz', nan, np.eye(4), dtype=np.float32)
    save_scan(folder / 'e.nii.gz', phantom_hu(SHAPE), np.eye(4))
    with pytest.raises(UserError) as failure:
        predict(model, folder, tmp_path / 'out')
    message = str(failure.value)
    assert message.startswith('3 of 5 scans could not be predicted')
    assert all(f'{name}.nii.gz' in message for name in 'bcd') and '\n' not in message
    assert capsys.readouterr().err.count('failed') == 3
    assert sorted(p.name for p in (tmp_path / 'out').glob('*.json')) == ['a.json', 'e.json']
    with pytest.raises(UserError, match='2 of 5'):
        predict(model, folder, tmp_path / 'out', nan_policy='fill')


def test_nan_from_the_network_names_the_scan(tmp_path):
    broken = make_threshold_model(params={'shift': np.float32(np.nan)})
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    with pytest.raises(UserError, match=r'x\.nii.*NaN'):
        predict(broken, path, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_memory_limit_refuses_with_numbers(tmp_path, model, capsys):
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    with pytest.raises(UserError, match=r'x\.nii: needs .* GB.*allowed are 0\.01 GB'):
        predict(model, path, tmp_path / 'out', max_memory_gb=0.01)
    assert 'GB peak' in capsys.readouterr().out


def test_scaled_and_unsigned_files_are_read_as_hu(tmp_path, model):
    hu = phantom_hu(SHAPE)
    image = nib.Nifti1Image((hu.astype(np.int32) + 1024).astype(np.uint16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.eye(4), 1)
    image.to_filename(tmp_path / 'x.nii')
    raw = nib.load(tmp_path / 'x.nii')
    np.testing.assert_array_equal(np.asanyarray(raw.dataobj), hu)
    predict(model, tmp_path / 'x.nii', tmp_path / 'out')
    np.testing.assert_array_equal(_load(tmp_path / 'out' / 'x_seg.nii.gz')[0], expected_label(hu))


def test_values_that_are_no_hu_are_noted_or_refused(tmp_path, model, capsys):
    hu = phantom_hu(SHAPE)
    predict(model, save_scan(tmp_path / 'x.nii', hu + 1024, np.eye(4)), tmp_path / 'out')
    assert 'no negative value' in capsys.readouterr().err
    path = save_scan(tmp_path / 'y.nii', hu * 1e4, np.eye(4), dtype=np.float32)
    with pytest.raises(UserError, match='y.nii: value_range'):
        predict(model, path, tmp_path / 'out')
    predict(model, path, tmp_path / 'out', allow=['value_range'])


def test_channels_are_read_in_order_and_must_share_a_grid(tmp_path):
    two = make_threshold_model(channels=('arterial', 'venous'))
    hu, late = phantom_hu(SHAPE), phantom_hu(SHAPE, seed=5)
    folder = tmp_path / 'in'
    folder.mkdir()
    save_scan(folder / 'p_0001.nii.gz', late, np.eye(4))
    save_scan(folder / 'p_0000.nii.gz', hu, np.eye(4))
    predict(two, folder, tmp_path / 'out')
    np.testing.assert_array_equal(_load(tmp_path / 'out' / 'p_seg.nii.gz')[0], expected_label(hu))
    np.testing.assert_allclose(_load(tmp_path / 'out' / 'p_ood.nii.gz')[0], late / 100, atol=1e-3)
    content = json.loads((tmp_path / 'out' / 'p.json').read_text())
    assert [source['file'] for source in content['input']] == ['p_0000.nii.gz', 'p_0001.nii.gz']
    flipped = np.diag([-1, 1, 1, 1.0])
    flipped[0, 3] = SHAPE[0] - 1
    save_scan(folder / 'p_0001.nii.gz', late[::-1], flipped)  # the same grid, stored otherwise
    predict(two, folder, tmp_path / 'out3')
    score = _load(tmp_path / 'out3' / 'p_ood.nii.gz')[0]
    np.testing.assert_allclose(score, late / 100, atol=1e-3)
    save_scan(folder / 'p_0001.nii.gz', late, np.diag([1, 1, 1.1, 1]))
    with pytest.raises(UserError, match='register the phases'):
        predict(two, folder, tmp_path / 'out2')
    save_scan(folder / 'p_0001.nii.gz', late[:-1], np.eye(4))
    with pytest.raises(UserError, match='p_0001.nii.gz: has shape'):
        predict(two, folder, tmp_path / 'out2')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'step_size': 0.0}, 'step_size'),
        ({'batch_size': 0}, 'batch_size'),
        ({'max_memory_gb': -1.0}, 'max_memory_gb'),
        ({'scores': ['sml']}, 'no score .sml.: choose from query_logit'),
        ({'scores': ['query_logit', 'query_logit']}, 'repeat'),
        ({'split': 'test'}, 'either --input'),
        ({'output': None}, '--output is missing'),
        ({'source': None, 'split': 'test'}, 'names no store'),
    ],
)
def test_wrong_arguments(tmp_path, model, arguments, message):
    given = {'source': tmp_path, 'output': tmp_path / 'out'} | arguments
    with pytest.raises(UserError, match=message):
        predict(model, **given)


def test_a_list_of_scans_and_mirroring_and_batches(tmp_path, model):
    hu = phantom_hu(SHAPE)
    paths = [save_scan(tmp_path / f'{name}.nii', hu, np.eye(4)) for name in 'ab']
    records = predict(model, paths, tmp_path / 'out', mirror=True, batch_size=3, step_size=1.0)
    assert [record.name for record in records] == ['a.json', 'b.json']
    np.testing.assert_array_equal(_load(tmp_path / 'out' / 'b_seg.nii.gz')[0], expected_label(hu))
    assert len(model.program(('query_logit',), mirror=True)._compiled) == 1
