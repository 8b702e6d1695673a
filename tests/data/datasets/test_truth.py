"""The truth of a prepared case, read from its raw files again."""

import numpy as np
import pytest
import tree_helper as tree
from trees import TREES

from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import Manifest, PatchStore
from maxquery_jax.data.truth import TruthRules, read_truth
from maxquery_jax.errors import UserError
from maxquery_jax.ops.targets import class_targets


@pytest.mark.parametrize('name', ['kits19', 'totalsegmentator', 'chaos', 'word', 'msd_liver'])
def test_truth_is_what_the_store_holds(name, tmp_path):
    TREES[name](tmp_path / 'raw')
    manifest = prepare(name, tmp_path / 'raw', tmp_path / 'store', spacing_mm=(10, 10, 10),
                       taxonomy='zept', split=SplitOptions('all_train'), workers=0,
                       log=lambda _: None)  # fmt: skip
    store = PatchStore(tmp_path / 'store')
    for case_id, case in manifest.cases.items():
        rules = TruthRules.of(manifest, case_id)
        label, volume = read_truth(tmp_path / 'raw' / case['source']['label'], rules)
        assert label.shape == volume.array.shape and label.dtype == np.uint8
        canonical = label[::-1, ::-1].transpose(2, 1, 0)  # every miniature is stored as LPS
        np.testing.assert_array_equal(canonical, store.read_label(case_id))
    assert manifest.has_label_rules == (name in ('kits19', 'totalsegmentator', 'word'))


def test_joint_ids_are_not_in_the_plain_map(tmp_path):
    """So that a reader who only knows `label_map` fails instead of calling both kidneys right."""
    TREES['kits19'](tmp_path / 'raw')
    manifest = prepare('kits19', tmp_path / 'raw', tmp_path / 'store', spacing_mm=(10, 10, 10),
                       workers=0, log=lambda _: None)  # fmt: skip
    assert set(manifest.label_map) == {'0', '2'} and manifest.left_right[0]['raw'] == 1
    label = np.full((16, 16, 16), 9, np.uint8)
    tree.write(tmp_path / 'odd.nii.gz', label)
    with pytest.raises(UserError, match=r'4096 voxels have label ids \[9\]'):
        read_truth(tmp_path / 'odd.nii.gz', TruthRules.of(manifest, 'case_00000'))


def test_relations_reach_the_targets(tmp_path):
    TREES['kits23'](tmp_path / 'raw')
    manifest = prepare('kits23', tmp_path / 'raw', tmp_path / 'store', spacing_mm=(10, 10, 10),
                       workers=0, log=lambda _: None)  # fmt: skip
    assert manifest.class_names[1:] == (
        'right_kidney', 'left_kidney', 'kidney_tumour', 'kidney_cyst')  # fmt: skip
    assert manifest.parents == ((), (), (), (1, 2), (1, 2))
    label = PatchStore(tmp_path / 'store').read_label('case_00000')
    whole = np.asarray(class_targets(label[None], manifest.parents))[0]
    np.testing.assert_array_equal(whole[..., 2], (label == 2) | (label == 3))  # tumour on the left
    np.testing.assert_array_equal(whole[..., 1], (label == 1) | (label == 4))  # cyst on the right


def test_manifests_of_the_first_release_open(tmp_path):
    TREES['msd_liver'](tmp_path / 'raw')
    manifest = prepare('msd_liver', tmp_path / 'raw', tmp_path / 'store', spacing_mm=(10, 10, 10),
                       workers=0, log=lambda _: None)  # fmt: skip
    data = manifest.to_json()
    assert data['contains'] == {'liver_tumour': 'liver'} and Manifest.from_json(data) == manifest
    for key in ('contains', 'left_right', 'masks'):
        del data[key]
    old = Manifest.from_json(data)
    assert old.contains == {} and old.parents == ((), (), ()) and not old.has_label_rules
    data['contains'] = {'liver_tumour': 'spleen'}
    with pytest.raises(UserError, match="`contains` names 'spleen'"):
        Manifest.from_json(data)
