"""An evaluation that hosts share out: the merged summary is that of one process, bit for bit."""

import json
import pathlib

import numpy as np
import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate, evaluate_part
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
SCORES = ('query_logit', 'category_softmax')
RESAMPLES = 30


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Predictions and truth, and what one process makes of them."""
    folder = tmp_path_factory.mktemp('whole')
    _write(folder)
    # Every kind of number: an infinite HD95, a class in neither, a score that is no float16.
    helper.save(folder / 'predictions/b_seg.nii.gz', helper.make_truth('b') > 0, np.uint8)
    helper.save(folder / 'predictions/c_ood.nii.gz', helper.make_score('c') + 1e-4, np.float32)
    _evaluate(folder, output=folder / 'one')
    return folder


@pytest.fixture
def folders(tmp_path):
    _write(tmp_path)
    return tmp_path


def _write(folder):
    helper.write_predictions(folder / 'predictions', SCORES)
    helper.write_images(folder / 'raw')


def _inputs(folder):
    return {'predictions': folder / 'predictions', 'labels': folder / 'raw/labels'}


def _evaluate(folder, **arguments):
    return evaluate(**_inputs(folder), resamples=RESAMPLES, **arguments)


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_the_merged_summary_equals_that_of_one_process(whole, tmp_path, count):
    for index in range(count, 0, -1):
        evaluate_part(f'{index}/{count}', output=tmp_path, **_inputs(whole))
    assert not (tmp_path / 'summary.json').exists()
    _evaluate(whole, output=tmp_path, merge=count)
    for name in ('summary.json', 'cases.csv'):
        assert (tmp_path / name).read_bytes() == (whole / 'one' / name).read_bytes()
    counts = json.loads((tmp_path / 'summary.json').read_text())['counts']
    assert any(counts['hd95_infinite'].values()) and counts['rounded_voxels']['query_logit'] > 0


def test_a_part_of_a_run_needs_its_own_predictions_only(tmp_path):
    """So a host can measure its part while others still predict theirs."""
    helper.write_images(tmp_path / 'raw')
    run = tmp_path / 'run'
    helper.write_run(run, tmp_path / 'store', tmp_path / 'raw')
    helper.write_predictions(run / 'predictions/test', cases=('a', 'c', 'e'))
    # What a host leaves while it writes a scan: a mask without its record.
    helper.save(run / 'predictions/test/b_seg.nii.gz', helper.make_prediction('b'), np.uint8)
    evaluate_part('1/2', model=run)
    (run / 'predictions/test/b_seg.nii.gz').unlink()
    with pytest.raises(UserError, match=r'test has no prediction of [bd]|holds no X_seg'):
        evaluate_part('2/2', model=run)
    helper.write_predictions(run / 'predictions/test', cases=('b', 'd'))
    evaluate_part('2/2', model=run)
    merged = evaluate(model=run, resamples=RESAMPLES, merge=2)
    assert merged == evaluate(model=run, resamples=RESAMPLES)
    assert merged['name'] == 'run, test'


def _rewrite(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | change))


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('missing', [r'part 2/2 is missing', r'with --part=2/2 and']),
        ('both_missing', [r'part 1/2 is missing; part 2/2 is missing', r'--part=1/2, --part=2/2']),
        ('damaged', [r'part 2/2 is damaged']),
        ('option', [r'part 1/2 is stale \(dilate_mm: 0\.0, now 3\.0\)', '--part=1/2, --part=2/2']),
        ('case', [r'part 1/2 is stale \(of other cases, such as']),
        ('segmentation', [r'part 2/2 is stale \(segmentation of case b changed since\)']),
        ('score', [r'part 2/2 is stale \(category_softmax of case b changed since\)']),
        ('record', [r'part 2/2 is stale \(record of case b changed since\)']),
        ('label', [r'part 2/2 is stale \(label of case b changed since\)']),
        ('label_map', [r'part 1/2 is stale \(label_map: ', r'part 2/2 is stale']),
    ],
)  # fmt: skip
def test_what_is_missing_or_stale_is_named_in_one_line(folders, kind, words):
    out, arguments = folders / 'out', {}
    for part in ('1/2', '2/2'):
        evaluate_part(part, output=out, **_inputs(folders))
    predictions, second = folders / 'predictions', out / 'summary.2_of_2.npz'
    if kind == 'missing':
        second.unlink()
    elif kind == 'both_missing':
        second.unlink()
        (out / 'summary.1_of_2.npz').unlink()
    elif kind == 'damaged':
        second.write_bytes(second.read_bytes()[:-40])
    elif kind == 'option':
        arguments = {'dilate_mm': 3.0}
    elif kind == 'case':
        for path in predictions.glob('a*'):
            path.unlink()
    elif kind == 'segmentation':
        helper.save(predictions / 'b_seg.nii.gz', helper.make_truth('b'), np.uint8)
    elif kind == 'score':
        score = helper.make_score('b', SCORES[0])
        helper.save(predictions / f'b_ood-{SCORES[1]}.nii.gz', score, np.float32)
    elif kind == 'record':
        _rewrite(predictions / 'b.json', {'case_ood_score': 7.5})
    elif kind == 'label':
        raw = helper.RAW[helper.make_truth('a')]
        helper.save(folders / 'raw/labels/b.nii.gz', raw, np.int16)
    elif kind == 'label_map':
        (folders / 'map.json').write_text(json.dumps({'1': 1, '5': 2, '6': 3, '300': 3}))
        arguments = {'label_map': folders / 'map.json'}
    with pytest.raises(UserError) as caught:
        _evaluate(folders, output=out, merge=2, **arguments)
    for word in words:
        caught.match(word)
    assert '\n' not in str(caught.value)
    assert not (out / 'summary.json').exists()


def test_a_part_that_fails_leaves_no_file(folders):
    (folders / 'raw/labels/b.nii.gz').write_bytes(b'no scan')
    with pytest.raises(UserError, match=r'labels/b\.nii\.gz'):
        evaluate_part('2/2', output=folders / 'out', **_inputs(folders))
    assert not (folders / 'out').exists()


@pytest.mark.integration
def test_the_command_takes_part_and_merge(folders, python):
    paths = {name: f'--{name}={path}' for name, path in _inputs(folders).items()}
    base = [python, '-m', 'launch.evaluate', *paths.values()]
    evaluate_part('1/2', **_inputs(folders))
    done = processes.run([*base, '--part=2/2'], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'summary.2_of_2.npz (2 cases); --merge=2 joins the parts' in done.stdout
    (folders / 'groups.csv').write_text('case,subtype\na,solid\nd,solid\ne,mucinous\n')
    done = processes.run([*base, '--merge=2', f'--groups={folders}/groups.csv'], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'subtype mucinous: 1 cases (0 inlier, 1 OOD)' in done.stdout
    merged = json.loads((folders / 'predictions/summary.json').read_text())
    groups = folders / 'groups.csv'
    assert merged == evaluate(**_inputs(folders), output=folders / 'one', groups=groups)
    done = processes.run([*base, '--merge=3', '--part=1/3'], cwd=ROOT)
    assert done.returncode == 2 and 'not both at once' in done.stderr
