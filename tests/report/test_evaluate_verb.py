"""evaluate from files to summary.json, in both modes, against scikit-learn on the same arrays."""

import csv
import json
import pathlib

import nibabel as nib
import numpy as np
import prediction_helper as helper
import pytest
import scipy.ndimage
from sklearn import metrics as sk

from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.summary import read_summary
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
OOD_CASES = ('d', 'e')
SCORES = ('query_logit', 'category_softmax')


@pytest.fixture
def folders(tmp_path):
    helper.write_predictions(tmp_path / 'predictions', SCORES)
    helper.write_images(tmp_path / 'raw')
    return tmp_path


def _evaluate(folders, **arguments):
    return evaluate(
        predictions=folders / 'predictions', labels=folders / 'raw' / 'labels', **arguments
    )


def _value(summary, name):
    return summary['metrics'][name]['value']


def _sklearn(score, positive):
    fpr, tpr, _ = sk.roc_curve(positive, score, drop_intermediate=False)
    return {
        'auroc': sk.roc_auc_score(positive, score),
        'aupr': sk.average_precision_score(positive, score),
        'fpr95': fpr[np.argmax(tpr >= 0.95)],
    }


def _region(case, region):
    truth = helper.make_truth(case)
    if region == 'interior':
        return scipy.ndimage.binary_erosion(truth > 0, border_value=1)
    is_organ = region in ('organ', 'host')  # fnh is no name of Table 8: no host is known
    return truth > 0 if is_organ else np.ones(truth.shape, bool)


@pytest.mark.parametrize('region', ['organ', 'host', 'interior', 'whole'])
@pytest.mark.parametrize('score', SCORES)
def test_voxel_metrics_equal_sklearn(folders, score, region):
    summary = _evaluate(folders)
    per_case, pooled_score, pooled_positive = {}, [], []
    for case in helper.CASES:
        inside = _region(case, region)
        values = helper.make_score(case, score)[inside]
        positive = (helper.make_truth(case) == 4)[inside]
        pooled_score.append(values)
        pooled_positive.append(positive)
        if case in OOD_CASES:
            per_case[case] = _sklearn(values, positive)
    pooled = _sklearn(np.concatenate(pooled_score), np.concatenate(pooled_positive))
    records = {entry['case']: entry for entry in summary['cases']}
    for metric in ('auroc', 'aupr', 'fpr95'):
        prefix = f'ood/{score}/{region}'
        mean = np.mean([values[metric] for values in per_case.values()])
        assert _value(summary, f'{prefix}/case_mean/{metric}') == pytest.approx(mean)
        assert _value(summary, f'{prefix}/pooled/{metric}') == pytest.approx(pooled[metric])
        for case, values in per_case.items():
            assert records[case]['ood'][score][region][metric] == pytest.approx(values[metric])
        assert records['a']['ood'][score][region][metric] is None
        entry = summary['metrics'][f'{prefix}/case_mean/{metric}']
        assert (entry['n'], entry['skipped']) == (2, 3)
        low, high = entry['ci95']
        assert low <= entry['value'] <= high
        assert summary['metrics'][f'{prefix}/pooled/{metric}']['n'] == 5


def test_case_auc_uses_the_stored_score_and_measures_the_others(folders):
    record = folders / 'predictions' / 'a.json'
    info = json.loads(record.read_text())
    record.write_text(json.dumps(info | {'case_ood_score': 50.0, 'case_ood_fallback': 'organ'}))
    summary = _evaluate(folders)
    is_ood = [case in OOD_CASES for case in helper.CASES]
    for score in SCORES:
        values = [helper.case_score(case, score) for case in helper.CASES]
        if score == 'query_logit':
            values[0] = 50.0
        entry = summary['metrics'][f'ood_case/{score}/auc']
        assert entry['value'] == pytest.approx(sk.roc_auc_score(is_ood, values))
        assert entry['n'] == 5
        for case, value in zip(summary['cases'], values, strict=True):
            assert case['case_score'][score] == pytest.approx(value, rel=1e-5)
    assert summary['cases'][0]['case_score_fallback'] == 'organ'
    assert summary['counts']['case_score_fallbacks'] == 1


