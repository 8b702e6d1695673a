"""Small patch stores for tests."""

import numpy as np

from maxquery_jax.data.store import Manifest
from maxquery_jax.data.store_write import StoreWriter

LABELS = (
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'liver', 'role': 'organ'},
    {'id': 2, 'name': 'cyst', 'role': 'tumour'},
    {'id': 3, 'name': 'hcc', 'role': 'ood'},
)


def make_case(index, shape=(20, 24, 28), channels=1, classes=(1, 2)):
    """An image whose value names case and voxel, and a label with one box per class."""
    voxel = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    image = (voxel % 30_000 - 1000 + 131 * index).astype(np.int16)
    image = np.stack([image + 3 * c for c in range(channels)], axis=-1)
    label = np.zeros(shape, np.uint8)
    for class_id in classes:
        label[class_id : class_id + 3, 4:10, 3 + class_id : 9] = class_id
    return image, label


def make_manifest(records, splits, channels=1, **changes):
    """A valid manifest for the case records that `StoreWriter.write_case` returned."""
    native = {'shape': [1, 1, 1], 'spacing_mm': [1.0, 1.0, 1.0], 'affine': np.eye(4).tolist()}
    cases = {
        case_id: {
            'shape': record['shape'],
            'native': native,
            'source': {'image': [f'{case_id}.nii.gz'], 'label': f'{case_id}_seg.nii.gz'},
            'sha256': {f'{case_id}.nii.gz': 'ab' * 32},
            'voxels': record['voxels'],
        }
        for case_id, record in records.items()
    }
    fields = {
        'dataset': 'test',
        'spacing_mm': [3.0, 1.0, 1.0],
        'channels': [f'phase{c}' for c in range(channels)],
        'intensity': {
            'lower': [-200.0] * channels,
            'upper': [300.0] * channels,
            'shift': [50.0] * channels,
            'scale': [100.0] * channels,
            'method': 'clip_zscore',
        },
        'labels': LABELS,
        'label_map': {'0': 0, '1': 1, '2': 2, '7': 3},
        'annotated': ['liver', 'cyst'],
        'splits': {'train': [], 'val': [], 'test': [], **splits},
        'cases': cases,
        'source': 'raw',
        'fingerprint': {},
    }
    return Manifest(**{**fields, **changes})


def build_store(location, num_cases=4, shapes=None, channels=1, classes=(1, 2), **changes):
    """Writes a finished store with train cases c0, c1, ... and returns its location."""
    writer = StoreWriter(location)
    records = {}
    for index in range(num_cases):
        shape = (20, 24, 28) if shapes is None else shapes[index]
        image, label = make_case(index, shape, channels, classes)
        records[f'c{index}'] = writer.write_case(f'c{index}', image, label)
    splits = {'train': list(records)}
    writer.finish(make_manifest(records, splits, channels, **changes))
    return location
