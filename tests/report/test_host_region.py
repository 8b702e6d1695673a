"""OOD voxels ranked in the organ that they grow in, where the names of the labels tell it."""

import json

import numpy as np
import prediction_helper as helper
import pytest
from sklearn.metrics import roc_auc_score

from maxquery_jax.data.taxonomy import hosts_of
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.tables import plain, summary_tables

NAMES = {
    'liver': 'organ',
    'right lung': 'organ',
    'left_lung': 'organ',
    'liver_tumor': 'tumour',
    'Lung Tumour': 'ood',
    'hepatic_vessel_tumor': 'ood',
    'lesion': 'ood',
}
LABELS = [{'id': 0, 'name': 'background', 'role': 'background'}] + [
    {'id': i, 'name': name, 'role': role} for i, (name, role) in enumerate(NAMES.items(), 1)
]
CASES = {'a': (4,), 'b': (5,), 'c': (6,), 'd': (5, 6), 'e': (7,)}
HOSTS = {'b': (2, 3, 5), 'c': (1, 4, 6), 'd': (1, 2, 3, 4, 5, 6), 'e': range(1, 8)}
"""Case to the labels of its host region; nothing is known of `lesion`."""


def make_truth(case):
    truth = np.zeros(helper.SHAPE, np.uint8)
    truth[1:5, 1:11, 1:7], truth[6:9, 1:11, 1:7], truth[10:13, 1:11, 1:7] = 1, 2, 3
    truth[1:3, 1:4, 1:4] = 4
    for tumour in CASES[case]:
        x = 2 if tumour in (4, 6) else 7
        truth[x : x + 2, 5:8, 2:5] = tumour
    return truth


def make_score(case):
    """Higher in tumours, and in the whole liver."""
    truth = make_truth(case)
    score = np.random.default_rng(ord(case)).normal(size=truth.shape)
    score += 1.2 * (truth > 3) + 2.0 * (truth == 1)
    return score.astype(np.float16).astype(np.float32)


@pytest.fixture(scope='module')
def summary(tmp_path_factory):
    path = tmp_path_factory.mktemp('hosts')
    for case in CASES:
        truth = make_truth(case)
        helper.save(path / 'labels' / f'{case}.nii.gz', truth, np.uint8)
        helper.save(path / 'out' / f'{case}_seg.nii.gz', np.minimum(truth, 4), np.uint8)
        helper.save(path / 'out' / f'{case}_ood.nii.gz', make_score(case), np.float32)
        info = {'labels': LABELS, 'label_map': {str(i): i for i in range(8)}}
        record = json.dumps(info | {'primary_score': 'query_logit'})
        (path / 'out' / f'{case}.json').write_text(record)
    return evaluate(predictions=path / 'out', labels=path / 'labels')


def _auroc(case, labels, positive):
    truth = make_truth(case)
    inside = np.isin(truth, list(labels))
    return roc_auc_score(np.isin(truth, positive)[inside], make_score(case)[inside])


@pytest.mark.parametrize('case', HOSTS)
def test_a_case_is_ranked_in_the_hosts_of_its_tumours(summary, case):
    ood = {c['case']: c['ood']['query_logit'] for c in summary['cases']}
    expected = _auroc(case, HOSTS[case], (5, 6, 7))
    assert ood[case]['host']['auroc'] == pytest.approx(expected)
    is_same = ood[case]['host'] == ood[case]['organ']
    assert is_same == (case in ('d', 'e'))  # all organs, or none that is known
    assert ood['a']['host']['auroc'] is None


def test_a_class_is_ranked_without_other_unknown_tumours(summary):
    found = summary['ood_by_class']['Lung Tumour']['scores']['query_logit']['host']['auroc']
    values = [_auroc('b', HOSTS['b'], 5), _auroc('d', {1, 2, 3, 4, 5}, 5)]
    assert found['value'] == pytest.approx(np.mean(values)) and found['n'] == 2


def test_tables_show_the_region_where_it_differs(summary):
    texts = [plain(table) for table in summary_tables(summary)]
    assert sum('host' in text for text in texts) == 2
    for key in [key for key in summary['metrics'] if '/host/' in key]:
        summary['metrics'].pop(key)  # as of an older program
    rows = [row for table in summary_tables(summary) for row in table.rows]
    assert all('host' not in row for row in rows)


@pytest.mark.parametrize(
    ('name', 'organs'),
    [
        ('Colon tumor', ('colon',)),
        ('lung_tumour', ('right_lung', 'left_lung')),
        ('hepatic_vessel_tumor', ('hepatic_vessel', 'liver')),
        ('liver', ()),
        ('hcc', ()),
    ],
)
def test_hosts_by_name(name, organs):
    assert hosts_of(name) == organs


def test_hosts_are_ids_of_the_table():
    table = LabelTable.from_json(LABELS, 'here')
    assert table.hosts(5) == (2, 3) and table.hosts(6) == (1,) and table.hosts(7) == ()
