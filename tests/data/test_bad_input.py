"""Every bad input of `bad_input_table` by every verb that reads it: line, exit code, no remains."""

import dataclasses
import pathlib
import re

import nibabel as nib
import numpy as np
import pytest
from bad_input_table import TABLE

from maxquery_jax.data.check import check_dataset, count_errors, format_table
from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.inference.predict import predict
from tests import processes
from tests.inference.threshold_model import expected_label, make_threshold_model

ROOT = pathlib.Path(__file__).parent.parent.parent
RUNS = [(bad, verb) for bad in TABLE for verb in bad.verbs]


@dataclasses.dataclass
class Answer:
    """What a verb said.

    Attributes:
        code: exit code; `launch` turns a UserError into 2, see the tests of the commands below.
        lines: all that it printed about its input.
    """

    code: int
    lines: list[str]


def run_check(folder, options, where) -> Answer:
    try:
        rows = check_dataset('decathlon', folder, **options)
    except UserError as error:
        return Answer(2, [str(error)])
    return Answer(2 if count_errors(rows) else 0, format_table(rows).splitlines())


def run_prepare(folder, options, where) -> Answer:
    lines: list[str] = []
    try:
        manifest = prepare('decathlon', folder, where / 'store', log=lines.append, **options)
    except UserError as error:
        assert not (where / 'store').exists()
        return Answer(2, '\n'.join([*lines, str(error)]).splitlines())
    assert PatchStore(where / 'store').manifest == manifest
    return Answer(0, '\n'.join(lines).splitlines())


@pytest.fixture(scope='module')
def model():
    return make_threshold_model(spacing_mm=(3.0, 1.5, 1.5))


def run_predict(model, folder, options, where, capsys) -> Answer:
    path = next((folder / 'imagesTr').glob('a.nii*'), folder / 'imagesTr' / 'a.nii.gz')
    capsys.readouterr()
    try:
        predict(model, path, where / 'out', **options)
    except UserError as error:
        assert not (where / 'out').exists() or list((where / 'out').iterdir()) == []
        return Answer(2, [str(error)])
    hu = np.asanyarray(nib.load(path).dataobj)
    found = np.asanyarray(nib.load(where / 'out' / 'a_seg.nii.gz').dataobj)
    if np.abs(nib.load(path).affine[:3, :3]).astype(bool).sum() == 3:  # not sheared
        np.testing.assert_array_equal(found, expected_label(hu.reshape(found.shape)))
    return Answer(0, capsys.readouterr().err.splitlines())


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob('*'))


@pytest.mark.parametrize(('bad', 'verb'), RUNS, ids=[f'{bad.name}-{verb}' for bad, verb in RUNS])
def test_bad_input(bad, verb, model, tmp_path, capsys):
    folder = tmp_path / 'raw'
    options = bad.make(folder)
    options = dict(options) if isinstance(options, dict) else {}
    predict_options = options.pop('predict', {})
    before = files(tmp_path)
    if verb == 'predict':
        answer = run_predict(model, folder, predict_options, tmp_path, capsys)
    else:
        answer = {'check': run_check, 'prepare': run_prepare}[verb](folder, options, tmp_path)
    lines = [line.replace(str(tmp_path), '') for line in answer.lines]
    told = '\n'.join(lines)
    assert answer.code == bad.code, told
    if bad.code == 2:
        assert files(tmp_path) in (before, sorted([*before, pathlib.Path('out')]))
    if not bad.words:
        assert not any(name in told for name in CHECKS), told
        return
    name = bad.file if bad.file.isprintable() else ascii(bad.file)
    about = [line for line in lines if re.search(bad.words, line)]
    if bad.check:
        about = [line for line in about if name in line and bad.check in line]
    assert len(about) == 1, told
    assert about[0].isprintable()
    if bad.check and verb != 'predict':
        assert about[0].startswith('error ' if bad.code else 'warning ')
        assert not [line for line in lines if line.startswith('error ') and name not in line], told


def test_the_table_is_complete():
    assert len(TABLE) >= 40 and len({bad.name for bad in TABLE}) == len(TABLE)
    named = {bad.check for bad in TABLE if bad.check}
    assert named <= set(CHECKS)
    # Every finding about a NIfTI file or a listing has a row here.
    assert not {'missing_file', 'unreadable', 'path', 'case_name', 'format', 'truncated', 'corrupt',
                'too_large', 'dimensions', 'squeezed', 'dtype', 'scaling', 'spacing',
                'spacing_units', 'affine_singular', 'affine_sheared', 'qform_sform',
                'orientation_unknown', 'trailing_bytes', 'nonfinite', 'value_range', 'normalised',
                'hu_suspicious', 'label_not_integer', 'label_unknown', 'shape_mismatch',
                'affine_mismatch', 'foreground_absent', 'anisotropy', 'single_slice', 'duplicate',
                'ood_in_train'} - named  # fmt: skip


COMMANDS = [
    ('check', 'truncated_gz'), ('check', 'broken_json'), ('check', 'no_foreground'),
    ('prepare', 'voxels_30000_cubed'), ('prepare', 'label_300'), ('prepare', 'pipe'),
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize(('verb', 'name'), COMMANDS)
def test_commands_exit_with_the_code(verb, name, tmp_path, python):
    """`python -m launch.VERB`: the line, one line of error, no trace, the exit code."""
    (bad,) = [bad for bad in TABLE if bad.name == name]
    bad.make(tmp_path / 'raw')
    args = [f'--store={tmp_path / "store"}'] if verb == 'prepare' else []
    run = processes.run(
        [python, '-m', f'launch.{verb}', '--dataset=decathlon', f'--source={tmp_path / "raw"}']
        + args,
        cwd=ROOT,
    )
    assert run.returncode == bad.code, run.stderr
    assert 'Traceback' not in run.stderr and not (tmp_path / 'store').exists()
    errors = [line for line in run.stderr.splitlines() if line.startswith('error:')]
    assert len(errors) == (bad.code == 2)
    lines = [*run.stdout.splitlines(), *errors]
    about = [line for line in lines if re.search(bad.words, line.replace(str(tmp_path), ''))]
    assert len(about) == 1 and bad.file in about[0]
