"""A folder of scans shared out to hosts that write into one folder."""

import json
import pathlib
import shutil

import nibabel as nib
import numpy as np
import pytest
from threshold_model import make_threshold_model, phantom_hu, save_scan

from maxquery_jax.errors import UserError
from maxquery_jax.inference import run_case
from maxquery_jax.inference.predict import predict

SHAPE = (11, 14, 9)
NAMES = 'abcde'


@pytest.fixture(scope='module')
def model():
    return make_threshold_model()


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scans')
    for seed, name in enumerate(NAMES):
        save_scan(folder / f'{name}.nii.gz', phantom_hu(SHAPE, seed), np.eye(4))
    return folder


def _content(folder):
    """Every output; of the records only what does not change from run to run."""
    content = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == '.json':
            record = json.loads(path.read_text())
            content[path.name] = {k: record[k] for k in ('files', 'files_sha256', 'lesions')}
        else:
            content[path.name] = path.read_bytes()
    return content


@pytest.mark.parametrize('count', [2, 7])
def test_parts_are_together_what_one_host_predicts(scans, model, tmp_path, count):
    predict(model, scans, tmp_path / 'one')
    records = []
    for index in range(1, count + 1):
        records += predict(model, scans, tmp_path / 'many', part=f'{index}/{count}')
    assert sorted(path.stem for path in records) == list(NAMES)
    assert _content(tmp_path / 'many') == _content(tmp_path / 'one')


def test_a_bad_scan_fails_its_part_only(scans, model, tmp_path):
    folder = tmp_path / 'scans'
    shutil.copytree(scans, folder)
    (folder / 'b.nii.gz').write_bytes(b'no scan')
    (folder / 'd.nii.gz').write_bytes(b'no scan')
    assert len(predict(model, folder, tmp_path / 'out', part='1/2')) == 3
    with pytest.raises(UserError, match=r'2 of 2 scans could not .*b\.nii\.gz.*d\.nii\.gz'):
        predict(model, folder, tmp_path / 'out', part='2/2')
    assert sorted(p.stem for p in (tmp_path / 'out').glob('*.json')) == ['a', 'c', 'e']


def test_wrong_part(scans, model, tmp_path):
    with pytest.raises(UserError, match='--part must look like 1/4'):
        predict(model, scans, tmp_path / 'out', part='3/2')


class Died(BaseException):
    """The host is gone: nothing after this runs."""


@pytest.mark.parametrize('dies_at', ['x_seg.nii.gz', 'x_ood.nii.gz', 'x.json'])
def test_what_a_dead_host_left_is_never_finished(model, tmp_path, monkeypatch, dies_at):
    """It dies while it predicts a scan again: what stands there is then of two predictions."""
    path = save_scan(tmp_path / 'x.nii.gz', phantom_hu(SHAPE), np.eye(4))
    out, settings = tmp_path / 'out', {'step_size': 0.6}
    predict(model, path, out, min_lesion_ml=9.0, **settings)
    write_like, write_json = run_case.write_like, run_case.write_json

    def dying(write):
        def run(target, *args):
            if pathlib.Path(target).name == dies_at:
                pathlib.Path(target).with_name(f'.{dies_at}.1.part').write_bytes(b'half')
                raise Died
            write(target, *args)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(run_case, 'write_like', dying(write_like))
        patch.setattr(run_case, 'write_json', dying(write_json))
        with pytest.raises(Died):
            predict(model, path, out, **settings)
    assert not (out / 'x.json').exists()  # so evaluation does not read it either
    (record,) = predict(model, path, out, **settings)
    assert json.loads(record.read_text())['settings']['min_lesion_ml'] == 0.01
    assert (out / 'x_seg.nii.gz').exists() and (out / 'x_ood.nii.gz').exists()


def test_files_that_are_not_the_records_are_refused(model, tmp_path, capsys):
    """Cut off with the power, or of another host with other options."""
    path = save_scan(tmp_path / 'x.nii.gz', phantom_hu(SHAPE), np.eye(4))
    (record,) = predict(model, path, tmp_path / 'out')
    mask = record.with_name('x_seg.nii.gz')
    whole = mask.read_bytes()
    predict(model, path, tmp_path / 'out')
    assert 'finished before, skipped' in capsys.readouterr().out
    mask.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'x_seg\.nii\.gz is not the file that x\.json'):
        predict(model, path, tmp_path / 'out')
    predict(model, path, tmp_path / 'out', overwrite=True)
    assert mask.read_bytes() == whole
    mask.unlink()
    predict(model, path, tmp_path / 'out')  # nothing to lose: predicted again
    assert mask.read_bytes() == whole


def test_records_of_before_there_were_hashes_still_count(model, tmp_path, capsys):
    path = save_scan(tmp_path / 'x.nii.gz', phantom_hu(SHAPE), np.eye(4))
    (record,) = predict(model, path, tmp_path / 'out')
    content = json.loads(record.read_text())
    del content['files_sha256']
    record.write_text(json.dumps(content))
    predict(model, path, tmp_path / 'out')
    assert 'finished before, skipped' in capsys.readouterr().out
    assert nib.load(record.with_name('x_seg.nii.gz')).shape == SHAPE
