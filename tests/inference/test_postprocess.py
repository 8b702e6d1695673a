"""The clean-up of label maps, on volumes whose answer is drawn by hand."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from threshold_model import make_threshold_model, save_scan

from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.errors import UserError
from maxquery_jax.inference.memory import estimate_memory
from maxquery_jax.inference.postprocess import check_labels, postprocess_zept
from maxquery_jax.inference.predict import predict

SPACING = (1.5, 1.5, 1.5)
LABELS = [{'id': 0, 'name': 'background', 'role': 'background'}] + [
    {'id': i, 'name': concept.name, 'role': 'organ' if concept.kind == 'organ' else 'tumour'}
    for i, concept in enumerate(TAXONOMY, start=1)
]
ID = {label['name']: label['id'] for label in LABELS}


def volume(*boxes, shape=(30, 40, 50)):
    """A label map from (class, first corner, size), later ones over earlier ones."""
    label = np.zeros(shape, np.uint8)
    for name, corner, size in boxes:
        label[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = ID[name]
    return label


def clean(label, spacing=SPACING, labels=LABELS):
    before = label.copy()
    result = postprocess_zept(label, labels, spacing)
    np.testing.assert_array_equal(label, before)
    assert result.dtype == np.uint8
    return result


def test_an_organ_keeps_its_largest_component():
    spleen = ('spleen', (2, 2, 2), (8, 8, 8))
    touching = ('spleen', (10, 10, 10), (2, 2, 2))  # by a corner: the same component
    far = ('spleen', (20, 2, 2), (5, 5, 5))
    np.testing.assert_array_equal(clean(volume(spleen, touching, far)), volume(spleen, touching))


def test_a_tumour_that_cuts_an_organ_in_two_keeps_both_halves():
    """The organ's own mask holds the tumour, so its halves are one component."""
    drawn = volume(
        ('liver', (2, 2, 2), (10, 20, 20)),
        ('liver_tumour', (2, 10, 2), (10, 6, 20)),
        ('liver', (20, 30, 40), (4, 4, 4)),
    )
    expected = volume(('liver', (2, 2, 2), (10, 20, 20)), ('liver_tumour', (2, 10, 2), (10, 6, 20)))
    np.testing.assert_array_equal(clean(drawn), expected)


def test_a_large_tumour_elsewhere_is_not_the_organ():
    kidney = ('right_kidney', (2, 2, 2), (6, 6, 6))
    tumour = ('kidney_tumour', (15, 20, 20), (12, 12, 12))
    np.testing.assert_array_equal(clean(volume(kidney, tumour)), volume(kidney))


def test_lungs_keep_two_components_and_one_side_each():
    right, left = ('right_lung', (2, 2, 30), (10, 10, 15)), ('left_lung', (2, 2, 2), (10, 10, 12))
    confused = ('left_lung', (4, 4, 32), (3, 3, 3))  # inside the right lung
    third = ('right_lung', (20, 20, 20), (4, 4, 4))
    found = clean(volume(right, left, confused, third))
    np.testing.assert_array_equal(found, volume(right, left))
    joined = volume(right, ('left_lung', (2, 2, 2), (10, 10, 28)))  # one component stays as it is
    np.testing.assert_array_equal(clean(joined), joined)
    torn = volume(right, ('right_lung', (20, 2, 30), (6, 10, 15)))  # two pieces of one side too
    np.testing.assert_array_equal(clean(torn), torn)


@pytest.mark.parametrize(
    ('name', 'count', 'voxels'),
    [
        ('pancreas_tumour', 1, 100),
        ('hepatic_vessel_tumour', 10, 80),
        ('lung_tumour', 10, 30),
        ('colon_tumour', 3, 100),
        ('kidney_cyst', 20, 20),
    ],
)
def test_tumours_keep_the_largest_components_above_a_size(name, count, voxels):
    label = np.zeros((44, 1, 130), np.uint8)
    sizes = [voxels - 1 + row for row in range(22)]  # the first is one voxel too small
    for row, size in enumerate(sizes):
        label[2 * row, 0, :size] = ID[name]
    found = [int((clean(label)[2 * row] == ID[name]).sum()) for row in range(22)]
    is_kept = [row >= max(1, 22 - count) for row in range(22)]
    assert found == [size * kept for size, kept in zip(sizes, is_kept, strict=True)]


def test_sizes_are_volumes():
    """At 3 mm a voxel is eight of the code's: 13 of them are 104, 12 are 96."""
    for size, stays in (((13, 1, 1), True), ((12, 1, 1), False)):
        label = volume(('pancreas_tumour', (2, 2, 2), size))
        assert clean(label, (3.0, 3.0, 3.0)).any() == stays


def test_kidney_and_liver_tumours_stay_near_their_organ():
    """The organ reaches two voxels further, and what hangs together with it is part of it."""
    liver = ('liver', (4, 10, 10), (12, 12, 12))  # z from 4 to 15
    grown = ('liver_tumour', (12, 14, 14), (12, 4, 4))  # hangs out by eight slices
    near = ('liver_tumour', (4, 10, 23), (2, 2, 4))  # x 23 to 26; the liver ends at 21
    far = ('liver_tumour', (25, 30, 40), (3, 3, 3))
    expected = volume(liver, grown, ('liver_tumour', (4, 10, 23), (2, 2, 1)))
    np.testing.assert_array_equal(clean(volume(liver, grown, near, far)), expected)