def test_dice_is_of_inlier_cases_and_averaged_over_tumour_types(folders):
    summary = _evaluate(folders)
    values = {name: [] for name in ('liver', 'cyst', 'hcc')}
    for case in ('a', 'b', 'c'):
        truth, prediction = helper.make_truth(case), helper.make_prediction(case)
        for i, name in enumerate(values, start=1):
            p, t = prediction == i, truth == i
            values[name].append(2 * (p & t).sum() / (p.sum() + t.sum()))
    means = {name: np.mean(numbers) for name, numbers in values.items()}
    for name, mean in means.items():
        assert _value(summary, f'dice/{name}/case_mean') == pytest.approx(mean)
    assert _value(summary, 'dice/hcc/present_mean') == pytest.approx(values['hcc'][1])
    assert summary['metrics']['dice/hcc/present_mean']['ci95'] == [None, None]  # one case only
    tumour = (means['cyst'] + means['hcc']) / 2
    assert _value(summary, 'dice_mean/tumour/case_mean') == pytest.approx(tumour)
    assert _value(summary, 'dice_mean/organ/case_mean') == pytest.approx(means['liver'])
    assert summary['metrics']['dice_mean/tumour/case_mean']['n'] == 3


def test_dilation_reaches_the_region_and_is_recorded(folders):
    far = _evaluate(folders, dilate_mm=1000.0)
    near = _evaluate(folders, dilate_mm=0.0)
    organ, whole = (f'ood/query_logit/{region}/pooled/aupr' for region in ('organ', 'whole'))
    assert _value(far, organ) == _value(far, whole) == _value(near, whole)
    assert _value(near, organ) > _value(near, whole)
    assert far['policy']['ood']['dilate_mm'] == 1000.0


def test_files_hold_what_is_returned(folders, capsys):
    summary = _evaluate(folders, output=folders / 'out')
    assert read_summary(folders / 'out' / 'summary.json') == summary
    assert [path.name for path in sorted((folders / 'out').iterdir())] == [
        'cases.csv',
        'summary.json',
    ]
    rows = list(csv.DictReader((folders / 'out' / 'cases.csv').open()))
    assert [row['case'] for row in rows] == list(helper.CASES)
    assert rows[0]['ood/query_logit/organ/auroc'] == ''
    expected = summary['cases'][3]['ood']['query_logit']['organ']['auroc']
    assert float(rows[3]['ood/query_logit/organ/auroc']) == expected
    shown = capsys.readouterr().out
    assert '5 cases (3 inlier, 2 OOD)' in shown
    assert '\x1b' not in shown and '│' not in shown  # plain when nobody watches
    value = summary['metrics']['ood_case/query_logit/auc']['value']
    assert f'{100 * value:.1f}' in shown


def test_same_seed_same_summary(folders):
    first, other = _evaluate(folders), _evaluate(folders, seed=1)
    assert _evaluate(folders) == first
    values, intervals = (
        [
            {name: entry[key] for name, entry in summary['metrics'].items()}
            for summary in (first, other)
        ]
        for key in ('value', 'ci95')
    )
    assert values[0] == values[1]
    assert intervals[0] != intervals[1]


def test_a_run_is_scored_against_its_stores_source(folders):
    run = folders / 'run'
    helper.write_run(run, folders / 'store', folders / 'raw')
    helper.write_predictions(run / 'predictions' / 'test', SCORES)
    summary = evaluate(model=run)
    expected = _evaluate(folders)
    assert summary['metrics'] == expected['metrics']
    assert summary['name'] == 'run, test'
    assert read_summary(run / 'summary.json') == summary
    (folders / 'raw' / 'labels').rename(folders / 'moved')
    assert evaluate(model=run, labels=folders / 'moved')['metrics'] == expected['metrics']
    with pytest.raises(UserError, match=r'labels/a\.nii\.gz'):
        evaluate(model=run)


