"""A tiny untrained MaxQuery run with a store of its own, and the raw scans behind the store."""

import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax

from configs import maxquery
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.train.checkpoint import StageCheckpoints
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.state import TrainState, init_params
from tests.data.store_helper import LABELS, make_manifest

PATCH = (8, 16, 16)
SPACING = (3.0, 2.0, 2.0)
GROUPS = (3, 2, 3)
SHAPES = {'known': PATCH, 'unknown': (19, 20, 24), 'both': (6, 18, 16)}
"""Shape of each test case; one is the patch, one is larger, one smaller along z."""
INTENSITY = {
    'lower': [-90.0],
    'upper': [110.0],
    'shift': [20.0],
    'scale': [50.0],
    'method': 'ct_foreground',
}


def make_scan(case):
    """Noise with a liver, a cyst (id 2) and an unknown tumour (id 3), as int16 HU and label."""
    shape = SHAPES[case]
    rng = np.random.default_rng(len(case))
    label = np.zeros(shape, np.uint8)
    label[1:-1, 3:13, 4:14] = 1
    if case != 'unknown':
        label[2:4, 4:8, 5:9] = 2
    if case != 'known':
        label[3, 6:8, 10:12] = 3
        label[4, 6:9, 10:13] = 3  # the slice with most of it
    image = rng.integers(-60, 80, shape) + 15 * label.astype(int)
    return image.astype(np.int16), label


def write_store(path, raw):
    """The store, and raw scans that predict to the same grid."""
    writer = StoreWriter(path)
    records = {}
    for case in SHAPES:
        image, label = make_scan(case)
        records[case] = writer.write_case(case, image[..., None], label)
        affine = np.diag([*SPACING[::-1], 1.0])
        for ending, array in (('', image), ('_seg', label)):
            raw.mkdir(parents=True, exist_ok=True)
            file = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
            file.header.set_xyzt_units('mm')
            nib.save(file, raw / f'{case}{ending}.nii.gz')
    manifest = make_manifest(
        records,
        {'test': list(SHAPES)},
        spacing_mm=SPACING,
        intensity=INTENSITY,
        label_map={str(i): i for i in range(4)},
        source=str(raw),
    )
    for record in manifest.cases.values():
        record['sha256'].clear()
    writer.finish(manifest)
    return path


def write_run(path, store, *, seed=0, qd_weight=0.1, **decoder):
    """A run directory; returns it with the model and the parameters of its last stage."""
    config = maxquery.get_config('demo')
    config.data.patch_size = PATCH
    config.model.conv_form = 'plain'
    config.model.backbone.base_features = 4
    config.model.backbone.max_features = 8
    config.model.backbone.max_stages = 2
    config.finetune.loss.qd_weight = qd_weight
    config.model.decoder.update(
        {
            'num_queries': sum(GROUPS),
            'query_groups': GROUPS,
            'output_strides': (2,),
            'query_dim': 32,
            'embed_dim': 8,
            'ffn_dim': 16,
            **decoder,
        }
    )
    model = make_model(config, 'maxquery', 3, SPACING)
    params = init_params(model, (1, *PATCH, 1), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.1, x.shape), np.float32), params)
    for stage, content in (('pretrain', {'none': jnp.zeros(1)}), ('finetune', params)):
        checkpoints = StageCheckpoints(path / 'checkpoints' / stage)
        tx = optax.sgd(0.1)
        checkpoints.save(TrainState(jnp.int32(5), content, tx.init(content)), 5)
        checkpoints.close()
    (path / 'config.json').write_text(config.to_json_best_effort())
    data = {
        'spacing_mm': SPACING,
        'channels': ['phase0'],
        'intensity': INTENSITY,
        'labels': list(LABELS),
        'label_map': {str(i): i for i in range(4)},
    }
    (path / 'manifest.json').write_text(json.dumps({'store': str(store), 'data': data}))
    row = {'step': 5, 'stage': 'finetune', 'split': 'train', 'loss': 1.0, 'learning_rate': 0.1}
    (path / 'metrics.jsonl').write_text(json.dumps(row | {'voxels_per_s': 1e6}) + '\n')
    return path, model, params
