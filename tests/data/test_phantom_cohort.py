"""The folder that the built-in cohort writes, and the specifications that it accepts."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from maxquery_jax.data import sources
from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.phantom import (
    AnnotatedGroup,
    CohortSpec,
    generate_case,
    subtypes,
    write_cohort,
)
from maxquery_jax.data.datasets.phantom.spec import plan_cases
from maxquery_jax.data.datasets.phantom.subtypes import (
    add_subtypes,
    read_subtypes,
    write_subtypes,
)
from maxquery_jax.errors import UserError

COARSE = {'shape_zyx': (22, 34, 40), 'spacing_mm': (8.0, 8.0, 8.0)}
SMALL_COHORT = {
    'num_train': 5, 'num_val': 1, 'num_test_inlier': 1, 'num_test_ood': 3, 'seed': 4, **COARSE,
}  # fmt: skip


@pytest.fixture(scope='module')
def liver_cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp('liver')
    assert write_cohort(root, CohortSpec(**SMALL_COHORT)) == [root]
    return root


def test_dataset_json_agrees_with_the_files(liver_cohort):
    data = json.loads((liver_cohort / 'dataset.json').read_text())
    assert list(data['labels'].values()) == [
        'background', 'liver', 'hcc', 'icc', 'metastasis', 'haemangioma', 'cyst',
        'hepatoblastoma', 'fnh', 'other',
    ]  # fmt: skip
    assert data['numTraining'] == len(data['training']) == 10 and data['test'] == []
    for entry in data['training']:
        image = nib.load(liver_cohort / entry['image'])
        label = nib.load(liver_cohort / entry['label'])
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        assert int(image.header['qform_code']) == int(image.header['sform_code']) == 1
        assert image.header.get_zooms() == (8, 8, 8)
    files = {path.name for path in liver_cohort.glob('*Tr/*')}
    assert files == {f'phantom_{n:04d}.nii.gz' for n in range(10)}
    reader = read_decathlon(liver_cohort)
    assert reader.roles is not None and reader.splits is not None
    assert reader.roles['liver'] == 'organ' and reader.roles['fnh'] == 'ood'
    assert len(reader.splits['test']) == 4 and len(reader.splits['train']) == 5


def test_held_out_labels_occur_in_test_only_and_every_label_occurs(liver_cohort):
    data = json.loads((liver_cohort / 'dataset.json').read_text())
    extra = data['maxquery_jax']
    seen = {}
    for split, ids in extra['splits'].items():
        for case_id in ids:
            label = np.asarray(nib.load(liver_cohort / f'labelsTr/{case_id}.nii.gz').dataobj)
            found = {data['labels'][str(n)] for n in np.unique(label)}
            roles = {extra['roles'][name] for name in found}
            assert {'background', 'organ'} <= roles
            assert not {'tumour', 'ood'} <= roles  # one kind a case
            assert 'ood' not in roles or split == 'test'
            assert {t['label'] for t in extra['tumours'][case_id]} <= found
            seen[case_id] = found
    assert set().union(*seen.values()) == set(data['labels'].values())


def test_files_hold_the_case_in_turning_orientations(liver_cohort):
    codes = []
    for plan in plan_cases(CohortSpec(**SMALL_COHORT))[:3]:
        image = nib.load(liver_cohort / f'imagesTr/{plan.case_id}.nii.gz')
        codes.append(''.join(nib.aff2axcodes(image.affine)))
        canonical = nib.as_closest_canonical(image)
        wanted = tuple(name for name in (plan.choices[0], plan.second) if name)
        case = generate_case(seed=4, index=plan.index, region='liver', tumours=wanted, **COARSE)
        array = np.asarray(canonical.dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(array, case.image[..., 0])
        np.testing.assert_allclose(
            canonical.affine[:3, 3], [case.grid.x[0], case.grid.y[0], case.grid.z[0]], atol=1e-4
        )
    assert codes == ['LPS', 'LAS', 'RAS']


def test_workers_do_not_change_the_data(tmp_path):
    spec = CohortSpec(num_train=2, num_val=0, num_test_inlier=0, num_test_ood=1, seed=8, **COARSE)
    done = []
    for workers in (0, 2):
        write_cohort(tmp_path / str(workers), spec, workers=workers,
                     on_case=lambda *args: done.append(args))  # fmt: skip
    files = sorted(path.relative_to(tmp_path / '0') for path in (tmp_path / '0').rglob('*.*'))
    assert len(files) == 8
    for name in files:
        assert (tmp_path / '0' / name).read_bytes() == (tmp_path / '2' / name).read_bytes(), name
    assert [args[1:] for args in done] == [(1, 3), (2, 3), (3, 3)] * 2


def test_several_phases_become_numbered_channels(tmp_path):
    spec = CohortSpec(task='pancreas', num_train=1, num_val=0, num_test_inlier=0, num_test_ood=0,
                      phases=['noncontrast', 'arterial_late'], **COARSE)  # fmt: skip
    assert spec.reference_phase == 'arterial_late'
    write_cohort(tmp_path, spec)
    data = json.loads((tmp_path / 'dataset.json').read_text())
    assert data['channel_names'] == {'0': 'noncontrast', '1': 'arterial_late'}
    assert sorted(path.name for path in (tmp_path / 'imagesTr').iterdir()) == [
        'phantom_0000_0000.nii.gz', 'phantom_0000_0001.nii.gz',
    ]  # fmt: skip
    (case,) = read_decathlon(tmp_path).cases
    assert len(case.images) == 2


def test_subtypes_are_the_types_in_the_labels(tmp_path):
    kinds = ('colon_tumor', 'kidney_tumor')
    parts = {'num_train': 1, 'num_val': 0, 'num_test_inlier': 0, 'num_test_ood': 2}
    spec = CohortSpec(task='abdomen', tumours=kinds, ood_labels=('colon_tumor',), **parts, **COARSE)
    write_cohort(tmp_path, spec)
    rows = (tmp_path / 'subtypes.csv').read_text().splitlines()
    assert rows[0] == 'case,subtype'
    listed = dict(row.split(',') for row in rows[1:])
    label_of, names = spec.resolved_task.label_of, spec.resolved_task.labels
    for plan in plan_cases(spec):
        label = np.asarray(nib.load(tmp_path / f'labelsTr/{plan.case_id}.nii.gz').dataobj)
        held = {names[n] for n in np.unique(label)} & set(kinds)
        assert {label_of[name] for name in listed[plan.case_id].split('+')} == held
        assert listed[plan.case_id] == plan.choices[0]
    unseen = [listed[plan.case_id] for plan in plan_cases(spec) if plan.split == 'test']
    assert sorted(unseen) == ['colon_adenocarcinoma', 'colon_mucinous']


def test_a_case_of_several_types_joins_them_and_a_healthy_one_is_not_listed(tmp_path):
    def found(*types):
        return [{'type': name, 'volume_ml': volume} for name, volume in types]

    tumours = {  # as workers finish them
        'd': found(('fnh', 0.01)),
        'b': found(('papillary_rcc', 3.0), ('hcc', 1.0), ('hcc', 0.5)),
        'a': found(('cyst', 0.0)),  # another tumour took its voxels
        'c': [],
    }
    write_subtypes(tmp_path, tumours)
    text = (tmp_path / 'subtypes.csv').read_text()
    assert text == 'case,subtype\nb,hcc+papillary_rcc\nd,fnh\n'
    assert read_subtypes(tmp_path) == {'b': 'hcc+papillary_rcc', 'd': 'fnh'}


def test_a_cohort_of_an_older_program_gets_its_subtypes_or_does_without(
    liver_cohort, tmp_path, monkeypatch
):
    old = tmp_path / 'old'
    old.mkdir()
    shutil.copy(liver_cohort / 'dataset.json', old)
    assert read_subtypes(old) == read_subtypes(liver_cohort) != {}
    assert not (old / 'subtypes.csv').exists()  # reading writes nothing
    spec = CohortSpec(**SMALL_COHORT)
    with monkeypatch.context() as patch:
        patch.setattr(subtypes, 'write_subtypes', refuse)
        assert write_cohort(old, spec) == [old]  # a folder that cannot be written to
    write_cohort(old, spec)
    now, then = (folder / 'subtypes.csv' for folder in (old, liver_cohort))
    assert now.read_bytes() == then.read_bytes()
    now.write_text('case,subtype\nphantom_0000,mine\n')
    write_cohort(old, spec)
    assert read_subtypes(old) == {'phantom_0000': 'mine'}  # it is not replaced
    add_subtypes(tmp_path)
    assert not (tmp_path / 'subtypes.csv').exists() and read_subtypes(tmp_path) == {}


def refuse(*_):
    raise UserError('read-only')


def test_groups_are_partially_labelled_data_sets(tmp_path):
    grid = {'shape_zyx': (24, 34, 40), 'spacing_mm': (8.0, 8.0, 8.0), 'region': 'abdomen'}
    groups = (
        AnnotatedGroup('organs', ('liver', 'spleen'), num_train=1),
        {'name': 'lits', 'annotated': ['liver', 'liver_tumor'], 'tumours': ['liver_tumor'],
         'num_train': 1},
        AnnotatedGroup('blind', ('liver',), ('liver_tumor',), num_test=1),
    )  # fmt: skip
    spec = CohortSpec(task='abdomen', annotated_groups=groups, **grid)
    folders = write_cohort(tmp_path, spec)
    assert [folder.name for folder in folders] == ['organs', 'lits', 'blind']
    labels = {}
    for folder in folders:
        data = json.loads((folder / 'dataset.json').read_text())
        (entry,) = data['training']
        label = np.asarray(nib.load(folder / entry['label']).dataobj)
        labels[folder.name] = {data['labels'][str(n)] for n in np.unique(label)}
        extra = data['maxquery_jax']
        assert set(extra['annotated']).isdisjoint(extra['unannotated'])
        assert len(extra['annotated']) + len(extra['unannotated']) == 45
        assert 'case' not in entry
    assert labels == {
        'organs': {'background', 'liver', 'spleen'},
        'lits': {'background', 'liver', 'liver_tumor'},
        'blind': {'background', 'liver'},
    }
    ids = [json.loads((f / 'dataset.json').read_text())['training'][0]['image'] for f in folders]
    assert len(set(ids)) == 3  # different patients


def test_a_finished_cohort_is_left_alone_and_another_is_refused(liver_cohort):
    path = liver_cohort / 'dataset.json'
    before = path.stat().st_mtime_ns
    write_cohort(liver_cohort, CohortSpec(**SMALL_COHORT))
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match='another data set'):
        write_cohort(liver_cohort, CohortSpec(**{**SMALL_COHORT, 'seed': 5}))


@pytest.mark.parametrize(
    'values, words',
    [({'task': 'brain'}, 'task'), ({'phases': ('pet',)}, 'phases'), ({'phases': ()}, 'phases'),
     ({'region': 'head'}, 'region'), ({'shape_zyx': (4, 80, 80)}, 'shape_zyx'),
     ({'spacing_mm': (5, 4, -4)}, 'spacing_mm'), ({'num_train': -1}, 'num_train'),
     ({'ood_labels': ('liver',)}, 'ood_labels'), ({'reference_phase': 'delay'}, 'reference'),
     ({'annotated_groups': [{'name': '../x'}]}, 'folder'),
     ({'annotated_groups': [{'name': 'x', 'annotated': ['heart']}]}, 'heart')],
)  # fmt: skip
def test_unusable_specifications(values, words):
    with pytest.raises(UserError, match=words):
        CohortSpec(**values)


def test_a_tumour_outside_the_field_of_view_is_refused():
    with pytest.raises(UserError, match='field of view'):
        generate_case(seed=0, index=0, region='liver', tumours=('rectal_carcinoma',), **COARSE)
    with pytest.raises(UserError, match='unknown phantom tumour'):
        generate_case(seed=0, index=0, tumours=('wart',), **COARSE)


def test_held_out_labels_can_be_chosen():
    spec = CohortSpec(ood_labels=('cyst',), num_train=14, num_test_ood=2)
    task = spec.resolved_task
    assert task.labels[-1] == 'cyst' and task.roles['fnh'] == 'tumour'
    plans = plan_cases(spec)
    assert len({plan.index for plan in plans}) == len(plans)
    for plan in plans:
        assert (plan.choices[0] == 'cyst') == (plan in plans[-2:])
        assert plan.second != 'cyst'


def test_fewer_organs_and_tumours(tmp_path):
    """What is not annotated counts to what contains it; unknown kinds stay unknown."""
    spec = CohortSpec(
        task='abdomen',
        region='liver',
        organs=('liver', 'spleen'),
        tumours=('liver_tumor', 'hepatic_vessel_tumor'),
        num_train=1,
        num_val=0,
        num_test_inlier=0,
        num_test_ood=1,
        shape_zyx=(16, 24, 24),
        spacing_mm=(12.0, 10.0, 10.0),
    )
    names = ('background', 'liver', 'spleen', 'liver_tumor', 'hepatic_vessel_tumor')
    assert spec.resolved_task.labels == names
    write_cohort(tmp_path, spec)
    content = json.loads((tmp_path / 'dataset.json').read_text())
    assert tuple(content['labels'].values()) == names
    assert content['maxquery_jax']['roles']['hepatic_vessel_tumor'] == 'ood'
    kinds = [found[0]['label'] for found in content['maxquery_jax']['tumours'].values()]
    assert kinds == ['liver_tumor', 'hepatic_vessel_tumor']
    del content['maxquery_jax']['spec']['organs'], content['maxquery_jax']['spec']['tumours']
    (tmp_path / 'dataset.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match='another data set'):  # the organs differ
        write_cohort(tmp_path, spec)
    whole = dataclasses.replace(spec, organs=None, tumours=None)
    write_cohort(tmp_path, whole)  # a folder of the first release, which had no such fields


@pytest.mark.parametrize(
    ('fields', 'message'),
    [({'organs': ('lever',)}, 'organs'), ({'tumours': ('liver',)}, 'tumours')],
)
def test_unknown_organs_and_tumours(fields, message):
    with pytest.raises(UserError, match=f'phantom {message}: .* is not'):
        CohortSpec(task='abdomen', **fields)


@pytest.mark.parametrize(('cases', 'expected'), [(4, 0), (64, 2)])
def test_processes_are_started_for_large_cohorts_only(tmp_path, monkeypatch, cases, expected):
    found = []
    monkeypatch.setattr(sources.os, 'cpu_count', lambda: 2)
    monkeypatch.setattr(sources, 'write_cohort', lambda *_, workers, **__: found.append(workers))
    none = dict.fromkeys(('num_val', 'num_test_inlier', 'num_test_ood'), 0)
    sources.write_phantom(tmp_path, {'num_train': cases, 'shape_zyx': (16, 32, 32), **none})
    assert found == [expected]