def test_a_run_needs_every_case_of_the_split(folders):
    run = folders / 'run'
    splits = {'train': [], 'val': ['a'], 'test': ['b', 'c', 'd', 'e']}
    helper.write_run(run, folders / 'store', folders / 'raw', splits)
    helper.write_predictions(run / 'predictions' / 'test', cases=('b', 'c', 'd'))
    with pytest.raises(UserError, match=r'no prediction of e \(1 of 4'):
        evaluate(model=run)
    helper.write_predictions(run / 'predictions' / 'val', cases=('a',))
    summary = evaluate(model=run, split='val')
    assert read_summary(run / 'predictions' / 'val' / 'summary.json') == summary
    assert not (run / 'summary.json').exists()
    with pytest.raises(UserError, match=r"'train'.*has no cases; it has val, test"):
        evaluate(model=run, split='train')


def test_label_map_file_replaces_the_predictions_own(folders):
    target = folders / 'map.json'
    target.write_text(json.dumps({'1': 1, '5': 2, '6': 3, '300': 3}))
    summary = _evaluate(folders, label_map=target)
    assert summary['counts']['ood_cases'] == 0
    assert _value(summary, 'ood_case/query_logit/auc') is None
    assert _value(summary, 'ood/query_logit/organ/pooled/auroc') is None
    helper.write_run(folders / 'run', folders / 'store', folders / 'raw')
    expected = _evaluate(folders)['metrics']
    assert _evaluate(folders, label_map=folders / 'store' / 'manifest.json')['metrics'] == expected


def test_only_ood_cases_leave_dice_undefined(tmp_path):
    helper.write_predictions(tmp_path / 'predictions', cases=OOD_CASES)
    helper.write_images(tmp_path / 'raw')
    summary = _evaluate(tmp_path)
    assert summary['metrics']['dice/liver/case_mean'] == {
        'value': None,
        'ci95': [None, None],
        'n': 0,
        'skipped': 0,
    }
    assert _value(summary, 'ood/query_logit/organ/case_mean/auroc') > 0.5