def test_the_region_is_that_of_the_released_code():
    """Closing by the box of the dilation, as the code does, changes nothing; SciPy agrees."""
    rng = np.random.default_rng(0)
    box = np.ones((5, 5, 5), bool)
    organ = np.zeros((26, 28, 30), bool)
    organ[8:18, 8:20, 8:22] = rng.random((10, 12, 14)) < 0.2
    organ[8:18, 8, 8:22] = organ[8, 8:20, 8:22] = organ[8:18, 8:20, 8] = True
    components, _ = ndimage.label(organ, np.ones((3, 3, 3)))
    organ = components == np.bincount(components[organ]).argmax()
    region = ndimage.binary_dilation(ndimage.binary_closing(organ, box), box)
    label = np.where(organ, ID['liver'], 0).astype(np.uint8)
    scattered = np.zeros(label.shape, bool)
    scattered[::2, ::2, ::2] = True
    scattered &= ~ndimage.binary_dilation(organ, np.ones((3, 3, 3)))  # not grown together with it
    label[scattered] = ID['liver_tumour']
    kept = clean(label) == ID['liver_tumour']
    assert 0 < kept.sum() < scattered.sum()
    np.testing.assert_array_equal(kept, scattered & region)


def test_what_loses_its_class_takes_the_class_around_it():
    liver = ('liver', (2, 2, 2), (12, 20, 20))
    vessel = ('hepatic_vessel', (4, 4, 4), (1, 1, 12))
    inside = ('hepatic_vessel_tumour', (7, 8, 8), (3, 3, 3))  # 27 voxels, 80 are needed
    outside = ('hepatic_vessel_tumour', (22, 30, 30), (3, 3, 3))
    found = clean(volume(liver, vessel, inside, outside))
    np.testing.assert_array_equal(found, volume(liver, vessel))


def test_borders_of_the_volume_are_no_borders_of_the_organ():
    liver = ('liver', (0, 0, 0), (8, 40, 50))
    tumour = ('liver_tumour', (8, 0, 0), (1, 1, 1))
    drawn = volume(liver, tumour)
    np.testing.assert_array_equal(clean(drawn), drawn)


def test_other_classes_and_missing_organs():
    """Vessels branch, tumours without a rule stay, and without its organ a tumour has no region."""
    drawn = volume(
        ('hepatic_vessel', (2, 2, 2), (3, 3, 3)),
        ('hepatic_vessel', (20, 2, 2), (3, 3, 3)),
        ('stomach_tumour', (10, 10, 10), (1, 1, 1)),
    )
    np.testing.assert_array_equal(clean(drawn), drawn)
    tumours = [LABELS[0], {'id': 1, 'name': 'liver tumor', 'role': 'tumour'}]
    small = np.zeros((5, 5, 5), np.uint8)
    small[2, 2, 2] = 1
    np.testing.assert_array_equal(clean(small, labels=tumours), small)
    assert not clean(np.zeros((4, 4, 4), np.uint8)).any()
    # With the organ among the classes but not in the prediction there is nothing to lie in.
    alone = volume(('liver_tumour', (2, 2, 2), (9, 9, 9)))
    assert not clean(alone).any()


def test_unknown_names():
    check_labels(LABELS)
    with pytest.raises(UserError, match='no class of ZePT Table 8'):
        check_labels([LABELS[0], {'id': 1, 'name': 'wrist', 'role': 'organ'}])


def test_predict_cleans_on_request(tmp_path):
    """Two liver-coloured boxes: the smaller one goes, and the record says why."""
    hu = np.full((24, 20, 16), -100, np.int16)
    hu[2:12, 2:12, 2:12] = 50
    hu[16:19, 15:18, 12:15] = 50
    scan = save_scan(tmp_path / 'x.nii', hu, np.eye(4))
    model = make_threshold_model()
    voxels, records = [], []
    for name in (None, 'zept'):
        (record,) = predict(model, scan, tmp_path / 'out', postprocess=name)
        records.append(json.loads(record.read_text()))
        mask = np.asanyarray(nib.load(tmp_path / 'out' / 'x_seg.nii.gz').dataobj)
        voxels.append(int((mask == 1).sum()))
    assert voxels == [1027, 1000]
    assert records[1]['settings']['postprocess'] == 'zept'
    assert 'postprocess' not in records[0]['settings']
    assert records[1]['volumes_ml']['liver'] == pytest.approx(1.0)
    with pytest.raises(UserError, match='--postprocess=crf: choose from zept'):
        predict(model, scan, tmp_path / 'out', postprocess='crf')


def test_its_memory_is_in_the_estimate():
    sizes = {'shape': (400, 400, 400), 'model_shape': (400, 400, 400), 'patch_size': (8, 8, 8)}
    plain, cleaned = (
        estimate_memory(**sizes, num_classes=3, is_postprocessed=flag) for flag in (False, True)
    )
    assert cleaned.export == 23 * 400**3 > plain.export and cleaned.window == plain.window
