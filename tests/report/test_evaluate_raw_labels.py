"""evaluate against raw labels that join both sides, or that are folders of masks."""

import json
import shutil

import numpy as np
import prediction_helper as helper
import pytest

from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate

LABELS = [
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'right_kidney', 'role': 'organ'},
    {'id': 2, 'name': 'left_kidney', 'role': 'organ'},
    {'id': 3, 'name': 'cyst', 'role': 'tumour'},
]
CASES = ('a', 'b')
SPLIT = {'raw': 7, 'name': 'kidney', 'joint': 255, 'right': 1, 'left': 2, 'inside': [3]}
MASKS = {'kidney_right': 1, 'kidney_left': 2, 'cyst': 3}


def _truth():
    """Two kidneys 48 mm apart along x, the right one at low indices: x runs towards the left."""
    truth = np.zeros((80, 12, 10), np.uint8)
    truth[5:15, 3:9, 2:8] = 1
    truth[65:75, 2:9, 2:8] = 2
    truth[8:11, 4:7, 4:7] = 3
    return truth


def _write_predictions(folder, label_map, cases=CASES):
    for case in cases:
        helper.save(folder / f'{case}_seg.nii.gz', _truth(), np.uint8)
        helper.save(folder / f'{case}_ood.nii.gz', np.zeros(_truth().shape), np.float32)
        info = {'labels': LABELS, 'label_map': label_map, 'primary_score': 'query_logit'}
        (folder / f'{case}.json').write_text(json.dumps(info))


def _write_store(folder, raw, label, label_map, **rules):
    """A store that holds case a; b is new."""
    manifest = Manifest(
        dataset='test',
        spacing_mm=(2.5, 0.9, 0.8),
        channels=('ct',),
        intensity={
            'lower': [-200.0],
            'upper': [300.0],
            'shift': [0.0],
            'scale': [100.0],
            'method': 'clip_zscore',
        },
        labels=tuple(LABELS),
        label_map=label_map,
        annotated=('right_kidney', 'left_kidney', 'cyst'),
        splits={'train': [], 'val': [], 'test': ['a']},
        cases={
            'a': {
                'shape': (10, 12, 80),
                'native': {},
                'source': {'image': ['images/a.nii.gz'], 'label': label},
                'sha256': {},
                'voxels': {'0': 1},
            }
        },
        source=str(raw),
        **rules,
    )
    folder.mkdir()
    (folder / 'manifest.json').write_text(json.dumps(manifest.to_json()))


def _check(summary):
    for case in summary['cases']:
        assert case['dice'] == {'right_kidney': 1.0, 'left_kidney': 1.0, 'cyst': 1.0}
        assert case['nsd'] == {'right_kidney': 1.0, 'left_kidney': 1.0, 'cyst': 1.0}


def test_joint_labels_are_split_as_the_store_says(tmp_path):
    label_map = {'0': 0, '9': 3}
    _write_predictions(tmp_path / 'predictions', label_map)
    for case in CASES:
        raw = np.array([0, 7, 7, 9])[_truth()]
        helper.save(tmp_path / 'labels' / f'{case}.nii.gz', raw, np.uint8)
    _write_store(tmp_path / 'store', tmp_path, 'labels/a.nii.gz', label_map, left_right=[SPLIT])
    arguments = {'predictions': tmp_path / 'predictions', 'labels': tmp_path / 'labels'}
    with pytest.raises(UserError, match=r"label ids \[7\].*store's manifest.json.*splits joint"):
        evaluate(**arguments)
    summary = evaluate(**arguments, label_map=tmp_path / 'store' / 'manifest.json')
    assert [case['case'] for case in summary['cases']] == list(CASES)
    _check(summary)


@pytest.mark.parametrize('below', ['', 'segmentations'])
def test_folders_of_masks_are_merged_as_the_store_says(tmp_path, below):
    label_map = {str(i): i for i in range(4)}
    _write_predictions(tmp_path / 'predictions', label_map)
    for case in CASES:
        for name, i in MASKS.items():
            path = tmp_path / 'labels' / case / below / f'{name}.nii.gz'
            helper.save(path, _truth() == i, np.uint8)
    _write_store(tmp_path / 'store', tmp_path, f'labels/a/{below}', label_map, masks=MASKS)
    arguments = {'predictions': tmp_path / 'predictions', 'labels': tmp_path / 'labels'}
    with pytest.raises(UserError, match=r'a.* holds masks.*--label_map=STORE/manifest\.json'):
        evaluate(**arguments)
    _check(evaluate(**arguments, label_map=tmp_path / 'store' / 'manifest.json'))


def test_a_run_whose_masks_have_moved(tmp_path):
    label_map = {str(i): i for i in range(4)}
    run = tmp_path / 'run'
    _write_predictions(run / 'predictions' / 'test', label_map, ('a',))
    for name, i in MASKS.items():
        helper.save(tmp_path / 'labels' / 'a' / f'{name}.nii.gz', _truth() == i, np.uint8)
    _write_store(tmp_path / 'store', tmp_path, 'labels/a', label_map, masks=MASKS)
    (run / 'manifest.json').write_text(json.dumps({'store': str(tmp_path / 'store')}))
    _check(evaluate(model=run))
    shutil.move(tmp_path / 'labels', tmp_path / 'moved')
    _check(evaluate(model=run, labels=tmp_path / 'moved'))
