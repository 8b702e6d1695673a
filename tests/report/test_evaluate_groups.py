"""Metrics of groups of cases: those that an evaluation of these cases alone would give."""

import json

import numpy as np
import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate, evaluate_part
from maxquery_jax.report.measure import measure_cases
from maxquery_jax.report.predictions import open_predictions
from maxquery_jax.report.summary import summarise
from maxquery_jax.report.tables import plain, summary_tables
from tests.report.test_summary_schema import _documented

SCORES = ('query_logit', 'category_softmax')
GROUPS = {'solid': ('a', 'd'), 'mucinous': ('e',), 'mixed': ('b',)}  # c is in none
RESAMPLES = 40


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('groups')
    helper.write_predictions(path / 'predictions', SCORES)
    helper.write_images(path / 'raw')
    rows = [f'{case},{name}\n' for name, cases in GROUPS.items() for case in cases]
    (path / 'groups.csv').write_text('case,subtype\n' + ''.join(rows))
    return path


def _inputs(folder):
    return {'predictions': folder / 'predictions', 'labels': folder / 'raw' / 'labels'}


@pytest.fixture(scope='module')
def summary(folder):
    groups = folder / 'groups.csv'
    evaluate(**_inputs(folder), output=folder / 'one', resamples=RESAMPLES, groups=groups)
    return json.loads((folder / 'one' / 'summary.json').read_text())


def test_a_group_has_the_numbers_of_its_cases_alone(folder, summary):
    groups = summary['groups']
    assert set(groups) == _documented('Groups')
    assert (groups['column'], groups['ungrouped_cases']) == ('subtype', 1)
    assert list(groups['by_name']) == sorted(GROUPS)
    found = open_predictions(folder / 'predictions', labels=folder / 'raw' / 'labels')
    measured = measure_cases(found)
    for name, cases in GROUPS.items():
        own = [case for case in measured if case.case in cases]
        alone = summarise(own, found.table, found.scores, resamples=RESAMPLES)
        group = groups['by_name'][name]
        assert set(group) == _documented('A group')
        assert group['cases'] == list(cases)
        defined = {k: e for k, e in alone['metrics'].items() if e['value'] is not None}
        assert defined and group['metrics'] == defined
        for key in ('ood_by_class', 'ood_class_mean', 'counts'):
            assert group[key] == alone[key], key


def test_values_by_hand(summary):
    by_case = {case['case']: case for case in summary['cases']}
    solid = summary['groups']['by_name']['solid']
    key = 'ood/query_logit/organ/case_mean/auroc'
    auroc = by_case['d']['ood']['query_logit']['organ']['auroc']
    assert solid['metrics'][key]['value'] == pytest.approx(auroc)
    assert solid['metrics'][key]['value'] != summary['metrics'][key]['value']
    assert solid['ood_by_class']['fnh']['cases'] == 1
    dice = solid['metrics']['dice/liver/present_mean']  # d is no inlier case
    assert dice['value'] == pytest.approx(by_case['a']['dice']['liver'])
    assert (dice['n'], dice['ci95']) == (1, [None, None])
    assert solid['metrics']['ood_case/query_logit/auc']['value'] in (0, 1)  # of a and d
    alone = summary['groups']['by_name']['mucinous']['metrics']
    assert 'ood_case/query_logit/auc' not in alone and 'dice/liver/present_mean' not in alone
    assert all(np.isfinite(entry['value']) for entry in alone.values())


def test_without_groups_nothing_else_changes(folder, summary):
    plainly = evaluate(**_inputs(folder), output=folder / 'plain', resamples=RESAMPLES)
    assert plainly['groups'] == {} and {**plainly, 'groups': summary['groups']} == summary


def test_a_merge_of_parts_has_the_groups_of_one_process(folder, summary, tmp_path):
    for part in ('1/2', '2/2'):
        evaluate_part(part, output=tmp_path, **_inputs(folder))
    arguments = {'output': tmp_path, 'merge': 2, 'resamples': RESAMPLES}
    evaluate(**_inputs(folder), **arguments, groups=folder / 'groups.csv')
    assert summary['groups']['by_name']
    for name in ('summary.json', 'cases.csv'):
        assert (tmp_path / name).read_bytes() == (folder / 'one' / name).read_bytes()


def test_tables(summary):
    tables = [t for t in summary_tables(summary) if t.title.startswith('subtype ')]
    assert [table.title.split(':')[0] for table in tables] == [
        'subtype mixed', 'subtype mucinous', 'subtype solid',
    ]  # fmt: skip
    solid = tables[2]
    assert '2 cases (1 inlier, 1 OOD), query_logit in the organ region' in solid.title
    cells = {row[0]: row[1:] for row in solid.rows}
    group = summary['groups']['by_name']['solid']
    auroc = group['ood_by_class']['fnh']['scores']['query_logit']['organ']['auroc']['value']
    assert cells['fnh'] == (f'{100 * auroc:.1f}', *cells['fnh'][1:3], '-', '-', '1')
    dice = group['metrics']['dice/cyst/present_mean']['value']
    assert cells['cyst'][:4] == ('-', '-', '-', f'{100 * dice:.1f}') and cells['cyst'][-1] == '1'
    assert 'hcc' not in cells and 'mean over organ classes' in cells  # no case holds hcc
    assert 'fnh' in plain(tables[1]) and 'cyst' not in plain(tables[1])


def test_rows_of_other_splits_are_no_fault_and_unknown_cases_are(folder, tmp_path):
    run, groups = tmp_path / 'run', tmp_path / 'groups.csv'
    splits = {'train': ['a', 'c'], 'val': [], 'test': ['b', 'd', 'e']}
    helper.write_run(run, tmp_path / 'store', folder / 'raw', splits)
    helper.write_predictions(run / 'predictions/test', cases=splits['test'])
    groups.write_text('case,subtype\na,x\nb,x\nc,y\nd,y\n')
    summary = evaluate(model=run, groups=groups, resamples=RESAMPLES)
    members = {name: group['cases'] for name, group in summary['groups']['by_name'].items()}
    assert members == {'x': ['b'], 'y': ['d']} and summary['groups']['ungrouped_cases'] == 1
    before = (run / 'summary.json').stat().st_mtime_ns
    groups.write_text('case,subtype\nb,x\nB,y\nq,y\n')
    with pytest.raises(UserError, match=r"groups\.csv row 3: case 'B' is unknown, as are 1 more"):
        evaluate(model=run, groups=groups)
    assert (run / 'summary.json').stat().st_mtime_ns == before


def test_a_faulty_file_ends_an_evaluation_before_anything_is_measured(folder, monkeypatch):
    monkeypatch.setattr('maxquery_jax.report.evaluate.measure_cases', None)  # never reached
    with pytest.raises(UserError, match=r'none\.csv does not exist'):
        evaluate(**_inputs(folder), groups=folder / 'none.csv')
