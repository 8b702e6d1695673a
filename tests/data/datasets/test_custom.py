"""Specifications from JSON files, and listing by templates."""

import json

import numpy as np
import pytest
import tree_helper as tree
from trees import TREES, write_json

from maxquery_jax.data.check import ReadOptions, check_dataset
from maxquery_jax.data.datasets.custom import TEMPLATE, load_spec, template_text
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.sources import PairOptions, open_source
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError

IDS = {'liver': 1, 'kidney': 2, 'kidney_tumour': 3, 'bone': 4}
OPTIONS = {'spacing_mm': (10, 10, 10), 'workers': 0, 'log': lambda _: None}


@pytest.fixture
def source(tmp_path):
    """What the template describes."""
    folder = tmp_path / 'mine'
    for seed, case in enumerate('abc'):
        tree.write_pair(
            folder / 'images' / f'{case}_ct.nii.gz',
            folder / 'labels' / f'{case}_seg.nii',
            seed,
            IDS,
        )
    return folder


def test_template_works(source, tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text(template_text())
    assert check_dataset('custom', source, spec=path, workers=0) == []
    manifest = prepare('custom', source, tmp_path / 'store', spec=path, taxonomy='zept', **OPTIONS)
    assert manifest.dataset == 'my_kidneys'
    assert set(manifest.annotated) == {'liver', 'right_kidney', 'left_kidney', 'kidney_tumour'}
    assert manifest.contains == {'kidney_tumour': 'right_kidney+left_kidney'}
    expected = np.zeros((16, 16, 16), np.uint8)
    names = [label['name'] for label in manifest.labels]
    for name, mask in tree.blocks(IDS, 1).items():
        expected[mask] = names.index(name) if name != 'bone' else 0
    np.testing.assert_array_equal(PatchStore(tmp_path / 'store').read_label('b'), expected)


def test_flags_win_over_the_specification(source, tmp_path):
    from maxquery_jax.data.labels import RoleFlags

    path = write_json(tmp_path / 'mine.json', TEMPLATE)
    roles = RoleFlags(ood=('kidney_tumour',), ignore=('bone',), organ=('k=right_kidney+liver',))
    split = SplitOptions(given={'train': [], 'val': [], 'test': ['a', 'c']})
    manifest = prepare('custom', source, tmp_path / 'store', spec=path, roles=roles, split=split,
                       **OPTIONS)  # fmt: skip
    assert [label['name'] for label in manifest.labels] == [
        'background', 'k', 'left_kidney', 'kidney_tumour']  # fmt: skip
    assert manifest.splits['test'] == ('a', 'c') and manifest.ood_ids == (3,)


def test_like_a_data_set_of_the_catalogue(source, tmp_path):
    path = write_json(tmp_path / 's.json', {'like': 'kits23', 'layout': TEMPLATE['layout'],
                                            'labels': {'2': 'kidney', '3': 'kidney_tumour',
                                                       '9': 'kidney_cyst'}})  # fmt: skip
    spec = load_spec(path)
    assert spec.name == 'kits23' and spec.contains['kidney_cyst'] == 'kidney'
    rows = check_dataset('custom', source, spec=path, workers=0)
    assert {row.check for row in rows} == {'label_unknown'}


def test_dataset_json_with_relations(tmp_path):
    """An nnU-Net folder to which a specification adds what dataset.json cannot say."""
    TREES['msd_pancreas'](tmp_path / 'raw')
    content = {'name': 'mine', 'layout': {'kind': 'dataset_json'},
               'labels': {'1': 'pancreas', '2': 'pancreas_tumour'},
               'contains': {'pancreas_tumour': 'pancreas'}}  # fmt: skip
    path = write_json(tmp_path / 's.json', content)
    raw, table = open_source('custom', tmp_path / 'raw', spec=path)
    assert table.contains == {'pancreas_tumour': 'pancreas'} and len(raw.cases) == 3
    write_json(path, {**content, 'labels': {'1': 'pancreas'}, 'contains': {}})
    with pytest.raises(UserError, match=r'names the ids \[1, 2\], the specification \[1\]'):
        open_source('custom', tmp_path / 'raw', spec=path)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'nmae': 'x'}, "no key 'nmae'"),
        ({'labels': {'x': 'liver'}}, "'x' is no id"),
        ({'labels': {'1': 'liver', '2': 'liver'}}, 'names of their own'),
        ({'labels': ['liver']}, "'labels' must be an object"),
        ({'contains': {'tumor': 'kidney'}}, "contains speaks of 'tumor'"),
        ({'left_right': {'kidney': ['right']}}, 'right and left'),
        ({'left_right': {'heart': ['a', 'b']}}, "left_right speaks of 'heart'"),
        ({'to_taxonomy': {'kidney': None}}, "to_taxonomy speaks of 'kidney'"),
        ({'to_taxonomy': {'bone': 3}}, "'to_taxonomy' must be a text"),
        ({'channels': ['a', 'b']}, '2 channels, but 1 images'),
        ({'folds': True}, 'whole number'),
        ({'like': 'kits'}, "'like' names 'kits'"),
        ({'layout': {'kind': 'tar', 'groups': []}}, "kind 'tar'"),
        ({'layout': {'groups': []}}, 'at least one group'),
        ({'layout': {'groups': [{'images': ['{case}.nii']}]}}, "needs the key 'label'"),
        ({'layout': {'groups': [{'images': ['a.nii'], 'label': '{case}'}]}}, 'has no {case}'),
        ({'layout': {'groups': [{'images': ['../{case}'], 'label': '{case}'}]}}, 'leaves the fol'),
        ({'layout': {'groups': [{'images': ['a/**/{case}'], 'label': '{case}'}]}}, 'beginning'),
        ({'layout': {'groups': [{'images': ['{case}'], 'label': '{case}', 'cases': '('}]}}, 'patt'),
        ({'layout': {'groups': [{'images': ['{case}'], 'label': '{case}', 'split': 'x'}]}}, "'x'"),
        ({'layout': {'groups': [{'images': ['{case}'], 'label': '{case}', 'x': 1}]}}, "key 'x'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_named(change, words, tmp_path):
    path = write_json(tmp_path / 'mine.json', {**TEMPLATE, **change})
    with pytest.raises(UserError) as caught:
        load_spec(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize('text', ['', '[]', '{', '{"name": "x"}'])
def test_unreadable_files(text, tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text(text)
    with pytest.raises(UserError, match=r'mine\.json.*--spec_template'):
        load_spec(path)


def test_options_that_do_not_fit(source, tmp_path):
    path = write_json(tmp_path / 'mine.json', TEMPLATE)
    for name, options, words in [
        ('custom', {}, '--spec=FILE.json'),
        ('btcv', {'spec': path}, '--spec belongs to --dataset=custom'),
        ('btcv', {'pairs': PairOptions(('*.nii',))}, '--images belongs to'),
        ('btvc', {}, 'did you mean btcv'),
        ('btcv', {'taxonomy': 'mesh'}, '--taxonomy=mesh'),
    ]:
        with pytest.raises(UserError, match=words):
            open_source(name, source, **options)


# Listing.


def test_wrong_folder_is_named(source, tmp_path):
    with pytest.raises(UserError, match=r'holds no img/img.*not btcv.*--describe=btcv'):
        open_source('btcv', source)
    with pytest.raises(UserError, match='is not a folder'):
        open_source('btcv', tmp_path / 'none')


def test_wrong_task_of_the_decathlon(tmp_path):
    TREES['msd_liver'](tmp_path)
    with pytest.raises(UserError, match='not those of msd_pancreas'):
        open_source('msd_pancreas', tmp_path)


def test_missing_partners_are_listed(tmp_path):
    TREES['btcv'](tmp_path)
    root = tmp_path / 'RawData' / 'Training'
    (root / 'img' / 'img0001.nii.gz').unlink()
    (root / 'label' / 'label0002.nii.gz').unlink()
    rows = check_dataset('btcv', tmp_path, workers=0)
    assert [(row.case, row.check) for row in rows] == [
        ('btcv_0001', 'missing_file'), ('btcv_0002', 'missing_label')]  # fmt: skip
    assert rows[0].file == 'RawData/Training/label/label0001.nii.gz'


def test_one_case_twice(tmp_path):
    TREES['lits'](tmp_path)
    tree.write(tmp_path / 'copy' / 'volume-27.nii', tree.hu(1))
    with pytest.raises(UserError, match=r"are both case '27'"):
        open_source('lits', tmp_path)


def test_masks_that_some_cases_lack(tmp_path):
    TREES['totalsegmentator'](tmp_path)
    root = tmp_path / 'Totalsegmentator_dataset_v201'
    (root / 's0001' / 'segmentations' / 'spleen.nii.gz').unlink()
    raw, _ = open_source('totalsegmentator', tmp_path)
    assert any('1 masks are absent in some cases' in n and 'spleen' in n for n in raw.notes)
    for path in root.glob('*/segmentations/*'):
        path.rename(path.with_name('x_' + path.name))
    with pytest.raises(UserError, match='no mask of a known name'):
        open_source('totalsegmentator', tmp_path)


def test_split_table(tmp_path):
    TREES['totalsegmentator'](tmp_path)
    table = tmp_path / 'Totalsegmentator_dataset_v201' / 'meta.csv'
    table.write_text('image_id;split\ns0000;trian\n')
    with pytest.raises(UserError, match="'s0000' has split 'trian'"):
        open_source('totalsegmentator', tmp_path)
    table.write_text('image_id,split\ns0000,train\n')
    with pytest.raises(UserError, match='no columns image_id and split'):
        open_source('totalsegmentator', tmp_path)
    table.unlink()
    raw, _ = open_source('totalsegmentator', tmp_path)
    assert raw.splits is None and any('no meta.csv' in note for note in raw.notes)


def test_unknown_tumours_move_to_test(tmp_path):
    """The data set's own training cases may hold what is unknown under the taxonomy."""
    TREES['totalsegmentator'](tmp_path)
    root = tmp_path / 'Totalsegmentator_dataset_v201'
    for case in ('s0001', 's0287', 's1429'):
        (root / case / 'segmentations' / 'kidney_cyst_left.nii.gz').unlink()
    rows = check_dataset('totalsegmentator', tmp_path, taxonomy='zept', workers=0)
    assert [(row.case, row.check, row.severity) for row in rows] == [
        ('s0000', 'ood_in_train', 'warning')]  # fmt: skip
    given = {'train': ['s0000'], 'val': [], 'test': []}
    rows = check_dataset('totalsegmentator', tmp_path, taxonomy='zept', workers=0,
                         split=SplitOptions(given=given))  # fmt: skip
    assert [row.severity for row in rows if row.check == 'ood_in_train'] == ['error']


def test_sides_that_cannot_be_told_apart(tmp_path):
    ids = {'kidney': 1, 'kidney_tumour': 2}
    root = tmp_path / 'case_00000'
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:9, 2:9, 2:14] = 1
    tree.write(root / 'imaging.nii.gz', tree.hu(0))
    tree.write(root / 'segmentation.nii.gz', label)
    tree.write_pair(
        tmp_path / 'case_00001/imaging.nii.gz', tmp_path / 'case_00001/segmentation.nii.gz', 1, ids
    )
    (row,) = check_dataset('kits19', tmp_path, split=SplitOptions('all_train'), workers=0)
    assert (row.case, row.check, row.severity) == ('case_00000', 'left_right', 'error')
    assert row.file == 'case_00000/segmentation.nii.gz' and '--allow=left_right' in row.fix
    manifest = prepare('kits19', tmp_path, tmp_path / 'store', **OPTIONS,
                       read=ReadOptions(frozenset({'left_right'})))  # fmt: skip
    voxels = manifest.cases['case_00000']['voxels']
    assert voxels['1'] + voxels['2'] == 7 * 7 * 12 and min(voxels['1'], voxels['2']) > 150
    assert 4 < manifest.cases['case_00000']['midline'] < 11


def test_prepared_again_is_kept(source, tmp_path):
    path = write_json(tmp_path / 'mine.json', TEMPLATE)
    prepare('custom', source, tmp_path / 'store', spec=path, **OPTIONS)
    lines = []
    options = {**OPTIONS, 'log': lines.append, 'spec': path}
    prepare('custom', source, tmp_path / 'store', **options)
    assert lines == [f'{tmp_path / "store"}: up to date (3 cases)']
    changed = json.loads(template_text())
    changed['contains'] = {}
    write_json(path, changed)
    with pytest.raises(UserError, match=r'other settings \(.*contains'):
        prepare('custom', source, tmp_path / 'store', **options)
