"""--split: the raw scans behind a store, read exactly as prepare read them."""

import json

import nibabel as nib
import numpy as np
import pytest
from threshold_model import expected_label, make_threshold_model, phantom_hu, save_scan

from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.inference.cases import find_split
from maxquery_jax.inference.predict import predict
from maxquery_jax.inference.scan import read_grid, read_scan

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
SHAPE = (16, 14, 10)
SPACING = (4.0, 2.0, 2.0)
SPLITS = {'train': ['a'], 'val': ['b'], 'test': ['c', 'd']}


@pytest.fixture
def store(tmp_path):
    """A store of two-phase cases; test case d holds a NaN that prepare was told to fill."""
    raw = tmp_path / 'raw'
    for folder in ('imagesTr', 'labelsTr'):
        (raw / folder).mkdir(parents=True)
    for seed, name in enumerate('abcd'):
        for channel in range(2):
            hu = phantom_hu(SHAPE, seed + 10 * channel).astype(np.float32)
            if name == 'd':
                hu[0, 0, 0] = np.nan
            path = raw / 'imagesTr' / f'{name}_{channel:04d}.nii.gz'
            save_scan(path, hu, AFFINE, dtype=np.float32)
        label = expected_label(phantom_hu(SHAPE, seed))
        save_scan(raw / 'labelsTr' / f'{name}.nii.gz', label, AFFINE, dtype=np.uint8)
    listing = {
        'channel_names': {'0': 'arterial', '1': 'venous'},
        'labels': {'background': 0, 'liver': 1, 'liver tumour': 2},
        'numTraining': 4,
        'file_ending': '.nii.gz',
    }
    (raw / 'dataset.json').write_text(json.dumps(listing))
    prepare(
        'decathlon',
        raw,
        tmp_path / 'store',
        spacing_mm=SPACING,
        split=SplitOptions(given=SPLITS),
        check=False,
        log=lambda _: None,
        workers=0,
    )
    return tmp_path / 'store'


def _model(store, **fields):
    return make_threshold_model(
        channels=('arterial', 'venous'), spacing_mm=SPACING, store=str(store), **fields
    )


def test_image_is_the_one_training_saw(store):
    opened = PatchStore(store)
    for case in find_split(store, 'test'):
        grid = read_grid(case, SPACING, case.reading)
        image, hashes, _ = read_scan(case, grid, SPACING, case.reading)
        np.testing.assert_array_equal(image, opened.read_image(case.name))
        assert tuple(hashes) == case.sha256


def test_predictions_of_a_split_go_into_the_run(store, tmp_path):
    model = _model(store, run_dir=tmp_path / 'run')
    records = predict(model, split='test')
    assert [r.relative_to(tmp_path) for r in records] == [
        (tmp_path / 'run' / 'predictions' / 'test' / f'{name}.json').relative_to(tmp_path)
        for name in 'cd'
    ]
    label = nib.load(records[0].with_name('c_seg.nii.gz'))
    assert label.shape == SHAPE
    np.testing.assert_allclose(label.affine, AFFINE)
    expected = expected_label(phantom_hu(SHAPE, 2))
    assert (np.asanyarray(label.dataobj) == expected).mean() > 0.9


def test_changed_or_missing_scans_are_refused(store, tmp_path):
    model = _model(store)
    changed = tmp_path / 'raw' / 'imagesTr' / 'c_0001.nii.gz'
    save_scan(changed, phantom_hu(SHAPE, 99), AFFINE)
    with pytest.raises(UserError, match=r'1 of 2 .*c_0001.nii.gz: changed since'):
        predict(model, split='test', output=tmp_path / 'out')
    assert (tmp_path / 'out' / 'd.json').exists()
    (tmp_path / 'raw').rename(tmp_path / 'moved')
    with pytest.raises(UserError, match='was prepared from it; put the raw scans back'):
        predict(model, split='val', output=tmp_path / 'out')


def test_wrong_split_and_wrong_store(store, tmp_path):
    with pytest.raises(UserError, match='extra'):
        predict(_model(store), split='extra', output=tmp_path / 'out')
    with pytest.raises(UserError, match='nowhere'):
        predict(_model(tmp_path / 'nowhere'), split='test', output=tmp_path / 'out')
