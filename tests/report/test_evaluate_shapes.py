"""evaluate's surfaces, lesions, Dice of any tumour and counted fallbacks, from files to summary."""

import json
import warnings

import numpy as np
import prediction_helper as helper
import pytest
import surface_distance
from scipy import ndimage
from sklearn import metrics as sk

from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate

INLIER = ('a', 'b', 'c')
SPACING_MM = (0.8, 0.9, 2.5)  # of the helper's affine, in the file's order
VOXEL_ML = 0.8 * 0.9 * 2.5 / 1000
CLASSES = {'liver': 1, 'cyst': 2, 'hcc': 3}


@pytest.fixture
def folders(tmp_path):
    helper.write_predictions(tmp_path / 'predictions')
    helper.write_images(tmp_path / 'raw')
    return tmp_path


def _evaluate(folders, **arguments):
    return evaluate(
        predictions=folders / 'predictions', labels=folders / 'raw' / 'labels', **arguments
    )


def _value(summary, name):
    return summary['metrics'][name]['value']


def _case(summary, case):
    return next(entry for entry in summary['cases'] if entry['case'] == case)


def _canonical(array):
    """The helper's files run against R, A and with S: to [S, A, R]."""
    return np.ascontiguousarray(array[::-1, ::-1].transpose(2, 1, 0))


def _library(prediction, truth, tolerance_mm):
    if not prediction.any() or not truth.any():
        return (0.0 if prediction.any() or truth.any() else None), None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        distances = surface_distance.compute_surface_distances(
            _canonical(truth), _canonical(prediction), SPACING_MM[::-1]
        )
    return (
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm),
        surface_distance.compute_robust_hausdorff(distances, 95),
    )


@pytest.mark.parametrize('tolerance_mm', [2.0, 0.85])
def test_surfaces_equal_the_library(folders, tolerance_mm):
    summary = _evaluate(folders, nsd_tolerance_mm=tolerance_mm)
    for name, i in CLASSES.items():
        values = {
            case: _library(
                helper.make_prediction(case) == i, helper.make_truth(case) == i, tolerance_mm
            )
            for case in helper.CASES
        }
        for case, (nsd, hd95) in values.items():
            assert _case(summary, case)['nsd'][name] == pytest.approx(nsd)
            assert _case(summary, case)['hd95'][name] == pytest.approx(hd95)
        nsd = [values[case][0] for case in INLIER]
        finite = [values[case][1] for case in INLIER if values[case][1] is not None]
        present = [values[c][0] for c in INLIER if (helper.make_truth(c) == i).any()]
        assert _value(summary, f'nsd/{name}/case_mean') == pytest.approx(np.mean(nsd))
        assert _value(summary, f'nsd/{name}/present_mean') == pytest.approx(np.mean(present))
        entry = summary['metrics'][f'hd95/{name}/case_mean']
        assert entry['value'] == pytest.approx(np.mean(finite))
        assert (entry['n'], entry['skipped']) == (len(finite), 3 - len(finite))
        assert summary['counts']['hd95_infinite'][name] == 3 - len(finite)
    means = [_value(summary, f'nsd/{name}/case_mean') for name in ('cyst', 'hcc')]
    assert _value(summary, 'nsd_mean/tumour/case_mean') == pytest.approx(np.mean(means))
    assert summary['policy']['surface']['nsd_tolerance_mm'] == tolerance_mm


def test_a_class_nobody_has_is_undefined_not_infinite(folders):
    for case in helper.CASES:
        prediction = helper.make_prediction(case)
        prediction[prediction == 3] = 0
        path = folders / 'predictions' / f'{case}_seg.nii.gz'
        helper.save(path, prediction, np.uint8)
    summary = _evaluate(folders)
    assert _case(summary, 'a')['nsd']['hcc'] is None and _case(summary, 'a')['hd95']['hcc'] is None
    assert _case(summary, 'b')['nsd']['hcc'] == 0 and _case(summary, 'b')['hd95']['hcc'] is None
    assert summary['counts']['hd95_infinite']['hcc'] == 1  # b alone holds one
    assert summary['metrics']['nsd/hcc/case_mean']['n'] == 1
    assert summary['metrics']['hd95/hcc/case_mean']['n'] == 0
    assert _value(summary, 'hd95/hcc/case_mean') is None


