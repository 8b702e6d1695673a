"""Readers of folder layouts: Decathlon, nnU-Net v1 and v2, loose pairs."""

import json

import nifti_helper as helper
import numpy as np
import pytest

from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.pairs import parse_label_names, read_pairs
from maxquery_jax.errors import UserError

LABELS = {'0': 'background', '1': 'liver', '2': 'cancer'}
CASES = {'b': helper.blob_case(1), 'a': helper.blob_case(2)}


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_json(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'dataset.json').write_text(json.dumps(content))


def test_decathlon(tmp_path):
    helper.decathlon(tmp_path, CASES, LABELS, extra={'test': ['./imagesTs/c.nii.gz'],
                                                     'numTraining': 5})  # fmt: skip
    dataset = read_decathlon(tmp_path)
    assert [case.case_id for case in dataset.cases] == ['a', 'b']
    assert dataset.cases[0].images == ('imagesTr/a.nii.gz',)
    assert dataset.cases[0].label == 'labelsTr/a.nii.gz'
    assert dataset.raw_labels == {0: 'background', 1: 'liver', 2: 'cancer'}
    assert dataset.channels == ('CT',) and dataset.splits is None and dataset.roles is None
    assert any('1 test images' in note for note in dataset.notes)
    assert any('numTraining 5 and lists 2' in note for note in dataset.notes)


def test_own_key(tmp_path):
    own = {
        'roles': {'cancer': 'ood', 'background': 'background'},
        'annotated': ['liver'],
        'splits': {'train': ['a'], 'val': [], 'test': ['b']},
    }
    helper.decathlon(tmp_path, CASES, LABELS, extra={'maxquery_jax': own})
    dataset = read_decathlon(tmp_path)
    assert dataset.roles == {'cancer': 'ood'} and dataset.annotated == ('liver',)
    assert dataset.splits == {'train': ('a',), 'val': (), 'test': ('b',)}


def test_nnunet_v1_lists_images_without_their_channel(tmp_path):
    write_json(
        tmp_path, modality={'0': 'arterial', '1': 'venous'}, labels=LABELS, numTraining=1,
        training=[{'image': './imagesTr/x.nii.gz', 'label': './labelsTr/x.nii.gz'}],
    )  # fmt: skip
    touch(tmp_path, 'imagesTr/x_0000.nii.gz', 'imagesTr/x_0001.nii.gz')
    (case,) = read_decathlon(tmp_path).cases
    assert case.case_id == 'x'
    assert case.images == ('imagesTr/x_0000.nii.gz', 'imagesTr/x_0001.nii.gz')


def v2(**changes):
    return {
        'channel_names': {'0': 'CT'},
        'labels': {'background': 0, 'liver': 1, 'cancer': 4},
        'numTraining': 2,
        'file_ending': '.nii.gz',
        **changes,
    }


def test_nnunet_v2(tmp_path):
    write_json(tmp_path, **v2(labels={'background': 0, 'liver': 1, 'cancer': 4, 'ignore': 5}))
    touch(tmp_path, 'imagesTr/x_0000.nii.gz', 'imagesTr/y_z_0000.nii.gz', 'labelsTr/x.nii.gz')
    dataset = read_decathlon(tmp_path)
    assert [(c.case_id, *c.images, c.label) for c in dataset.cases] == [
        ('x', 'imagesTr/x_0000.nii.gz', 'labelsTr/x.nii.gz'),
        ('y_z', 'imagesTr/y_z_0000.nii.gz', 'labelsTr/y_z.nii.gz'),  # named by the check later
    ]
    assert dataset.raw_labels == {0: 'background', 1: 'liver', 4: 'cancer', 5: 'ignore'}


def test_nnunet_v2_named_cases_and_stray_files(tmp_path):
    listing = {'k': {'images': ['../a.nii.gz'], 'label': 'l.nii.gz'}}
    write_json(tmp_path / 'named', **v2(dataset=listing))
    assert read_decathlon(tmp_path / 'named').cases[0].images == ('../a.nii.gz',)
    write_json(tmp_path / 'stray', **v2(numTraining=1))
    touch(
        tmp_path / 'stray', 'imagesTr/x_0000.nii.gz', 'imagesTr/x_0001.nii.gz', 'imagesTr/y.nii.gz'
    )
    problems = read_decathlon(tmp_path / 'stray').problems
    assert [file for _, file, _ in problems] == ['imagesTr/x_0001.nii.gz', 'imagesTr/y.nii.gz']


