"""The stated memory bound, held by a process of its own."""

import json
import os
import pathlib

import numpy as np
import pytest

from maxquery_jax.inference.memory import estimate_memory
from tests import processes
from tests.data import nifti_helper

CHILD = r"""
import json, pathlib, re, sys
import numpy as np
from threshold_model import make_threshold_model
from maxquery_jax.inference.predict import predict

folder, spacing = pathlib.Path(sys.argv[1]), float(sys.argv[2])
patch = tuple(json.loads(sys.argv[5]))
import jax.numpy as jnp
classes = int(sys.argv[4])
def forward(params, tiles):
    x = tiles[..., 0].astype(jnp.float32)
    logits = jnp.stack([jnp.abs(x + 5 * k) for k in range(classes)], -1)
    return -logits, {'query_logit': x / 100}
roles = ['background', 'organ'] + ['tumour'] * (classes - 2)
model = make_threshold_model(
    patch_size=patch, spacing_mm=(spacing,) * 3, forward=forward,
    labels=tuple({'id': i, 'name': f'c{i}', 'role': r} for i, r in enumerate(roles)),
)
limit = float(sys.argv[3])
(record,) = predict(model, folder / 'x.nii.gz', folder / 'out', step_size=1.0, max_memory_gb=limit)
content = json.loads(record.read_text())
status = pathlib.Path('/proc/self/status').read_text()
peak = int(re.search(r'VmHWM:\s+(\d+) kB', status).group(1)) * 1024
print(json.dumps([peak, content['peak_memory_bytes'], content['estimated_memory_bytes']]))
"""


def _predict(folder, shape, python, *, spacing, classes, patch, limit_gb):
    """(peak, recorded, estimated) bytes of a process that predicts a smooth scan."""
    i, j, _ = shape
    plane = 90 * np.sin(np.arange(i) / 30).reshape(-1, 1) * np.cos(np.arange(j) / 40)
    path = folder / 'x.nii.gz'
    nifti_helper.write_large(path, shape, np.eye(4), 'int16', lambda k: plane + 20 * np.sin(k / 9))
    here = pathlib.Path(__file__).parent
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(here), str(here.parent.parent)]),
    }
    arguments = [str(folder), str(spacing), str(limit_gb), str(classes), json.dumps(patch)]
    run = processes.run(
        [python, '-c', CHILD, *arguments],
        limit_s=3600,  # the largest scan takes a quarter of an hour
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.skipif(not pathlib.Path('/proc/self/statm').exists(), reason='needs Linux accounting')
@pytest.mark.parametrize(('spacing', 'classes'), [(1.0, 32), (1.25, 5)])
def test_a_process_stays_below_the_estimate(tmp_path, python, spacing, classes):
    limit_gb = 0.75
    peak, recorded, estimated = _predict(
        tmp_path, (160, 160, 320), python,
        spacing=spacing, classes=classes, patch=(16, 80, 80), limit_gb=limit_gb,
    )  # fmt: skip
    assert recorded <= peak <= 1.02 * estimated <= 1.02 * limit_gb * 1e9
    assert limit_gb * 1e9 < 320 * 160 * 160 * 32 * 4  # 32 classes x volume in float32


@pytest.mark.integration
@pytest.mark.skipif(
    not os.environ.get('MAXQUERY_TEST_LARGE'),
    reason='set MAXQUERY_TEST_LARGE=1 to predict 512 x 512 x 1000 voxels (a quarter of an hour)',
)
@pytest.mark.parametrize('spacing', [1.0, 1.5])
def test_512_512_1000_voxels_under_4_gib(tmp_path, python, spacing):
    peak, recorded, estimated = _predict(
        tmp_path, (512, 512, 1000), python,
        spacing=spacing, classes=8, patch=(28, 192, 320), limit_gb=4,
    )  # fmt: skip
    print(f'spacing {spacing}: peak {peak / 2**30:.2f}, estimate {estimated / 2**30:.2f} GiB')
    assert recorded <= peak <= 1.02 * estimated
    assert peak < 4 * 2**30


def _estimate(**changes):
    fields = {
        'shape': (1000, 512, 512),
        'model_shape': (1000, 512, 512),
        'patch_size': (28, 192, 320),
        'num_classes': 8,
    }
    return estimate_memory(**(fields | changes))


def test_formula_of_the_docstring():
    voxels = 1000 * 512 * 512
    found = _estimate(network_bytes=10**8, baseline_bytes=5)
    slab = 4 * 28 * 512 * 512 * (8 + 1 + 1)
    tile = 28 * 192 * 320 * (4 * 9 + 2)
    assert found.read == 2 * voxels and found.slab == slab
    assert found.export == 3 * voxels + 96 * 10**6
    assert found.window == 2 * voxels + 3 * voxels + slab + 10**8 + 3 * tile
    assert found.total == 5 + found.window
    assert found.total < 2.2e9 and '1.90 GB peak' in found.describe()


def test_estimate_grows_with_what_it_should():
    base = _estimate()
    deep = _estimate(shape=(2000, 512, 512), model_shape=(2000, 512, 512))
    assert deep.slab == base.slab and deep.total < 2 * base.total
    more = _estimate(num_classes=50)
    assert more.window < 2 * (base.window + 50 * base.slab / 8) and more.read == base.read
    small = _estimate(shape=(10, 20, 20), model_shape=(10, 20, 20))
    assert small.slab == 4 * 28 * 192 * 320 * 10  # a volume smaller than the patch is padded
    resampled = _estimate(model_shape=(500, 256, 256))
    ratio = np.prod((500, 256, 256)) / np.prod((1000, 512, 512))
    assert resampled.read > base.read * (1 + ratio) and resampled.window < base.window
    for change in ({'is_int16': False}, {'num_channels': 2}, {'is_sheared': True}):
        assert _estimate(**change).read > base.read