def _break(folders, kind):
    predictions = folders / 'predictions'
    record = predictions / 'c.json'
    info = json.loads(record.read_text())
    changes = {
        'labels_differ': {'labels': info['labels'][:4]},
        'no_label_map': {'label_map': None},
        'case_score': {'case_ood_score': 'high'},
    }
    if kind == 'no_record':
        record.unlink()
    elif kind == 'damaged_record':
        record.write_text('{')
    elif kind in changes:
        record.write_text(json.dumps(info | changes[kind]))
    elif kind == 'shape':
        raw = helper.RAW[helper.make_truth('c')]
        helper.save(folders / 'raw/labels/c.nii.gz', raw[:, :, :-1], np.int16)
    elif kind == 'affine':
        moved = helper.AFFINE.copy()
        moved[0, 3] += 0.5
        raw = helper.RAW[helper.make_truth('c')]
        helper.save(folders / 'raw/labels/c.nii.gz', raw, np.int16, moved)
    elif kind == 'unknown_id':
        raw = helper.RAW[helper.make_truth('c')]
        raw[0, 0, :3] = 77
        helper.save(folders / 'raw/labels/c.nii.gz', raw, np.int16)
    elif kind == 'predicted_ood_id':
        helper.save(predictions / 'c_seg.nii.gz', helper.make_truth('d'), np.uint8)
    elif kind == 'nan_score':
        score = helper.make_score('c')
        score[1, 1, 1] = np.nan
        helper.save(predictions / 'c_ood.nii.gz', score, np.float32)
    elif kind == 'huge_score':
        helper.save(predictions / 'c_ood.nii.gz', helper.make_score('c') * 1e5, np.float32)
    elif kind == 'truncated':
        path = predictions / 'c_ood.nii.gz'
        path.write_bytes(path.read_bytes()[:500])
    elif kind == 'no_label':
        (folders / 'raw/labels/c.nii.gz').unlink()
    elif kind == 'score_missing':
        (predictions / 'c_ood-category_softmax.nii.gz').unlink()


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('no_record', [r'c\.json does not exist']),
        ('damaged_record', [r'c\.json is not JSON']),
        ('labels_differ', [r'c\.json and a\.json differ', "'labels'"]),
        ('no_label_map', [r'c\.json and a\.json differ', "'label_map'"]),
        ('case_score', [r'c\.json', 'finite number', "'high'"]),
        ('shape', [r'c_seg\.nii\.gz and .*labels/c\.nii\.gz', r'\(14, 12, 8\) and \(14, 12, 7\)']),
        ('affine', [r'c_seg\.nii\.gz and .*labels/c\.nii\.gz', '0.5 mm apart']),
        ('unknown_id', [r'labels/c\.nii\.gz', r'3 voxels have label ids \[77\]', '--label_map']),
        ('predicted_ood_id', [r'c_seg\.nii\.gz', r'label ids \[4\]', 'predict again']),
        ('nan_score', [r'c_ood\.nii\.gz', '1 NaN']),
        ('huge_score', [r'c_ood\.nii\.gz', 'beyond the range of float16']),
        ('truncated', [r'c_ood\.nii\.gz', 'truncated']),
        ('no_label', ['no file for case c', r'expected c\.nii\.gz']),
        ('score_missing', ['only one of a and c has the score category_softmax']),
    ],
)
def test_bad_input_is_named_in_one_line_and_writes_nothing(folders, kind, words):
    _break(folders, kind)
    with pytest.raises(UserError) as caught:
        _evaluate(folders, output=folders / 'out')
    for word in words:
        caught.match(word)
    assert '\n' not in str(caught.value)
    assert not (folders / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({}, 'either --predictions'),
        ({'predictions': 'x', 'model': 'y'}, 'either --predictions'),
        ({'predictions': 'x'}, 'needs --labels'),
        ({'predictions': 'nowhere', 'labels': 'y'}, 'nowhere is not a folder'),
        ({'model': 'nowhere'}, r'nowhere/manifest\.json does not exist'),
        ({'model': 'x', 'label_map': 'y'}, '--label_map goes with'),
        ({'predictions': 'x', 'labels': 'y', 'dilate_mm': -1.0}, 'dilate_mm'),
        ({'predictions': 'x', 'labels': 'y', 'dilate_mm': float('nan')}, 'dilate_mm'),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        evaluate(**arguments)


def test_empty_folder_and_stray_labels(folders, tmp_path, capsys):
    helper.save(folders / 'raw/labels/z.nii.gz', helper.make_truth('a'), np.int16)
    _evaluate(folders)
    assert 'note: 1 label files have no prediction' in capsys.readouterr().out
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'holds no X_seg\.nii\.gz'):
        evaluate(predictions=tmp_path / 'empty', labels=folders / 'raw/labels')


def test_axis_order_of_the_files_does_not_matter(folders):
    """The same voxels stored along other axes give the same numbers."""
    expected = _evaluate(folders)
    for path in (
        *(folders / 'predictions').glob('*.nii.gz'),
        *(folders / 'raw/labels').glob('*.nii.gz'),
    ):
        image = nib.load(path)
        data = np.asanyarray(image.dataobj).transpose(2, 0, 1)
        helper.save(path, data, data.dtype, image.affine[:, [2, 0, 1, 3]])
    assert _evaluate(folders)['metrics'] == expected['metrics']


@pytest.mark.integration
def test_the_command(folders, python):
    command = [python, '-m', 'launch.evaluate', f'--predictions={folders / "predictions"}']
    done = processes.run(
        [*command, f'--labels={folders / "raw/labels"}'],
    )
    assert done.returncode == 0, done.stderr
    assert 'OOD localisation' in done.stdout
    assert (folders / 'predictions' / 'summary.json').is_file()
    wrong = processes.run(command, cwd=ROOT)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        'error: --predictions needs --labels, the folder with the truth of every case'
    ]


def test_evaluation_needs_no_jax(python):
    code = (
        'import sys, maxquery_jax.report.build, maxquery_jax.report.evaluate; '
        "sys.exit('jax' in sys.modules)"
    )
    assert processes.run([python, '-c', code], cwd=ROOT).returncode == 0
