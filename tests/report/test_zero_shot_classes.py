"""Classes that no training label showed and that are predicted all the same, and OOD by class."""

import json

import numpy as np
import prediction_helper as helper
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from maxquery_jax.errors import UserError
from maxquery_jax.report.case_files import read_segmentation
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.predictions import open_predictions
from maxquery_jax.report.summary import cases_csv
from maxquery_jax.report.tables import plain, summary_tables

LABELS = [
    *helper.LABELS[:3],
    {'id': 3, 'name': 'hcc', 'role': 'tumour', 'predicted': False},  # says so, and is measured
    {'id': 4, 'name': 'fnh', 'role': 'ood', 'predicted': True},
    {'id': 5, 'name': 'met', 'role': 'ood'},
]
CASES = {'a': (2,), 'b': (3,), 'c': (4,), 'd': (4, 5), 'e': (5,)}
"""Case to the classes of its tumours; fnh (4) is predicted, met (5) is not."""
SCORES = ('tumour_logit', 'query_logit')


def make_truth(case):
    truth = np.zeros(helper.SHAPE, np.uint8)
    truth[2:12, 2:10, 1:7] = 1
    for place, tumour in zip((3, 8), CASES[case], strict=False):
        truth[place : place + 3, 3:7, 2:5] = tumour
    return truth


def make_prediction(case):
    """The truth, noisily; met is called fnh in part, and case b holds a false fnh."""
    truth, rng = make_truth(case), np.random.default_rng(ord(case))
    prediction = np.where(truth == 5, rng.choice([1, 4], truth.shape), truth).astype(np.uint8)
    wrong = rng.random(truth.shape) < 0.05
    prediction[wrong] = rng.integers(0, 4, truth.shape)[wrong]
    if case == 'b':
        prediction[9:11, 7:9, 2:4] = 4
    return prediction


