"""Every pair of a real scan and its label map goes through check and into a store."""

import json

import numpy as np
import pytest

from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.store import PatchStore

TOTAL = ','.join(f'{i}:l{i}' for i in range(1, 118))
FOLDERS = {
    'totalsegmentator': ('*_ct.nii.gz', '*_seg117.nii.gz', TOTAL, 3),
    'nsclc_lung1': ('*_ct.nii.gz', '*_seg.nii.gz', '1:right,2:left,3:cord,4:tumour', 1),
    'pyradiomics_lung': ('*_ct.nii.gz', '*_tumour.nii.gz', '1:tumour', 1),
    'medsam2_deeplesion': ('*_ct8bit.nii.gz', '*_lesion.nii.gz', '1:lesion', 4),
}
SMALL_ML = 100  # a small or cut-off label changes by several per cent when it is resampled


@pytest.mark.parametrize('folder', FOLDERS)
def test_prepares(folder, real_data, tmp_path):
    images, labels, names, count = FOLDERS[folder]
    lines: list[str] = []
    manifest = prepare(
        'pairs',
        real_data / folder,
        tmp_path / 'store',
        pairs=PairOptions((images,), labels, names),
        spacing_mm=None if count == 1 else (4, 3, 3),
        workers=0,
        log=lines.append,
    )
    assert len(manifest.cases) == count
    index = {e['path']: e for e in json.loads((real_data / 'index.json').read_text())}
    ml = np.prod(manifest.spacing_mm) / 1000
    store = PatchStore(tmp_path / 'store')
    for case_id, case in manifest.cases.items():
        stated = index[f'{folder}/{case["source"]["label"]}']['label_ml']
        for raw, store_id in manifest.label_map.items():
            if stated.get(raw, 0) > SMALL_ML:
                assert case['voxels'][str(store_id)] * ml == pytest.approx(stated[raw], rel=0.05)
        assert store.read_image(case_id).shape[:3] == store.shape(case_id)
    if folder == 'medsam2_deeplesion':  # 8-bit grey values pass, but not silently
        assert sum('hu_suspicious' in line for line in '\n'.join(lines).splitlines()) >= count
