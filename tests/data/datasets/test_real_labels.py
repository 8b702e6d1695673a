"""Label conversion on real label maps; the volumes in ml are those of index.json."""

import json

import numpy as np
import pytest
from trees import write_json

from maxquery_jax.data import nifti
from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.labels import build_label_table, count_ids
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.taxonomy import build_taxonomy_table

SIDES = ('right_kidney', 'left_kidney')


@pytest.fixture(scope='module')
def stated(real_data):
    """Relative path to ml per raw id."""
    index = json.loads((real_data / 'index.json').read_text())
    return {
        entry['path']: {int(i): ml for i, ml in entry['label_ml'].items()}
        for entry in index
        if entry.get('label_ml')
    }


def canonical(path):
    volume = nifti.read_label(path)
    raw, place = nifti.to_canonical(volume)
    return raw, place, float(np.prod(place.spacing_mm)) / 1000


def table_of(name):
    spec = DATASETS[name]
    by_name = {label: raw for raw, label in spec.labels.items()}
    return build_taxonomy_table(
        {0: 'background', **spec.labels},
        to_taxonomy=spec.to_taxonomy,
        contains=spec.contains,
        left_right={by_name[joint]: sides for joint, sides in spec.left_right.items()},
    )


def volumes_ml(table, raw, place, ml):
    """Concept to ml after conversion and split."""
    label = table.convert(raw)
    issues = table.split(label, place.spacing_mm, None)
    counts = count_ids(label)
    return {str(table.labels[i]['name']): n * ml for i, n in counts.items() if i}, issues


@pytest.mark.parametrize('kind', ['native', '2mm'])
@pytest.mark.parametrize('case', ['00004', '00010', '00021'])
def test_kits23(real_data, stated, case, kind):
    """Native maps are stored slice first (IPL), those of 2 mm as LPS."""
    name = f'kits23_labels/case_{case}_{kind}_seg.nii.gz'
    raw, place, ml = canonical(real_data / name)
    found, issues = volumes_ml(table_of('kits23'), raw, place, ml)
    assert not issues and set(found) >= {*SIDES, 'kidney_tumour'}
    kidneys = found['right_kidney'] + found['left_kidney']
    assert kidneys == pytest.approx(stated[name][1], rel=0.005)
    assert found['kidney_tumour'] == pytest.approx(stated[name][2], rel=0.005)
    assert found.get('kidney_cyst', 0) == pytest.approx(stated[name].get(3, 0), rel=0.005)


@pytest.mark.parametrize('case', ['00004', '00010', '00021'])
def test_kits23_sides_agree_between_orientations(real_data, case):
    """The split depends on the patient, not on how the file is stored or sampled."""
    table = table_of('kits23')
    native, coarse = (
        volumes_ml(table, *canonical(real_data / f'kits23_labels/case_{case}_{kind}_seg.nii.gz'))[0]
        for kind in ('native', '2mm')
    )
    for side in SIDES:
        assert native[side] == pytest.approx(coarse[side], rel=0.03)


def test_kits23_all_cases_split(real_data):
    """In 24 patients with kidney tumours both kidneys, or the one there is, get a side."""
    table = table_of('kits23')
    files = sorted((real_data / 'kits23_labels').glob('*_2mm_seg.nii.gz'))
    assert len(files) == 24
    for path in files:
        raw, place, ml = canonical(path)
        found, issues = volumes_ml(table, raw, place, ml)
        assert not [issue for issue in issues if issue.severity == 'error'], (path, issues)
        assert min(found.get(side, 0) for side in SIDES) > 20 or issues, path