def test_dice_of_any_tumour(folders):
    summary = _evaluate(folders)
    values = []
    for case in helper.CASES:
        p = np.isin(helper.make_prediction(case), (2, 3))
        t = np.isin(helper.make_truth(case), (2, 3, 4))
        values.append(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert _case(summary, case)['dice_any'] == {'tumour': pytest.approx(values[-1])}
    assert _value(summary, 'dice_any/tumour/case_mean') == pytest.approx(np.mean(values[:3]))
    assert _value(summary, 'dice_any/ood/case_mean') == pytest.approx(np.mean(values[3:]))
    assert min(values[3:]) > 0.5  # unknown tumours that are found by the name of a known one count


def _slow_lesions(case, min_ml, overlap):
    """Truth, found and predicted lesions of any tumour, and the predicted ones that are real."""
    prediction = np.isin(helper.make_prediction(case), (2, 3))
    truth = np.isin(helper.make_truth(case), (2, 3, 4))
    numbers = []
    for own, other in ((truth, prediction), (prediction, truth)):
        components, count = ndimage.label(own, np.ones((3, 3, 3)))
        masks = [components == i for i in range(1, count + 1)]
        masks = [mask for mask in masks if mask.sum() * VOXEL_ML >= min_ml]
        numbers += [len(masks), sum(other[mask].mean() >= overlap for mask in masks)]
    return numbers


@pytest.mark.parametrize(('min_ml', 'overlap'), [(0.0, 0.1), (0.01, 0.1), (0.002, 0.97)])
def test_lesions_of_any_tumour(folders, min_ml, overlap):
    summary = _evaluate(folders, min_lesion_ml=min_ml, lesion_overlap=overlap)
    counts = {case: _slow_lesions(case, min_ml, overlap) for case in helper.CASES}
    for case, (truth, found, predicted, matched) in counts.items():
        assert _case(summary, case)['lesions_any']['tumour'] == {
            'truth': truth,
            'found': found,
            'found_any': found,
            'predicted': predicted,
            'matched': matched,
        }
    truth, found, predicted, matched = np.sum([counts[case] for case in INLIER], axis=0)
    assert _value(summary, 'lesion_any/tumour/sensitivity') == pytest.approx(found / truth)
    assert _value(summary, 'lesion_any/tumour/precision') == pytest.approx(matched / predicted)
    false = (predicted - matched) / 3
    assert _value(summary, 'lesion_any/tumour/fp_per_case') == pytest.approx(false)
    truth, found = np.sum([counts[case][:2] for case in ('d', 'e')], axis=0)
    entry = summary['metrics']['lesion_any/ood/sensitivity_any']
    assert (entry['value'], entry['n']) == (pytest.approx(found / truth), 2)
    assert summary['metrics']['lesion/fnh/sensitivity_any'] == entry
    assert summary['policy']['lesion']['min_lesion_ml'] == min_ml
    assert summary['policy']['lesion']['lesion_overlap'] == overlap


def test_lesion_called_by_another_name(folders):
    prediction = helper.make_truth('b')
    prediction[prediction == 3] = 2
    helper.save(folders / 'predictions/b_seg.nii.gz', prediction, np.uint8)
    lesions = _case(_evaluate(folders), 'b')['lesions']
    assert list(lesions['hcc'].values()) == [1, 0, 1, 0, 0]  # found, as another tumour
    assert list(lesions['cyst'].values()) == [0, 0, 0, 1, 0]  # a false positive


def test_fallbacks_are_counted_by_kind_and_can_be_left_out(folders, capsys):
    for case, region, value in (('a', 'organ', 90.0), ('d', 'volume', -90.0), ('e', None, -5.0)):
        path = folders / 'predictions' / f'{case}.json'
        record = json.loads(path.read_text())
        record |= {'case_ood_score': value, 'case_ood_fallback': region}
        path.write_text(json.dumps(record))
    summary = _evaluate(folders)
    assert summary['counts']['case_score_fallbacks'] == 2
    assert summary['counts']['case_score_fallbacks_by_kind'] == {
        'inlier': {'organ': 1, 'volume': 0},
        'ood': {'organ': 0, 'volume': 1},
    }
    scores = [90.0, helper.case_score('b'), helper.case_score('c'), -90.0, -5.0]
    is_ood = [False, False, False, True, True]
    entry = summary['metrics']['ood_case/query_logit/auc']
    assert (entry['value'], entry['n']) == (pytest.approx(sk.roc_auc_score(is_ood, scores)), 5)
    rest = [1, 2, 4]
    auc = sk.roc_auc_score([is_ood[i] for i in rest], [scores[i] for i in rest])
    entry = summary['metrics']['ood_case/query_logit/auc_without_fallback']
    assert (entry['value'], entry['n'], entry['skipped']) == (pytest.approx(auc), 3, 2)
    assert auc != pytest.approx(sk.roc_auc_score(is_ood, scores))
    shown = capsys.readouterr().out
    assert 'fell back: 1 inlier (1 organ, 0 volume), 1 OOD (0 organ, 1 volume)' in shown


def test_no_case_by_the_rule_has_no_auc(folders):
    for case in helper.CASES:
        path = folders / 'predictions' / f'{case}.json'
        record = json.loads(path.read_text()) | {'case_ood_fallback': 'organ'}
        path.write_text(json.dumps(record))
    entry = _evaluate(folders)['metrics']['ood_case/query_logit/auc_without_fallback']
    assert entry == {'value': None, 'ci95': [None, None], 'n': 0, 'skipped': 5}


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('nsd_tolerance_mm', -1.0),
        ('nsd_tolerance_mm', float('nan')),
        ('min_lesion_ml', float('inf')),
        ('lesion_overlap', 1.1),
    ],
)
def test_wrong_settings(folders, name, value):
    with pytest.raises(UserError, match=name):
        _evaluate(folders, **{name: value})


def test_volumes_without_any_foreground(tmp_path):
    """Nothing predicted, nothing there: all is undefined, no metric fails."""
    helper.write_predictions(tmp_path / 'predictions')
    for case in helper.CASES:
        nothing = np.zeros(helper.SHAPE, np.uint8)
        helper.save(tmp_path / 'predictions' / f'{case}_seg.nii.gz', nothing, np.uint8)
        helper.save(tmp_path / 'raw' / 'labels' / f'{case}.nii.gz', nothing, np.uint8)
    summary = _evaluate(tmp_path)
    for name in ('dice/liver', 'nsd/cyst', 'hd95/hcc', 'dice_any/tumour', 'nsd_mean/tumour'):
        assert _value(summary, f'{name}/case_mean') is None
    assert _value(summary, 'lesion/cyst/sensitivity') is None
    assert _value(summary, 'lesion/cyst/fp_per_case') == 0
    assert summary['counts']['hd95_infinite'] == {'liver': 0, 'cyst': 0, 'hcc': 0}
