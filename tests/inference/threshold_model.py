"""A model whose answers are known: it thresholds HU, voxel by voxel."""

import jax.numpy as jnp
import nibabel as nib
import numpy as np

from maxquery_jax.inference.model import LoadedModel

ORGAN_HU, TUMOUR_HU = 20, 80


def make_threshold_model(
    *, channels=('ct',), spacing_mm=(1.0, 1.0, 1.0), patch_size=(8, 8, 8), **fields
) -> LoadedModel:
    """Channel 0 from 20 HU is organ, from 80 HU tumour; the score is the last channel / 100."""

    def forward(params, tiles):
        x = jnp.clip(tiles.astype(jnp.float32), -200, 200)
        first = x[..., 0]
        organ = (first >= ORGAN_HU) & (first < TUMOUR_HU)
        logits = jnp.stack([first < ORGAN_HU, organ, first >= TUMOUR_HU], -1)
        score = x[..., -1] / 100 + params['shift']
        return logits.astype(jnp.float32), {'query_logit': score, 'category_softmax': -score}

    known = [('background', 'background'), ('liver', 'organ'), ('hcc', 'tumour'), ('fnh', 'ood')]
    defaults = {
        'forward': forward,
        'params': {'shift': jnp.zeros(())},
        'patch_size': patch_size,
        'spacing_mm': spacing_mm,
        'channels': channels,
        'intensity': {
            'lower': [-200.0] * len(channels),
            'upper': [200.0] * len(channels),
            'shift': [0.0] * len(channels),
            'scale': [1.0] * len(channels),
        },
        'labels': tuple({'id': i, 'name': n, 'role': r} for i, (n, r) in enumerate(known)),
        'label_map': {'0': 0, '1': 1, '2': 2, '7': 3},
        'score_names': ('query_logit', 'category_softmax'),
        'description': 'threshold (finetune, step 7)',
        'params_sha256': 'ab' * 32,
    }
    return LoadedModel(**(defaults | fields))


def expected_label(hu):
    """What the model answers for an array of HU."""
    return ((hu >= ORGAN_HU).astype(np.uint8) + (hu >= TUMOUR_HU)).astype(np.uint8)


def phantom_hu(shape, seed=0):
    """Noise around 0 HU with a brighter box that holds a still brighter one; int16."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-60, 10, shape)
    hu[tuple(slice(s // 4, 3 * s // 4) for s in shape)] = 50
    hu[tuple(slice(s // 3, s // 2 + 1) for s in shape)] = 120
    return hu.astype(np.int16)


def save_scan(path, hu, affine, *, dtype=np.int16):
    """Writes a NIfTI file [i, j, k] with equal sform and qform where it can hold the affine."""
    image = nib.Nifti1Image(np.asarray(hu, dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    nib.save(image, path)
    return path
