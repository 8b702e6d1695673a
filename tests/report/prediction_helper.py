"""Synthetic predictions with a known truth, as launch.predict and launch.prepare leave them."""

import json

import nibabel as nib
import numpy as np

LABELS = [
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'liver', 'role': 'organ'},
    {'id': 2, 'name': 'cyst', 'role': 'tumour'},
    {'id': 3, 'name': 'hcc', 'role': 'tumour'},
    {'id': 4, 'name': 'fnh', 'role': 'ood'},
]
LABEL_MAP = {'0': 0, '1': 1, '5': 2, '6': 3, '300': 4}
RAW = np.array([0, 1, 5, 6, 300])
AFFINE = np.array([[-0.8, 0, 0, 90], [0, -0.9, 0, 40], [0, 0, 2.5, -300], [0, 0, 0, 1.0]])
SHAPE = (14, 12, 8)
CASES = {'a': 2, 'b': 3, 'c': 2, 'd': 4, 'e': 4}
"""Case id to its tumour's class: d and e are OOD cases."""


def save(path, array, dtype, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(array, dtype), affine, dtype=dtype)
    image.header.set_xyzt_units('mm')
    nib.save(image, path)


def make_truth(case):
    """Class ids: a liver box with the case's tumour in it."""
    rng = np.random.default_rng(ord(case))
    truth = np.zeros(SHAPE, np.uint8)
    truth[2:12, 2:10, 1:7] = 1
    x, y, z = rng.integers(3, 7), rng.integers(3, 6), rng.integers(2, 4)
    truth[x : x + 4, y : y + 3, z : z + 3] = CASES[case]
    return truth


def make_prediction(case):
    """Predicted ids: the truth with unknown tumours called cyst and some wrong voxels."""
    rng = np.random.default_rng(100 + ord(case))
    prediction = make_truth(case)
    prediction[prediction == 4] = 2
    wrong = rng.random(SHAPE) < 0.05
    prediction[wrong] = rng.integers(0, 4, SHAPE)[wrong]
    return prediction


def make_score(case, name='query_logit'):
    """A noisy score, higher in unknown tumours; float16 values."""
    rng = np.random.default_rng(200 + ord(case) + len(name))
    score = rng.normal(size=SHAPE) + 1.5 * (make_truth(case) == 4) - 9
    return score.astype(np.float16).astype(np.float32)


def case_score(case, name='query_logit'):
    return float(make_score(case, name)[np.isin(make_prediction(case), (2, 3))].mean())


def write_predictions(folder, scores=('query_logit',), cases=tuple(CASES)):
    """X_seg, X_ood, X_ood-<score> and X.json of each case."""
    for case in cases:
        save(folder / f'{case}_seg.nii.gz', make_prediction(case), np.uint8)
        for name in scores:
            suffix = '' if name == scores[0] else f'-{name}'
            save(folder / f'{case}_ood{suffix}.nii.gz', make_score(case, name), np.float32)
        info = {
            'labels': LABELS,
            'label_map': LABEL_MAP,
            'case_ood_score': case_score(case, scores[0]),
            'case_ood_fallback': None,
            'primary_score': scores[0],
        }
        (folder / f'{case}.json').write_text(json.dumps(info))


def write_images(folder):
    """Truth (raw ids) and CT as a raw data set would hold them."""
    for case in CASES:
        truth = make_truth(case)
        save(folder / 'labels' / f'{case}.nii.gz', RAW[truth], np.int16)
        rng = np.random.default_rng(300 + ord(case))
        ct = np.where(truth > 0, 60, -100) + 30 * (truth > 1) + rng.normal(0, 8, SHAPE)
        save(folder / 'images' / f'{case}.nii.gz', ct.round(), np.int16)


def write_run(run, store, raw, splits=None):
    """A run directory and a store manifest that point at raw files of `write_images`."""
    from maxquery_jax.data.store_manifest import Manifest

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
        label_map=LABEL_MAP,
        annotated=('liver',),
        splits=splits or {'train': [], 'val': [], 'test': list(CASES)},
        cases={
            case: {
                'shape': SHAPE[::-1],
                'native': {},
                'source': {'image': [f'images/{case}.nii.gz'], 'label': f'labels/{case}.nii.gz'},
                'sha256': {},
                'voxels': {'0': 1},
            }
            for case in CASES
        },
        source=str(raw),
    )
    store.mkdir(parents=True)
    (store / 'manifest.json').write_text(json.dumps(manifest.to_json()))
    run.mkdir(parents=True)
    data = {'labels': LABELS, 'label_map': LABEL_MAP}
    (run / 'manifest.json').write_text(json.dumps({'store': str(store), 'data': data}))
    rows = [
        {
            'step': step,
            'stage': stage,
            'split': 'train',
            'loss': 2 / step,
            'ce': 1 / step,
            'learning_rate': 1e-4 * (1 - step / 50),
            'grad_norm': 1.0,
            'voxels_per_s': 2e6,
            'wall_s': float(step),
        }
        for stage in ('pretrain', 'finetune')
        for step in range(5, 45, 5)
    ]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