LISTED = {'labels': LABELS, 'training': [{'image': 'a.nii', 'label': 'b.nii'}]}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'training': []}, "'labels' is missing"),
        ({**LISTED, 'labels': [1, 2]}, "key 'labels' must be an object"),
        ({**LISTED, 'labels': {'1': 'liver'}}, 'no id 0'),
        ({**LISTED, 'labels': {'0': 'background', 'liver': 'x'}}, 'no integer id'),
        ({**LISTED, 'labels': {'background': 0, 'a': 1, 'b': 1}}, 'two names'),
        (v2(labels={'background': 0, 'whole': [1, 2]}), "'whole' is a region"),
        ({'labels': LABELS}, "key 'training' is missing"),
        ({'labels': LABELS, 'training': ['a.nii']}, "key 'training', entry 0"),
        ({'labels': LABELS, 'training': [{'image': 1, 'label': 'b'}]}, 'entry 0'),
        ({'labels': LABELS, 'training': []}, 'no training case'),
        ({**LISTED, 'training': LISTED['training'] * 2}, 'listed twice'),
        ({**LISTED, 'modality': {'1': 'CT'}}, "key 'modality'"),
        (v2(file_ending='.mha'), "'file_ending' is '.mha'"),
        (v2(dataset={'x': 3}), "case 'x'"),
        (v2(dataset={'x': {'images': ['a', 'b'], 'label': 'c'}}), '2 images for 1 channels'),
        ({**LISTED, 'maxquery_jax': 3}, "'maxquery_jax' must be an object"),
        ({**LISTED, 'maxquery_jax': {'roles': {'spleen': 'organ'}}}, "'spleen', which is no label"),
        ({**LISTED, 'maxquery_jax': {'annotated': 'liver'}}, 'annotated'),
        ({**LISTED, 'maxquery_jax': {'splits': {'fold0': []}}}, 'splits: not a split'),
        ({**LISTED, 'maxquery_jax': {'splits': {'train': ['a'], 'val': ['a']}}}, "in 'train' and"),
        ({**LISTED, 'maxquery_jax': {'splits': {'train': [1]}}}, 'not a list of case ids'),
    ],
)
def test_malformed_dataset_json_names_the_key(content, words, tmp_path):
    write_json(tmp_path, **content)
    with pytest.raises(UserError) as caught:
        read_decathlon(tmp_path)
    assert words in str(caught.value) and str(tmp_path / 'dataset.json') in str(caught.value)


def test_case_count_of_nnunet_v2(tmp_path):
    write_json(tmp_path, **v2())
    touch(tmp_path, 'imagesTr/x_0000.nii.gz')
    with pytest.raises(UserError, match="'numTraining' is 2, but 1 cases"):
        read_decathlon(tmp_path)


@pytest.mark.parametrize('text', [None, '', '{', '[1]', '\x00'])
def test_unreadable_dataset_json(text, tmp_path):
    if text is not None:
        (tmp_path / 'dataset.json').write_text(text)
    with pytest.raises(UserError, match='dataset.json'):
        read_decathlon(tmp_path)
    with pytest.raises(UserError, match='not a folder'):
        read_decathlon(tmp_path / 'none')


# Loose pairs.


def test_pairs(tmp_path):
    touch(
        tmp_path, 'a_ct.nii.gz', 'a_seg.nii.gz', 'sub/b c_ct.nii.gz', 'd_ct.nii.gz', 'e_seg.nii.gz'
    )
    names = {0: 'background', 1: 'lung'}
    dataset = read_pairs(tmp_path, ['*_ct.nii.gz'], '*_seg.nii.gz', names)
    assert [(c.case_id, c.images, c.label) for c in dataset.cases] == [
        ('a', ('a_ct.nii.gz',), 'a_seg.nii.gz'),
        ('d', ('d_ct.nii.gz',), None),
    ]
    assert [file for _, file, _ in dataset.problems] == ['e_seg.nii.gz']
    deep = read_pairs(tmp_path, ['**/*_ct.nii.gz'], None, names)
    assert [case.case_id for case in deep.cases] == ['a', 'b c', 'd']


def test_pairs_of_several_phases(tmp_path):
    touch(tmp_path, 'a_art.nii', 'a_ven.nii', 'b_art.nii')
    dataset = read_pairs(tmp_path, ['*_art.nii', '*_ven.nii'], None, {0: 'background'})
    assert [case.images for case in dataset.cases] == [('a_art.nii', 'a_ven.nii')]
    assert dataset.channels == ('channel0', 'channel1')
    assert [(case, file) for case, file, _ in dataset.problems] == [('b', 'b_ven.nii')]


@pytest.mark.parametrize(
    ('images', 'words'),
    [([], '--images'), (['*.nii*'], 'one \\*'), (['ct.nii'], 'one \\*'), (['../*.nii'], 'inside'),
     (['/x/*.nii'], 'inside'), (['*_mr.nii'], 'matches nothing'), (['**/*_ct.nii'], 'both case')],
)  # fmt: skip
def test_pair_patterns_are_checked(images, words, tmp_path):
    touch(tmp_path, 'a_ct.nii', 'x/a_ct.nii')
    with pytest.raises(UserError, match=words):
        read_pairs(tmp_path, images, None, {0: 'background'})


def test_label_names():
    assert parse_label_names('1:right lung, 4:GTV:1') == {
        0: 'background', 1: 'right lung', 4: 'GTV:1'}  # fmt: skip
    assert parse_label_names('0:air,1:x')[0] == 'air'
    for wrong in ('liver', 'x:liver', '1:', '1:a,1:b'):
        with pytest.raises(UserError, match='--label_names'):
            parse_label_names(wrong)


def test_real_pairs_share_their_geometry(real_data):
    names = {i: f'l{i}' for i in range(1, 118)} | {0: 'background'}
    for folder, images, labels in [
        ('totalsegmentator', '*_ct.nii.gz', '*_seg117.nii.gz'),
        ('nsclc_lung1', '*_ct.nii.gz', '*_seg.nii.gz'),
        ('medsam2_deeplesion', '*_ct8bit.nii.gz', '*_lesion.nii.gz'),
        ('pyradiomics_lung', '*_ct.nii.gz', '*_tumour.nii.gz'),
    ]:
        dataset = read_pairs(real_data / folder, [images], labels, names)
        assert not dataset.problems and all(case.label for case in dataset.cases)
    assert np.size(dataset.cases) == 1
