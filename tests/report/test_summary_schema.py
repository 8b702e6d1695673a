"""summary.json is what docs/summary_schema.md says."""

import json
import pathlib
import re

import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report import summary as summary_lib
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.measure import measure_cases
from maxquery_jax.report.predictions import open_predictions

DOCUMENT = pathlib.Path(__file__).parents[2] / 'docs' / 'summary_schema.md'
SCORES = ('query_logit', 'category_logit')
PATTERNS = {
    r'dice/(liver|cyst|hcc)/(case_mean|present_mean|pooled)': 9,
    r'dice_mean/(organ|tumour)/(case_mean|present_mean|pooled)': 6,
    r'ood/(query_logit|category_logit)/(organ|whole)/(case_mean|pooled)/(auroc|aupr|fpr95)': 24,
    r'ood_case/(query_logit|category_logit)/auc': 2,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('schema')
    helper.write_predictions(path / 'predictions', SCORES)
    helper.write_images(path / 'raw')
    evaluate(predictions=path / 'predictions', labels=path / 'raw' / 'labels')
    return path


@pytest.fixture(scope='module')
def summary(folder):
    def refuse(token):
        raise AssertionError(f'{token} is not strict JSON')

    text = (folder / 'predictions' / 'summary.json').read_text()
    return json.loads(text, parse_constant=refuse)


def _documented(section):
    """First column of the tables of a section."""
    text = DOCUMENT.read_text().split(f'\n## {section}\n')[1].split('\n## ')[0]
    return set(re.findall(r'^\| `([^`]+)`', text, re.MULTILINE))


def test_top_level(summary):
    assert set(summary) == _documented('Top level')
    assert (summary['format'], summary['version']) == ('maxquery_jax/summary', 1)
    assert summary['labels'] == helper.LABELS
    assert summary['scores'] == list(SCORES)
    assert set(summary['headline']) <= set(summary['metrics'])
    assert summary['counts'] == {
        'cases': 5,
        'inlier_cases': 3,
        'ood_cases': 2,
        'case_score_fallbacks': 0,
        'rounded_voxels': {'query_logit': 0, 'category_logit': 0},
    }
    assert DOCUMENT.read_text().startswith(f'# summary.json, version {summary_lib.VERSION}\n')


def test_metric_names_and_estimates(summary):
    for pattern, count in PATTERNS.items():
        assert sum(bool(re.fullmatch(pattern, name)) for name in summary['metrics']) == count
    assert len(summary['metrics']) == sum(PATTERNS.values())
    for name, entry in summary['metrics'].items():
        assert set(entry) == _documented('Estimates'), name
        assert 0 <= entry['value'] <= 1 and 0 < entry['n'] <= 5
        low, high = entry['ci95']
        assert (low is None) == (high is None)
        assert low is None or 0 <= low <= entry['value'] <= high <= 1, name
    forms = {re.sub(r'[A-Z]+', 'X', name) for name in _documented('Metric names')}
    assert forms == {'dice/X/X', 'dice_mean/X/X', 'ood/X/X/X/X', 'ood_case/X/auc'}


def test_policy_and_cases(summary):
    text = DOCUMENT.read_text()
    for part in summary['policy']:
        assert f'`{part}`' in text
    assert summary['policy']['ci95']['resamples'] == 1000
    assert [case['case'] for case in summary['cases']] == list(helper.CASES)
    for case in summary['cases']:
        assert set(case) == _documented('Cases')
        assert set(case['dice']) == {'liver', 'cyst', 'hcc'}
        assert set(case['case_score']) == set(SCORES)
        assert case['is_ood'] == (case['ood_voxels'] > 0)


def test_parts_measured_apart_give_the_same_summary(folder):
    """Cases can be measured in any order and on any host."""
    found = open_predictions(folder / 'predictions', labels=folder / 'raw' / 'labels')
    measured = measure_cases(found)
    whole = summary_lib.summarise(measured, found.table, found.scores)
    parts = [*measured[3:], *measured[:3]]
    assert summary_lib.summarise(parts, found.table, found.scores) == whole
    with pytest.raises(ValueError, match='case a was measured twice'):
        summary_lib.summarise([*measured, measured[0]], found.table, found.scores)


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / 'summary.json'
    with pytest.raises(UserError, match=r'does not exist; run launch\.evaluate first'):
        summary_lib.read_summary(path)
    for content, word in (
        ({'format': 'x', 'version': 1}, "'x'"),
        ({'format': summary_lib.FORMAT, 'version': 2}, 'version 2'),
        ([], 'no JSON object'),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=word):
            summary_lib.read_summary(path)