def test_splitting_what_is_known(real_data):
    """TotalSegmentator tells the sides; joined and split again they are the same."""
    raw, place, _ = canonical(real_data / 'totalsegmentator' / 'ts_torso3mm_seg117.nii.gz')
    sides = {'kidney': ([2], [3]), 'adrenal': ([8], [9]), 'lung': ([12, 13, 14], [10, 11])}
    for n, (right_ids, left_ids) in enumerate(sides.values()):
        right, left = np.isin(raw, right_ids), np.isin(raw, left_ids)
        assert right.any() and left.any()
        table = build_label_table({0: 'background', 1: 'both'}, left_right={1: ('r', 'l')})
        label = table.convert((right | left).astype(np.uint8))
        table.split(label, place.spacing_mm, None)
        wrong = int((label[right] != 1).sum() + (label[left] != 2).sum())
        assert wrong <= 0.001 * (right.sum() + left.sum()), list(sides)[n]


def test_amos(real_data, stated):
    name = 'amos/amos_0013_seg15.nii.gz'
    raw, place, ml = canonical(real_data / name)
    found, _ = volumes_ml(table_of('amos22'), raw, place, ml)
    expected = {
        DATASETS['amos22'].to_taxonomy[DATASETS['amos22'].labels[i]]: ml
        for i, ml in stated[name].items()
    }
    assert set(found) == set(expected)
    for concept, ml in found.items():
        assert ml == pytest.approx(expected[concept], rel=0.005)


def test_totalsegmentator_maps_with_the_taxonomy(real_data, stated, tmp_path):
    """Multi-label maps of the 117 classes, read by a specification of one's own."""
    content = {
        'like': 'totalsegmentator',
        'layout': {
            'groups': [{'images': ['ts_{case}_ct{nii}'], 'label': 'ts_{case}_seg117{nii}'}],
            'case_id': 'ts_{case}',
        },
    }
    spec = write_json(tmp_path / 'ts.json', content)
    manifest = prepare(
        'custom', real_data / 'totalsegmentator', tmp_path / 'store', spec=spec, taxonomy='zept',
        spacing_mm=(3, 3, 3), split=SplitOptions('all_train'), workers=0, log=lambda _: None,
    )  # fmt: skip
    assert set(manifest.cases) == {'ts_torso3mm', 'ts_abdomen3mm', 'ts_dicom'}
    assert 'right_lung' in manifest.annotated and 'celiac_trunk' not in manifest.annotated
    names = {label['name']: str(label['id']) for label in manifest.labels}
    voxels = manifest.cases['ts_torso3mm']['voxels']  # the file's own spacing: nothing resampled
    ml = stated['totalsegmentator/ts_torso3mm_seg117.nii.gz']
    for concept, ids in {
        'liver': [5],
        'right_kidney': [2],
        'left_lung': [10, 11],
        'right_lung': [12, 13, 14],
        'postcava': [63],
        'intestine': [18],
    }.items():
        expected = sum(ml.get(i, 0) for i in ids)
        assert voxels[names[concept]] * 0.027 == pytest.approx(expected, rel=0.005)
    label = PatchStore(tmp_path / 'store').read_label('ts_torso3mm')
    columns = [np.where(label == int(names[side]))[2].mean() for side in SIDES]
    assert columns[0] > columns[1]  # the right one lies further to the right


def test_pairs_with_the_taxonomy(real_data, tmp_path):
    """Loose files whose label names the taxonomy understands; the rest is left out by *."""
    from maxquery_jax.data.labels import RoleFlags

    text = ','.join(f'{i}:{name}' for i, name in DATASETS['totalsegmentator'].labels.items()
                    if i <= 117)  # fmt: skip
    manifest = prepare(
        'pairs', real_data / 'totalsegmentator', tmp_path / 'store', taxonomy='zept',
        pairs=PairOptions(('*_abdomen3mm_ct.nii.gz',), '*_abdomen3mm_seg117.nii.gz', text),
        roles=RoleFlags(ignore=('*',)), spacing_mm=(3, 3, 3), workers=0, log=lambda _: None,
    )  # fmt: skip
    assert {'liver', 'right_kidney', 'intestine', 'gall_bladder'} <= set(manifest.annotated)
    assert manifest.label_map['5'] == 6 and manifest.label_map['25'] == 0
