"""summary.json is what docs/summary_schema.md says."""

import json
import math
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
    r'ood/(query_logit|category_logit)/(organ|host|interior|whole)/'
    r'(case_mean|pooled)/(auroc|aupr|fpr95)': 48,
    r'ood_case/(query_logit|category_logit)/auc(_without_fallback)?': 4,
    r'dice_any/(tumour|ood)/(case_mean|present_mean|pooled)': 6,
    r'nsd/(liver|cyst|hcc)/(case_mean|present_mean)': 6,
    r'nsd_mean/(organ|tumour)/(case_mean|present_mean)': 4,
    r'hd95/(liver|cyst|hcc)/case_mean': 3,
    r'hd95_mean/(organ|tumour)/case_mean': 2,
    r'lesion/(cyst|hcc)/(sensitivity|sensitivity_any|precision|f1|fp_per_case)': 10,
    r'lesion/fnh/sensitivity_any': 1,
    r'lesion_any/tumour/(sensitivity|precision|f1|fp_per_case)': 4,
    r'lesion_any/ood/sensitivity_any': 1,
}
UNBOUNDED = ('hd95', 'fp_per_case')


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
    """First column of the tables of a section; a cell may name several."""
    text = DOCUMENT.read_text().split(f'\n## {section}\n')[1].split('\n## ')[0]
    cells = re.findall(r'^\| (`[^|]+) \|', text, re.MULTILINE)
    return {name for cell in cells for name in re.findall('`([^`]+)`', cell)}


def test_top_level(summary):
    assert set(summary) == _documented('Top level')
    assert (summary['format'], summary['version']) == ('maxquery_jax/summary', 2)
    assert summary['labels'] == helper.LABELS
    assert summary['scores'] == list(SCORES)
    assert set(summary['headline']) <= set(summary['metrics'])
    assert summary['counts'] == {
        'cases': 5,
        'inlier_cases': 3,
        'ood_cases': 2,
        'case_score_fallbacks': 0,
        'case_score_fallbacks_by_kind': {
            'inlier': {'organ': 0, 'volume': 0},
            'ood': {'organ': 0, 'volume': 0},
        },
        'hd95_infinite': {'liver': 0, 'cyst': 1, 'hcc': 2},
        'rounded_voxels': {'query_logit': 0, 'category_logit': 0},
    }
    assert set(summary['counts']) == _documented('Counts')
    assert DOCUMENT.read_text().startswith(f'# summary.json, version {summary_lib.VERSION}\n')


def test_metric_names_and_estimates(summary):
    for pattern, count in PATTERNS.items():
        assert sum(bool(re.fullmatch(pattern, name)) for name in summary['metrics']) == count
    assert len(summary['metrics']) == sum(PATTERNS.values())
    for name, entry in summary['metrics'].items():
        assert set(entry) == _documented('Estimates'), name
        limit = math.inf if any(part in name for part in UNBOUNDED) else 1
        assert 0 <= entry['value'] <= limit and 0 < entry['n'] <= 5
        low, high = entry['ci95']
        assert (low is None) == (high is None)
        assert low is None or 0 <= low <= entry['value'] <= high <= limit, name


def test_every_metric_name_is_documented(summary):
    words = {
        'CLASS': 'liver|cyst|hcc|fnh',
        'ROLE': 'organ|tumour',
        'SUMMARY': 'case_mean|present_mean|pooled',
        'RATE': 'sensitivity|sensitivity_any|precision|f1|fp_per_case',
        'SCORE': '|'.join(SCORES),
        'REGION': 'organ|host|interior|whole',
        'POOLING': 'case_mean|pooled',
        'METRIC': 'auroc|aupr|fpr95',
    }
    forms = _documented('Metric names')
    used = set()
    for name in summary['metrics']:
        fitting = {
            form
            for form in forms
            if re.fullmatch(re.sub(r'[A-Z]+', lambda m: f'({words[m[0]]})', form), name)
        }
        assert fitting, name
        used |= fitting
    assert used == forms


def test_policy_and_cases(summary):
    text = DOCUMENT.read_text()
    for part in summary['policy']:
        assert f'`{part}`' in text
    assert summary['policy']['ci95']['resamples'] == 1000
    assert [case['case'] for case in summary['cases']] == list(helper.CASES)
    for case in summary['cases']:
        assert set(case) == _documented('Cases')
        for key in ('truth_voxels', 'dice', 'nsd', 'hd95'):
            assert list(case[key]) == ['liver', 'cyst', 'hcc'], key
        assert list(case['dice_any']) == ['tumour']
        assert list(case['lesions']) == ['cyst', 'hcc', 'fnh']
        assert list(case['lesions_any']) == ['tumour', 'ood']
        for counts in (*case['lesions'].values(), *case['lesions_any'].values()):
            assert list(counts) == ['truth', 'found', 'found_any', 'predicted', 'matched']
            assert all(f'`{key}`' in text for key in counts)
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
        ({'format': summary_lib.FORMAT, 'version': 1}, 'version 1'),
        ([], 'no JSON object'),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=word):
            summary_lib.read_summary(path)
