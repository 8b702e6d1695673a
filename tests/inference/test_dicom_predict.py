"""predict from DICOM: which folders are scans, geometry of the outputs, DICOM-SEG, privacy."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from threshold_model import expected_label, make_threshold_model, phantom_hu, save_scan

from maxquery_jax.data import volumes
from maxquery_jax.errors import UserError
from maxquery_jax.inference.cases import find_cases
from maxquery_jax.inference.dicom_seg import SOP_CLASS, format_number, write_dicom_seg
from maxquery_jax.inference.predict import predict
from tests.data.dicom.dicom_helper import (
    SECRETS,
    Place,
    bare_bytes,
    enhanced_bytes,
    pydicom,
    series_bytes,
    slice_dataset,
    write_files,
    write_series,
    write_zip,
)

ONE, TWO = ('ct',), ('arterial', 'venous')
SHAPE = (14, 11, 9)  # 154 pixels a slice: frames do not end at whole bytes
BOTH = ('nifti', 'dicom_seg')
PLACES = {
    'axial': Place(spacing=(1.0, 1.0, 1.0)),
    'from the head': Place(np.diag([1, 1, -1]), (1.0, 1.0, 1.0)),
    'mirrored': Place(np.diag([-1, -1, 1]), (1.0, 1.0, 1.0)),
    'coronal': Place(np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T, (1.0, 1.0, 1.0)),
    'oblique': Place(Rotation.random(random_state=4).as_matrix(), (1.0, 1.0, 1.0)),
}


@pytest.fixture(scope='module')
def model():
    return make_threshold_model()


def _names(cases):
    return [(case.name, [path.name for path in case.images]) for case in cases]


def _world_set(array, affine, value):
    """Places of the voxels of a value, mm."""
    index = np.argwhere(array == value)
    return np.unique(np.round(index @ affine[:3, :3].T + affine[:3, 3], 2), axis=0)


@pytest.mark.parametrize('name', PLACES)
def test_mask_and_map_lie_where_the_scan_lies(tmp_path, model, name):
    hu, place = phantom_hu(SHAPE), PLACES[name]
    source = write_series(tmp_path / 'scan.1', hu, place)
    (record,) = predict(model, source, tmp_path / 'out', step_size=0.6, output_types=BOTH)
    assert record.name == 'scan.1.json'
    image = nib.load(tmp_path / 'out' / 'scan.1_seg.nii.gz')
    assert image.header['sform_code'] == image.header['qform_code'] == 1
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)
    label = np.asanyarray(image.dataobj)
    for value in (1, 2):
        expected = _world_set(expected_label(hu), place.ras, value)
        np.testing.assert_allclose(_world_set(label, image.affine, value), expected, atol=0.02)
    score = nib.load(tmp_path / 'out' / 'scan.1_ood.nii.gz')
    volume = volumes.read_image(source)
    np.testing.assert_allclose(np.asanyarray(score.dataobj), volume.array / 100, atol=1e-3)
    np.testing.assert_allclose(score.affine, volume.header.affine, atol=1e-4)
    content = json.loads(record.read_text())
    assert content['input'] == [
        {'file': 'scan.1', 'sha256': volume.sha256, 'series': volume.header.series_id}
    ]


def _read_seg(path):
    """Places (L, P, S) of the voxels of each segment, from the standard alone."""
    seg = pydicom.dcmread(path)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder='little')
    count = seg.NumberOfFrames * seg.Rows * seg.Columns
    assert len(seg.PixelData) % 2 == 0 and not bits[count:].any()
    frames = bits[:count].reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = shared.PixelMeasuresSequence[0].PixelSpacing
    found = {}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        i, j = np.argwhere(frame).T
        places = origin + np.outer(j, turn[:3] * columns) + np.outer(i, turn[3:] * rows)
        found.setdefault(number, []).append(places)
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        found.setdefault('sources', {})[str(source.ReferencedSOPInstanceUID)] = origin
    return seg, found


@pytest.mark.parametrize('name', PLACES)
def test_dicom_seg_equals_the_mask(tmp_path, model, name):
    hu, place = phantom_hu(SHAPE), PLACES[name]
    source = write_series(tmp_path / 'scan', hu, place)
    predict(model, source, tmp_path / 'out', step_size=0.6, output_types=BOTH)
    seg, found = _read_seg(tmp_path / 'out' / 'scan_seg.dcm')
    assert seg.SOPClassUID == SOP_CLASS and seg.Modality == 'SEG'
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ['liver', 'hcc']
    kinds = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in seg.SegmentSequence]
    assert kinds == ['Organ', 'Neoplasm']
    for number in (1, 2):
        expected = _world_set(expected_label(hu), place.ras, number)
        places = np.unique(np.round(np.concatenate(found[number]) * [-1, -1, 1], 2), axis=0)
        np.testing.assert_allclose(places, expected, atol=0.02)
    assert seg.StudyInstanceUID == '1.2.3.77' and seg.FrameOfReferenceUID == '1.2.3.88'
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == '1.2.3'
    assert len(series.ReferencedInstanceSequence) == SHAPE[2]
    for uid, origin in found['sources'].items():
        np.testing.assert_allclose(place.of(int(uid.rpartition('.')[2]) - 1), origin, atol=1e-5)


def test_dicom_seg_is_read_by_highdicom(tmp_path, model):
    highdicom = pytest.importorskip('highdicom')
    hu = phantom_hu(SHAPE)
    source = write_series(tmp_path / 'scan', hu, PLACES['from the head'])
    predict(model, source, tmp_path / 'out', step_size=0.6, output_types=BOTH)
    seg = highdicom.seg.segread(tmp_path / 'out' / 'scan_seg.dcm')
    order = sorted(source.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in order]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    label = nib.load(tmp_path / 'out' / 'scan_seg.nii.gz').get_fdata()
    np.testing.assert_array_equal(pixels, label.transpose(2, 1, 0))
    volume = seg.get_volume(combine_segments=True)
    assert volume.spacing == pytest.approx((1.0, 1.0, 1.0))


def test_multi_frame_source_is_referred_to_by_frame(tmp_path, model):
    hu, place = phantom_hu(SHAPE), PLACES['axial']
    order = [*range(4, 9), *range(4)]
    source = write_files(tmp_path / 'scan', {'x.dcm': enhanced_bytes(hu, place, order)})
    predict(model, source, tmp_path / 'out', step_size=0.6, output_types=BOTH)
    seg, found = _read_seg(tmp_path / 'out' / 'scan_seg.dcm')
    assert sum(map(len, found[2])) == (expected_label(hu) == 2).sum()
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        position = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, place.of(order[image.ReferencedFrameNumber - 1]))
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


def test_no_tag_of_the_patient_leaves_the_scan(tmp_path, model, capfd, caplog):
    write_series(tmp_path / 'in' / 'scan', phantom_hu(SHAPE), PLACES['axial'])
    write_zip(tmp_path / 'in' / 'packed.zip', series_bytes(phantom_hu(SHAPE, 1)))
    write_series(tmp_path / 'in' / 'bad', phantom_hu(SHAPE), PixelSpacing=None)
    with pytest.raises(UserError) as caught:
        predict(model, tmp_path / 'in', tmp_path / 'out', step_size=0.6, output_types=BOTH)
    printed = capfd.readouterr()
    said = [str(caught.value), printed.out, printed.err, caplog.text]
    assert '1 of 3 scans could not be predicted' in said[0] and '[1/3] bad: failed' in printed.err
    files = sorted((tmp_path / 'out').iterdir())
    assert len(files) == 8
    for secret in SECRETS:
        assert not any(secret in text for text in said)
        assert not any(secret.encode() in file.read_bytes() for file in files), secret
    seg = pydicom.dcmread(tmp_path / 'out' / 'scan_seg.dcm')
    for keyword in ('PatientName', 'PatientID', 'PatientBirthDate', 'PatientSex', 'StudyDate'):
        assert keyword in seg and not seg[keyword].value
    for text in [*said, (tmp_path / 'out' / 'scan.json').read_text()]:
        assert '1.2.3.77' not in text and '1.2.3.88' not in text


def test_empty_mask_still_makes_an_object(tmp_path, model):
    source = write_series(tmp_path / 'scan', np.zeros(SHAPE, np.int16) - 900, PLACES['axial'])
    predict(model, source, tmp_path / 'out', step_size=0.6, output_types=BOTH)
    seg, _ = _read_seg(tmp_path / 'out' / 'scan_seg.dcm')
    assert seg.NumberOfFrames == len(seg.SegmentSequence) == 1 and not any(seg.PixelData)


def test_equal_masks_give_equal_identity(tmp_path):
    header = volumes.read_header(write_series(tmp_path / 'a', phantom_hu(SHAPE), PLACES['axial']))
    mask = expected_label(phantom_hu(SHAPE))
    labels = make_threshold_model().labels
    seen = []
    for number, array in enumerate((mask, mask.copy(), mask * 0 + 1)):
        write_dicom_seg(tmp_path / f'{number}.dcm', array, header, labels, algorithm='m')
        seen.append(str(pydicom.dcmread(tmp_path / f'{number}.dcm').SOPInstanceUID))
    assert seen[0] == seen[1] != seen[2]
    assert all(uid.startswith('2.25.') and len(uid) <= 64 for uid in seen)
    with pytest.raises(ValueError, match='shape of the series'):
        write_dicom_seg(tmp_path / 'x.dcm', mask[1:], header, labels, algorithm='m')


@pytest.mark.parametrize('value', [-249.51171875, 1 / 3, -1e-7 / 3, 1234567.891234567, 0.0, 1e-300])
def test_decimal_strings_fit(value):
    text = format_number(value)
    assert len(text) <= 16 and float(text) == pytest.approx(value, rel=1e-9)


def test_tilted_series_comes_back_to_its_own_slices(tmp_path, model):
    shape = (30, 34, 24)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    radius = np.sqrt((grid**2 * np.array([1, 1.5, 1.2]).reshape(3, 1, 1, 1)).sum(0))
    hu = np.round(200 * (0.75 - radius - 0.2 * grid[0])).astype(np.int16)
    place = Place(spacing=(1.0, 1.0, 1.0), tilt=0.3)
    source = write_series(tmp_path / 'scan', hu, place)
    predict(model, source, tmp_path / 'out', output_types=BOTH)
    image = nib.load(tmp_path / 'out' / 'scan_seg.nii.gz')
    np.testing.assert_allclose(image.affine, place.ras, atol=1e-4)
    label = np.asanyarray(image.dataobj)
    inner = (slice(3, -3),) * 3
    assert (label[inner] != expected_label(hu)[inner]).mean() < 0.04
    _, found = _read_seg(tmp_path / 'out' / 'scan_seg.dcm')
    assert sum(map(len, found[2])) == (label == 2).sum()


def test_finished_series_are_skipped_until_something_changes(tmp_path, model, capsys):
    source = write_series(tmp_path / 'scan', phantom_hu(SHAPE), PLACES['axial'])
    (record,) = predict(model, source, tmp_path / 'out')
    before = record.stat().st_mtime_ns
    predict(model, source, tmp_path / 'out')
    assert record.stat().st_mtime_ns == before and 'skipped' in capsys.readouterr().out
    predict(model, source, tmp_path / 'out', output_types=BOTH)
    assert (tmp_path / 'out' / 'scan_seg.dcm').exists()
    predict(model, source, tmp_path / 'out', output_types=BOTH)
    assert 'skipped' in capsys.readouterr().out
    write_series(source, phantom_hu(SHAPE, seed=5), PLACES['axial'])
    predict(model, source, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'scan_seg.dcm').exists()
    label = nib.load(tmp_path / 'out' / 'scan_seg.nii.gz').get_fdata()
    np.testing.assert_array_equal(label, expected_label(phantom_hu(SHAPE, seed=5)))


def test_series_is_chosen_by_the_user(tmp_path, model):
    first, second = phantom_hu(SHAPE), phantom_hu((9, 9, 9), 2)
    write_series(tmp_path / 'scan' / 'a', first, PLACES['axial'], uid='1.2.55')
    write_series(tmp_path / 'scan' / 'b', second, PLACES['axial'], uid='1.2.66')
    tags = {
        'SOPClassUID': '1.2.840.10008.1.3.10',
        'Rows': None,
        'Modality': None,
        'PixelData': None,
    }
    directory = series_bytes(first[:, :, :1], name='DICOMDIR', **tags)
    write_files(tmp_path / 'scan', directory)
    with pytest.raises(UserError, match=r'dicom_series: 2 series: \[1\]'):
        predict(model, tmp_path / 'scan', tmp_path / 'out')
    predict(model, tmp_path / 'scan', tmp_path / 'out', series='1.2.66')
    label = nib.load(tmp_path / 'out' / 'scan_seg.nii.gz').get_fdata()
    np.testing.assert_array_equal(label, expected_label(second))


def test_dicom_seg_needs_dicom(tmp_path, model):
    path = save_scan(tmp_path / 'x.nii', phantom_hu(SHAPE), np.eye(4))
    with pytest.raises(UserError, match='refers to a DICOM series, and this is none'):
        predict(model, path, tmp_path / 'out', output_types=BOTH)
    blank = [slice_dataset(phantom_hu(SHAPE), k, Place(), SOPInstanceUID='') for k in range(3)]
    files = {f'{k}.dcm': bare_bytes(dataset) for k, dataset in enumerate(blank)}
    write_files(tmp_path / 'scan', files)
    with pytest.raises(UserError, match='refers to SOPInstanceUIDs, and some are blank'):
        predict(model, tmp_path / 'scan', tmp_path / 'out', output_types=BOTH)
    with pytest.raises(UserError, match='--output_type=dicom: choose from nifti, dicom_seg'):
        predict(model, path, tmp_path / 'out', output_types=['dicom'])


def test_channels_may_be_folders(tmp_path):
    model = make_threshold_model(channels=TWO)
    hu = [phantom_hu(SHAPE), phantom_hu(SHAPE, 3)]
    for channel in (0, 1):
        write_series(tmp_path / 'in' / f'p_000{channel}', hu[channel], PLACES['axial'])
    (record,) = predict(model, tmp_path / 'in', tmp_path / 'out')
    score = nib.load(tmp_path / 'out' / 'p_ood.nii.gz').get_fdata()
    np.testing.assert_allclose(score, hu[1] / 100, atol=1e-3)
    assert [entry['file'] for entry in json.loads(record.read_text())['input']] == [
        'p_0000',
        'p_0001',
    ]


def test_which_folders_are_scans(tmp_path):
    data = series_bytes(phantom_hu((4, 4, 2)))
    write_files(tmp_path / 'one', data)
    write_files(tmp_path / 'one' / 'deeper', data)
    assert _names(find_cases(tmp_path / 'one', ONE)) == [('one', ['one'])]
    write_files(tmp_path / 'many' / 'b' / 'study' / 'series', data)
    write_files(tmp_path / 'many' / '1.2.840' / 'x', {'IM1': data['000.dcm']})
    write_zip(tmp_path / 'many' / 'c.zip', data)
    (tmp_path / 'many' / 'a.nii.gz').touch()
    (tmp_path / 'many' / 'notes').mkdir()
    (tmp_path / 'many' / 'notes' / 'x.txt').write_text('text')
    assert _names(find_cases(tmp_path / 'many', ONE)) == [
        ('1.2.840', ['1.2.840']),
        ('a', ['a.nii.gz']),
        ('b', ['b']),
        ('c', ['c.zip']),
    ]
    assert _names(find_cases(tmp_path / 'many' / 'c.zip', ONE)) == [('c', ['c.zip'])]
    assert find_cases([tmp_path / 'one'], ONE)[0].name == 'one'
    (tmp_path / 'one' / 'mask.nii').touch()
    with pytest.raises(UserError, match='holds NIfTI and DICOM files'):
        find_cases(tmp_path / 'one', ONE)
    with pytest.raises(UserError, match='no DICOM series'):
        find_cases(tmp_path / 'many' / 'notes', ONE)


def test_real_series(tmp_path, real_data):
    spacing = (2.0, 0.9765625, 0.9765625)
    model = make_threshold_model(spacing_mm=spacing, patch_size=(4, 256, 256))
    files = sorted((real_data / 'dicom' / 'ts_dicom_ct').iterdir())
    source = write_files(tmp_path / 'scan', {f.name: f.read_bytes() for f in files[:4]})  # topmost
    predict(model, source, tmp_path, step_size=1.0, output_types=BOTH)
    label = nib.as_closest_canonical(nib.load(tmp_path / 'scan_seg.nii.gz'))
    twin = nib.load(real_data / 'totalsegmentator' / 'ts_dicom_ct.nii.gz')
    twin = nib.as_closest_canonical(twin).slicer[:, :, 16:]
    np.testing.assert_array_equal(label.dataobj, expected_label(np.asanyarray(twin.dataobj)))
    np.testing.assert_allclose(label.affine, twin.affine, atol=1e-4)
    _, found = _read_seg(tmp_path / 'scan_seg.dcm')
    for value in (1, 2):
        assert sum(map(len, found[value])) == (np.asanyarray(label.dataobj) == value).sum()
