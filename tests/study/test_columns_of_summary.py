"""Columns of classes, against the numbers that the evaluation itself writes for them."""

import dataclasses
import json

import numpy as np
import pytest

from maxquery_jax.data.groups import read_groups
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.study.columns import parse_column
from maxquery_jax.study.measures import measure
from maxquery_jax.study.plan import plan
from maxquery_jax.study.results import load
from maxquery_jax.study.spec import parse_study
from tests.report import prediction_helper as helper
from tests.study.study_helper import study, table, tiny_config

LABELS = [
    *helper.LABELS[:3],
    {'id': 3, 'name': 'x', 'role': 'ood', 'predicted': True},
    {'id': 4, 'name': 'y', 'role': 'ood', 'predicted': True},
]
CASES = {'a': 2, 'b': 2, 'c': 3, 'd': 3, 'e': 4, 'f': 4}  # to the class of its tumour
SCORE = 'tumour_logit'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Folder of noisy predictions, evaluated."""
    path = tmp_path_factory.mktemp('columns')
    for case, tumour in CASES.items():
        rng = np.random.default_rng(ord(case))
        truth = np.zeros(helper.SHAPE, np.uint8)
        truth[2:12, 2:10, 1:7] = 1
        truth[3:6, 3:7, 2:5] = tumour
        wrong = rng.random(truth.shape) < 0.1
        predicted = np.where(wrong, rng.integers(0, 5, truth.shape), truth)
        score = rng.normal(size=truth.shape) + (truth > 2)
        helper.save(path / 'labels' / f'{case}.nii.gz', truth, np.uint8)
        helper.save(path / 'out' / f'{case}_seg.nii.gz', predicted, np.uint8)
        helper.save(path / 'out' / f'{case}_ood.nii.gz', score.astype(np.float16), np.float32)
        label_map = {str(i): i for i in range(5)}
        info = {'labels': LABELS, 'label_map': label_map, 'primary_score': SCORE}
        (path / 'out' / f'{case}.json').write_text(json.dumps(info))
    (path / 'groups.csv').write_text('case,kind\na,one\nc,one\ne,one\nb,two\nd,two\n')
    groups = path / 'groups.csv'
    return path, evaluate(predictions=path / 'out', labels=path / 'labels', groups=groups)


@pytest.fixture(scope='module')
def loaded(written, tmp_path_factory):
    """The same as a study reads it."""
    rows = ({'title': 'A', 'variant': 'a', 'score': SCORE},)
    spec = parse_study(study(seeds=(0,), tables=(table(rows=rows),)))
    runs = plan(spec, tiny_config, tmp_path_factory.mktemp('study'))
    runs[0].path.mkdir(parents=True)
    content = (written[0] / 'out' / 'summary.json').read_bytes()
    (runs[0].path / 'summary.json').write_bytes(content)
    return load(spec, runs, ('test',))['a'][0]


@pytest.mark.parametrize(
    ('column', 'key'),
    [
        ('dice/x', 'dice/x/case_mean'),
        ('dice_present/x', 'dice/x/present_mean'),
        ('dice/ood', 'dice_mean/ood/case_mean'),
        ('dice_present/x+y', 'dice_mean/ood/present_mean'),
        ('dice/organ', 'dice_mean/organ/case_mean'),
        ('dice', 'dice_mean/tumour/case_mean'),
        ('nsd/y', 'nsd/y/case_mean'),
        ('nsd_present/ood', 'nsd_mean/ood/present_mean'),
        ('lesion_sensitivity/x', 'lesion/x/sensitivity'),
        ('auroc', f'ood/{SCORE}/organ/case_mean/auroc'),
    ],
)
def test_classes(written, loaded, column, key):
    found = measure(loaded, parse_column(column, 'test'), SCORE)
    assert found is not None and 0 < found.value <= 1
    assert found.value == pytest.approx(written[1]['metrics'][key]['value'], abs=1e-9)


@pytest.mark.parametrize('metric', ['auroc', 'aupr', 'fpr95'])
@pytest.mark.parametrize('region', ['organ', 'interior', 'whole'])
def test_localisation_of_unseen_classes(written, loaded, metric, region):
    summary = written[1]
    of_x = summary['ood_by_class']['x']['scores'][SCORE][region][metric]
    of_all = summary['ood_class_mean'][SCORE][region][metric]
    for name, entry in (('x', of_x), ('ood', of_all), ('x+y', of_all)):
        found = measure(loaded, parse_column(f'{metric}/{name}/{region}', 'test'), SCORE)
        assert found is not None and found.value == pytest.approx(entry['value'], abs=1e-9)


@pytest.mark.parametrize('group', ['one', 'two'])
@pytest.mark.parametrize(
    ('column', 'key'),
    [
        ('auroc', f'ood/{SCORE}/organ/case_mean/auroc'),
        ('dice_present/x', 'dice/x/present_mean'),
        ('nsd/x', 'nsd/x/case_mean'),
        ('dice', 'dice_mean/tumour/case_mean'),
    ],
)
def test_groups(written, loaded, column, key, group):
    grouped = dataclasses.replace(loaded, group_of=read_groups(written[0] / 'groups.csv').group_of)
    found = measure(grouped, parse_column(f'{column}@{group}', 'test'), SCORE)
    entry = written[1]['groups']['by_name'][group]['metrics'][key]
    assert found is not None and found.value == pytest.approx(entry['value'], abs=1e-9)
    assert found.value != pytest.approx(written[1]['metrics'][key]['value'], abs=1e-9)
    whole = written[1]['groups']['by_name'][group]['ood_by_class']['x']['scores'][SCORE]
    found = measure(grouped, parse_column(f'fpr95/x@{group}', 'test'), SCORE)
    assert found is not None and found.value == pytest.approx(whole['organ']['fpr95']['value'])
