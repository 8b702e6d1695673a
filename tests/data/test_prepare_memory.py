"""`prepare` of one large scan stays within a stated memory, held by a process of its own."""

import json
import os
import pathlib

import nifti_helper as helper
import numpy as np
import pytest

from tests import processes

CHILD = r"""
import json, pathlib, re, sys
from maxquery_jax.data.prepare import prepare

def resident(field):
    status = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(field + r':\s+(\d+) kB', status).group(1)) * 1024

folder, spacing = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
before = resident('VmRSS')
manifest = prepare('decathlon', folder, sys.argv[3], spacing_mm=spacing, workers=0)
shape = manifest.cases['a']['shape']
print(json.dumps([before, resident('VmHWM'), shape]))
"""
GIB = 2**30
SPACING = (0.8, 0.8, 1.0)
AFFINE = helper.affine_of(SPACING, 'LPS')
HALF = [2.0, 1.6, 1.6]  # (z, y, x): an eighth of the voxels
# What is stored, and how: integers as they are, integers under a scale, floats.
KINDS = {
    'int16': ('int16', {}),
    'scaled': ('int16', {'scl_slope': 0.5, 'scl_inter': -3.0}),
    'float32': ('float32', {}),
}


def build(folder, shape, kind):
    """A Decathlon folder with one case."""
    dtype, changes = KINDS[kind]
    i, j, _ = shape
    x, y = np.arange(i)[:, None], np.arange(j)
    plane = -600 + 500 * ((x - i / 2) ** 2 / i**2 + (y - j / 2) ** 2 / j**2 < 0.15)
    organ = ((x // 16 + y // 16) % 4 == 0) & (plane > -600)
    images, labels = folder / 'imagesTr' / 'a.nii.gz', folder / 'labelsTr' / 'a.nii.gz'
    helper.write_large(
        images, shape, AFFINE, dtype, lambda k: plane + 100 * organ + k % 50, **changes
    )  # fmt: skip
    helper.write_large(labels, shape, AFFINE, 'uint8', lambda k: organ & (k % 100 > 20))
    case = {'image': 'imagesTr/a.nii.gz', 'label': 'labelsTr/a.nii.gz'}
    listing = {'labels': {'0': 'background', '1': 'liver'}, 'training': [case]}
    (folder / 'dataset.json').write_text(json.dumps(listing))


def peak_of(folder, store, spacing, python):
    """(bytes before, peak bytes, shape in the store) of a process that prepares the folder."""
    root = pathlib.Path(__file__).parent.parent.parent
    run = processes.run(
        [python, '-c', CHILD, str(folder), json.dumps(spacing), str(store)],
        limit_s=3600,  # the largest scan takes minutes
        cwd=root,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.skipif(
    not os.environ.get('MAXQUERY_TEST_LARGE'),
    reason='set MAXQUERY_TEST_LARGE=1 to prepare 512 x 512 x 1000 voxels (minutes)',
)
@pytest.mark.parametrize('spacing', [None, HALF], ids=['as it is', 'half'])
@pytest.mark.parametrize('kind', KINDS)
def test_512_512_1000_voxels_under_4_gib(kind, spacing, tmp_path, python):
    shape = (512, 512, 1000)
    build(tmp_path / 'raw', shape, kind)
    _, peak, stored = peak_of(tmp_path / 'raw', tmp_path / 'store', spacing, python)
    assert stored == ([500, 256, 256] if spacing else [1000, 512, 512])
    print(f'{kind}, spacing {spacing}: peak {peak / GIB:.2f} GiB')
    assert peak < 4 * GIB


@pytest.mark.integration
@pytest.mark.skipif(not pathlib.Path('/proc/self/statm').exists(), reason='needs Linux accounting')
@pytest.mark.parametrize(('kind', 'spacing'), [('int16', None), ('scaled', HALF)])
def test_a_tenth_of_it_under_a_tenth(kind, spacing, tmp_path, python):
    """14 bytes a voxel (11 measured): 512 x 512 x 1000 voxels stay under 3.5 GiB."""
    shape = (256, 256, 400)
    build(tmp_path / 'raw', shape, kind)
    before, peak, _ = peak_of(tmp_path / 'raw', tmp_path / 'store', spacing, python)
    assert (peak - before) / np.prod(shape) < 14