def make_score(case, name):
    """A score in which fnh stands out more than met."""
    truth, rng = make_truth(case), np.random.default_rng(ord(case) + len(name))
    score = rng.normal(size=truth.shape) + 1.5 * (truth == 4) + 0.7 * (truth == 5)
    return score.astype(np.float16).astype(np.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('zero_shot')
    for case in CASES:
        helper.save(path / 'labels' / f'{case}.nii.gz', make_truth(case), np.uint8)
        helper.save(path / 'out' / f'{case}_seg.nii.gz', make_prediction(case), np.uint8)
        for name, ending in zip(SCORES, ('', '-query_logit'), strict=True):
            array = make_score(case, name)
            helper.save(path / 'out' / f'{case}_ood{ending}.nii.gz', array, np.float32)
        label_map = {str(i): i for i in range(6)}
        info = {'labels': LABELS, 'label_map': label_map, 'primary_score': SCORES[0]}
        (path / 'out' / f'{case}.json').write_text(json.dumps(info))
    return path


@pytest.fixture(scope='module')
def summary(folder):
    return evaluate(predictions=folder / 'out', labels=folder / 'labels')


def _dice(case, i):
    prediction, truth = make_prediction(case) == i, make_truth(case) == i
    total = prediction.sum() + truth.sum()
    return 2 * (prediction & truth).sum() / total if total else None


def test_dice_is_over_all_cases_and_of_known_classes_over_inlier_cases(summary):
    metrics = summary['metrics']
    values = [_dice(case, 4) for case in CASES]
    defined = [value for value in values if value is not None]
    assert len(defined) == 4  # not in a
    entry = metrics['dice/fnh/case_mean']
    assert entry['value'] == pytest.approx(np.mean(defined)) and entry['n'] == 4
    present = metrics['dice/fnh/present_mean']
    assert present['value'] == pytest.approx(np.mean([_dice('c', 4), _dice('d', 4)]))
    assert metrics['dice_mean/ood/present_mean'] == present  # the only such class
    known = metrics['dice/liver/case_mean']
    assert known['value'] == pytest.approx(np.mean([_dice('a', 1), _dice('b', 1)]))
    assert metrics['nsd/fnh/present_mean']['n'] == 2 and metrics['hd95/fnh/case_mean']['n'] == 2
    assert 'dice/met/case_mean' not in metrics
    assert summary['counts']['hd95_infinite']['fnh'] == 2  # false ones in b and in e


def test_any_tumour_counts_zero_shot_predictions(summary):
    tumours = {}
    for case in CASES:
        prediction, truth = make_prediction(case), make_truth(case)
        prediction, truth = np.isin(prediction, (2, 3, 4)), np.isin(truth, (2, 3, 4, 5))
        tumours[case] = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    for role, cases in (('tumour', 'ab'), ('ood', 'cde')):
        value = summary['metrics'][f'dice_any/{role}/case_mean']['value']
        assert value == pytest.approx(np.mean([tumours[case] for case in cases]))


def test_lesions_of_a_zero_shot_class_can_be_called_by_its_name(summary):
    metrics = summary['metrics']
    by_case = {case['case']: case['lesions'] for case in summary['cases']}
    assert [by_case[case]['fnh']['truth'] for case in CASES] == [0, 0, 1, 1, 0]
    assert [by_case[case]['fnh']['found'] for case in 'cd'] == [1, 1]
    assert by_case['b']['fnh']['predicted'] == 1 and by_case['b']['fnh']['matched'] == 0
    assert metrics['lesion/fnh/sensitivity']['value'] == 1
    assert metrics['lesion/fnh/fp_per_case']['value'] >= 1 / 5
    assert 'lesion/met/sensitivity' not in metrics
    assert metrics['lesion/met/sensitivity_any']['value'] == 1  # called fnh
    # Pooled: a met that is called fnh was found as some unknown tumour.
    assert metrics['lesion_any/ood/sensitivity']['value'] == 1


@pytest.mark.parametrize('score', SCORES)
def test_each_ood_class_is_ranked_without_the_others(summary, score):
    for i, name, holders in ((4, 'fnh', 'cd'), (5, 'met', 'de')):
        found = summary['ood_by_class'][name]
        assert found['cases'] == 2 and list(found['scores']) == list(SCORES)
        expected = {'auroc': [], 'aupr': []}
        for case in holders:
            truth, values = make_truth(case), make_score(case, score)
            kept = (truth == i) | (truth == 1) | np.isin(truth, (2, 3))
            expected['auroc'].append(roc_auc_score(truth[kept] == i, values[kept]))
            expected['aupr'].append(average_precision_score(truth[kept] == i, values[kept]))
        for metric, numbers in expected.items():
            entry = found['scores'][score]['organ'][metric]
            assert entry['value'] == pytest.approx(np.mean(numbers)), (name, metric)
            assert entry['n'] == 2 and entry['skipped'] == 0
            assert min(numbers) - 1e-9 <= entry['ci95'][0] <= entry['ci95'][1]
    mean = summary['ood_class_mean'][score]['organ']['auroc']
    classes = summary['ood_by_class'].values()
    parts = [found['scores'][score]['organ']['auroc']['value'] for found in classes]
    assert mean['value'] == pytest.approx(np.mean(parts)) and mean['n'] == 3


def test_cases_and_tables_say_which_classes(summary):
    held = {case['case']: list(case['ood_labels']) for case in summary['cases']}
    assert held == {'a': [], 'b': [], 'c': ['fnh'], 'd': ['fnh', 'met'], 'e': ['met']}
    case = summary['cases'][3]
    assert case['ood_labels'] == {'fnh': 36, 'met': 36} and case['ood_voxels'] == 72
    assert summary['labels'] == LABELS
    assert 'ood_labels/met' in cases_csv(summary).splitlines()[0].split(',')
    tables = {table.title.split(',')[0]: table for table in summary_tables(summary)}
    by_class = tables['OOD classes over the cases that hold them']
    assert [row[0] for row in by_class.rows[:3]] == ['fnh', 'met', 'mean of 2 classes']
    assert by_class.rows[0][-1] == '2' and by_class.rows[1][6] == '-'  # met has no Dice
    assert 'OOD classes over the cases' in plain(by_class)
    rows = {row[0]: row for row in tables['Dice on inlier cases'].rows}
    assert rows['fnh'][1] == 'zero-shot' and 'mean over zero-shot classes' in rows


def test_a_truth_table_keeps_what_is_predicted(folder, tmp_path):
    """A label map with the classes of the truth, in which nothing is marked as predicted."""
    labels = [{key: label[key] for key in ('id', 'name', 'role')} for label in LABELS]

    def opened(labels):
        path = tmp_path / 'map.json'
        label_map = {str(i): i for i in range(len(labels))}
        path.write_text(json.dumps({'label_map': label_map, 'labels': labels}))
        return open_predictions(folder / 'out', labels=folder / 'labels', label_map=path)

    assert opened(labels).table.zero_shot_ids == (4,)
    # A class that a text brought is not in the table of the truth.
    short = opened(labels[:4])
    assert short.table.names[4:] == ('fnh',) and short.table.zero_shot_ids == (4,)
    segmentation, _ = read_segmentation(short.cases[2], short.table)
    assert (segmentation == 4).any()
    with pytest.raises(UserError, match='class 4 is other, the predictions call it fnh'):
        opened([*labels[:4], {'id': 4, 'name': 'other', 'role': 'ood'}])


def test_ids_that_are_not_predicted_stay_errors(folder, tmp_path):
    found = open_predictions(folder / 'out', labels=folder / 'labels')
    path = tmp_path / 'x_seg.nii.gz'
    helper.save(path, make_truth('e'), np.uint8)
    case = found.cases[0].__class__('x', path, {}, {})
    with pytest.raises(UserError, match=r'label ids \[5\]'):
        read_segmentation(case, found.table)
