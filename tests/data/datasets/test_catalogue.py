"""Every data set of the catalogue, on a miniature of its tree."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import tree_helper
from PIL import Image
from trees import CONTAINS, SPLITS, TREES

from maxquery_jax.data.check import ReadOptions, check_dataset, count_errors
from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import DATASET_NAMES, open_source
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.taxonomy import CONCEPTS, TAXONOMY

ASKED_FOR = {
    'pancreas_ct', 'abdomenct_1k', 'ct_org', 'chaos', 'amos22', 'btcv', 'word', 'totalsegmentator',
    'lits', 'kits19', 'msd_liver', 'msd_lung', 'msd_pancreas', 'msd_hepatic_vessel', 'msd_spleen',
    'msd_colon', 'nnunet', 'decathlon',
}  # fmt: skip
OPTIONS = {'spacing_mm': (10, 10, 10), 'workers': 0, 'log': lambda _: None}
ALL_TRAIN = SplitOptions('all_train')


@pytest.fixture(scope='module', params=sorted(TREES))
def tree(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, TREES[request.param](folder)


def test_the_catalogue_is_whole():
    assert set(TREES) == set(DATASETS) and set(DATASET_NAMES) >= ASKED_FOR


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_every_label_is_placed_and_every_source_named(name):
    spec = DATASETS[name]
    assert set(spec.to_taxonomy) == set(spec.label_names)
    assert {c for c in spec.to_taxonomy.values() if c is not None} <= set(CONCEPTS)
    assert all((spec.title, spec.licence, spec.citation, spec.url, spec.layout_source))
    for tumour, organ in spec.contains.items():  # agrees with the taxonomy's own relation
        concept = CONCEPTS[spec.to_taxonomy[tumour]]
        for side in spec.left_right.get(organ, (organ,)):
            assert spec.to_taxonomy[side] in concept.organ.split('+')


def test_check_is_clean_and_lists_the_cases(tree):
    name, folder, masks = tree
    assert check_dataset(name, folder, split=ALL_TRAIN, workers=0) == []
    raw, _ = open_source(name, folder)
    assert [case.case_id for case in raw.cases] == sorted(masks)
    assert all(case.label is not None for case in raw.cases) and not raw.problems
    assert raw.splits == SPLITS.get(name)


def test_prepared_store(tree, tmp_path):
    name, folder, masks = tree
    manifest = prepare(name, folder, tmp_path / 'store', **OPTIONS)
    store, spec = PatchStore(tmp_path / 'store'), DATASETS[name]
    assert manifest.dataset == name and store.manifest == manifest
    assert manifest.contains == CONTAINS.get(name, {})
    present = {label for case in masks.values() for label in case}
    assert set(manifest.annotated) == present & set(spec.label_names)
    if name != 'totalsegmentator':  # whose miniature has few of the masks
        assert present == set(spec.label_names)
    if name in SPLITS:
        assert manifest.splits == SPLITS[name]
    ids = {label['name']: label['id'] for label in manifest.labels}
    for case, found in masks.items():
        expected = np.zeros((16, 16, 16), np.uint8)
        for label, mask in found.items():
            expected[mask] = ids[label]
        np.testing.assert_array_equal(store.read_label(case), expected)


def test_prepared_store_of_the_taxonomy(tree, tmp_path):
    name, folder, masks = tree
    options = {**OPTIONS, 'taxonomy': 'zept', 'split': ALL_TRAIN}
    manifest = prepare(name, folder, tmp_path / 'store', **options)
    store, spec = PatchStore(tmp_path / 'store'), DATASETS[name]
    organs = [c.name for c in TAXONOMY if c.kind == 'organ']
    seen, unseen = (
        [c.name for c in TAXONOMY if c.kind == 'tumour' and c.seen is flag]
        for flag in (True, False)
    )
    assert [label['name'] for label in manifest.labels] == ['background', *organs, *seen, *unseen]
    assert manifest.num_classes == 28 and len(manifest.ood_ids) == 18
    present = {label for case in masks.values() for label in case}
    known = {spec.to_taxonomy[label] for label in present} - {None}
    partial = {'left_lung'} if name == 'totalsegmentator' else set()  # one lobe of two
    partial |= {'kidney_cyst'} if name == 'totalsegmentator' else set()
    assert set(manifest.annotated) == known - partial
    names = [label['name'] for label in manifest.labels]
    for case, found in masks.items():
        expected = np.zeros((16, 16, 16), np.uint8)
        for label, mask in found.items():
            concept = spec.to_taxonomy[label]
            expected[mask] = 0 if concept is None else names.index(concept)
        np.testing.assert_array_equal(store.read_label(case), expected)
    with_unseen = {
        case for case, found in masks.items()
        if {spec.to_taxonomy[label] for label in found} & set(unseen)
    }  # fmt: skip
    stated = set(SPLITS.get(name, {}).get('test', ()))
    stated |= {'ct_org_0', 'ct_org_20'} if name == 'ct_org' else set()
    assert set(manifest.splits['test']) == with_unseen | stated


def test_unknown_id_is_an_error_with_its_count(tree, tmp_path):
    name, folder, _ = tree
    copy = shutil.copytree(folder, tmp_path / 'copy')
    raw, _ = open_source(name, copy)
    case = raw.cases[1]
    damage(copy / case.label)
    for taxonomy in (None, 'zept'):
        rows = check_dataset(name, copy, taxonomy=taxonomy, split=ALL_TRAIN, workers=0)
        (row,) = [row for row in rows if row.severity == 'error']
        assert (row.case, row.check) == (case.case_id, 'label_unknown')
        assert '(5 voxels)' in row.value and ('77' in row.value or 'strange' in row.value)
    accept = ReadOptions(frozenset({'label_unknown'}))
    assert not count_errors(check_dataset(name, copy, read=accept, split=ALL_TRAIN, workers=0))


def damage(label):
    """Puts five voxels of an unknown label into a label map, of whatever kind it is."""
    strange = np.zeros((16, 16, 16), np.uint8)
    strange[15, 15, 5:10] = 77
    if not label.is_dir():
        image = nib.load(label)
        array = np.asarray(image.dataobj).copy()
        array[5:10, 15, 15] = 77
        assert not (np.asarray(image.dataobj)[5:10, 15, 15]).any()
        nib.save(nib.Nifti1Image(array, image.affine), label)
    elif any(label.glob('*.png')):
        path = sorted(label.glob('*.png'))[3]
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, :5] = 77
        Image.fromarray(pixels).save(path)
    else:
        tree_helper.write(label / 'strange.nii.gz', strange)


def test_notes_and_folds(tmp_path):
    TREES['kits19'](tmp_path / 'kits19')
    raw, _ = open_source('kits19', tmp_path / 'kits19')
    assert any('1 cases have no label' in note and 'case_00210' in note for note in raw.notes)
    TREES['ct_org'](tmp_path / 'ct_org')
    raw, _ = open_source('ct_org', tmp_path / 'ct_org')
    assert raw.splits is None and raw.test == ('ct_org_0', 'ct_org_20')
    manifest = prepare('ct_org', tmp_path / 'ct_org', tmp_path / 'store', **OPTIONS)
    assert manifest.splits['test'] == ('ct_org_0', 'ct_org_20')
    assert [len(manifest.splits[part]) for part in ('train', 'val')] == [2, 1]
    folds = [
        prepare('ct_org', tmp_path / 'ct_org', tmp_path / f'store{fold}',
                split=SplitOptions(folds=3, fold=fold), **OPTIONS).splits
        for fold in range(3)
    ]  # fmt: skip
    assert sorted(sum((fold['val'] for fold in folds), ())) == [
        'ct_org_100', 'ct_org_139', 'ct_org_21']  # fmt: skip
    assert all(fold['test'] == ('ct_org_0', 'ct_org_20') for fold in folds)


def test_folds_keep_the_stated_test_cases(tmp_path):
    TREES['totalsegmentator'](tmp_path)
    splits = prepare('totalsegmentator', tmp_path, tmp_path / 'store',
                     split=SplitOptions(folds=3, fold=1), **OPTIONS).splits  # fmt: skip
    assert splits['test'] == ('s1429',) and len(splits['val']) == 1 and len(splits['train']) == 2
