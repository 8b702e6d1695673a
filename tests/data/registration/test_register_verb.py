"""`launch.register` as it is called: one line and exit code 2 for a bad call, and a whole run."""

import json
import pathlib

import pytest

from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.phantom import CohortSpec, write_cohort
from maxquery_jax.data.registration.options import Limits, RegisterOptions
from maxquery_jax.data.registration.run import register_dataset
from maxquery_jax.errors import UserError
from tests import processes

pytest.importorskip('SimpleITK')
ROOT = pathlib.Path(__file__).parent.parent.parent.parent


def launch(python, *args):
    return processes.run(
        [python, '-m', 'launch.register', *args],
        cwd=ROOT,
    )


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp('phantom')
    spec = CohortSpec(
        num_train=1,
        num_val=0,
        num_test_inlier=0,
        num_test_ood=0,
        shape_zyx=(24, 48, 48),
        spacing_mm=(7.0, 6.0, 6.0),
        phases=('venous', 'arterial_late'),
    )
    write_cohort(folder, spec)
    return folder


@pytest.mark.parametrize('method', ['rigid', 'deformable'])
def test_phantom_phases_move_together(phantom, tmp_path, method):
    options = RegisterOptions(method)
    (record,) = register_dataset(
        read_decathlon(phantom), tmp_path, 'venous', options=options, workers=0, log=lambda _: None
    )
    entry = record['phases'][1]
    assert entry['kept'] == method
    for name in ('body_dice', 'ncc', 'mutual_information'):
        assert entry['after'][name] > entry['before'][name], name
    assert entry['folding'] == 0


@pytest.mark.integration
def test_whole_run(python, phantom, tmp_path):
    done = launch(
        python,
        f'--source={phantom}',
        f'--output={tmp_path}/out',
        '--reference=venous',
        '--method=none',
        '--min_overlap=1',
        f'--json={tmp_path}/rows.json',
    )
    assert done.returncode == 0, done.stderr
    assert 'body Dice' in done.stdout and 'arterial_late' in done.stdout
    (row,) = json.loads((tmp_path / 'rows.json').read_text())
    assert row['check'] == 'registration_overlap' and row['severity'] == 'warning'
    assert len(read_decathlon(tmp_path / 'out').cases) == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    ('args', 'words'),
    [
        ([], '--output'),
        (['--output=O', '--source=/nonexistent'], '/nonexistent'),
        (['--output=O', '--source=PHANTOM'], '--reference: name the phase'),
        (['--output=O', '--source=PHANTOM', '--reference=late'], '0 venous, 1 arterial_late'),
        (['--output=O', '--source=PHANTOM', '--reference=0', '--method=affine'], 'affine'),
        (['--output=O', '--source=PHANTOM', '--tumour=hcc'], 'launch.prepare'),
    ],
)
def test_bad_calls_end_in_one_line(python, phantom, args, words):
    done = launch(python, *(arg.replace('PHANTOM', str(phantom)) for arg in args))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and words in done.stderr


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'method': 'affine'}, '--method=affine'),
        ({'missing': 'ignore'}, '--missing=ignore'),
        ({'method': 'transforms'}, '--transforms: is required by'),
        ({'transforms': ('a',)}, '--transforms: belongs to'),
        ({'method': 'command'}, '--command: is required by'),
        ({'method': 'transforms', 'transforms': ('{case}.tfm',)}, '{phase} or {channel}'),
        ({'method': 'transforms', 'transforms': ('{case}_{phase}_{x}.tfm',)}, '{phase} or'),
        ({'method': 'transforms', 'transforms': ('{case}_{phase}.nrrd',)}, 'must end in'),
        ({'method': 'command', 'command': 'ls {fixed}'}, 'needs {moving} and {output}'),
        ({'method': 'command', 'command': 'ls {moving} {output} {x}'}, '{x} is unknown'),
        ({'method': 'command', 'command': "ls '{moving} {output}"}, 'quotation'),
        ({'method': 'command', 'command': 'no_such_tool {moving} {output}'}, 'no_such_tool'),
        ({'timeout_s': 0.0}, '--timeout=0'),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError) as caught:
        RegisterOptions(**options)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_bad_limits():
    with pytest.raises(UserError, match='--max_folding=2'):
        Limits(folding=2)


def test_one_channel_has_nothing_to_register(tmp_path):
    (tmp_path / 'raw/imagesTr').mkdir(parents=True)
    content = {'channel_names': {'0': 'CT'}, 'labels': {'background': 0}, 'file_ending': '.nii.gz'}
    (tmp_path / 'raw/dataset.json').write_text(json.dumps(content))
    (tmp_path / 'raw/imagesTr/a_0000.nii.gz').touch()
    with pytest.raises(UserError, match='one channel'):
        register_dataset(read_decathlon(tmp_path / 'raw'), tmp_path / 'out', '0')
