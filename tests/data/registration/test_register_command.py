"""External programs: what they are given, what is made of their output, how they fail."""

import sys
import textwrap

import numpy as np
import pytest
from register_cases import SMALL, load, register

from maxquery_jax.errors import UserError

pytest.importorskip('SimpleITK')


def script(tmp_path, body):
    path = tmp_path / 'tool.py'
    path.write_text('import sys, shutil, time\nimport nibabel as nib\nimport numpy as np\n'
                    'fixed, moving, out = sys.argv[1:4]\n' + textwrap.dedent(body))  # fmt: skip
    return f'{sys.executable} {path} {{fixed}} {{moving}} '


def test_a_command_gets_equal_grids_and_its_output_is_used(two, tmp_path):
    body = f"""
    a, b = nib.load(fixed), nib.load(moving)
    assert a.shape == b.shape == {SMALL} and np.array_equal(a.affine, b.affine)
    assert sys.argv[4:] == ['a', 'arterial', '0001', 'two words'] or sys.argv[4] == 'b'
    nib.save(nib.Nifti1Image(np.asarray(a.dataobj) + np.int16(7), a.affine), out)
    """
    command = script(tmp_path, body) + "{output} {case} {phase} {channel} 'two words'"
    records = register(two, tmp_path / 'out', 'command', command=command)
    array, _ = load(tmp_path / 'out/imagesTr/a_0001.nii.gz')
    np.testing.assert_array_equal(array, load(two / 'imagesTr/a_0000.nii.gz')[0] + 7)
    entry = records[0]['phases'][1]
    assert entry['kept'] == 'command' and entry['folding'] is None
    assert entry['after']['ncc'] > 0.99 > entry['before']['ncc']


def test_a_command_may_write_as_deeds_does(two, tmp_path):
    command = script(tmp_path, "shutil.copy(fixed, out + '_deformed.nii.gz')") + '{prefix}'
    register(two, tmp_path / 'out', 'command', command=command)
    for name in 'ab':
        first, second = (load(tmp_path / f'out/imagesTr/{name}_000{i}.nii.gz')[0] for i in (0, 1))
        np.testing.assert_array_equal(first, second)


SMALL_FILE = 'nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), out)'
SHIFTED_FILE = """
a = nib.load(fixed)
a.affine[0, 3] += 5
nib.save(nib.Nifti1Image(np.asarray(a.dataobj), a.affine), out)
"""


@pytest.mark.parametrize(
    ('body', 'words'),
    [
        ("print('one', file=sys.stderr); sys.exit('no licence')", 'exit code 1: no licence'),
        ('pass', 'without writing'),
        ('time.sleep(60)', 'was ended after 2 s'),
        (SMALL_FILE, 'shape (4, 4, 4)'),
        (SHIFTED_FILE, 'up to 5 mm away'),
        ("open(out, 'wb').write(open(fixed, 'rb').read()[:-50])", 'truncated'),
    ],
)
def test_a_failing_command_is_reported_in_one_line(two, tmp_path, body, words):
    (two / 'imagesTr/b_0001.nii.gz').unlink()
    lines = []
    options = {
        'command': script(tmp_path, body) + '{output}',
        'timeout_s': 2.0 if 'sleep' in body else 60.0,
        'missing': 'drop',
    }
    with pytest.raises(UserError):
        register(two, tmp_path / 'out', 'command', **options, log=lines.append)
    assert words in lines[-1] and "case 'a', phase 'arterial'" in lines[-1]


def test_a_dead_worker_is_named_by_its_case(two, tmp_path):
    """The program kills the process that started it."""
    body = 'import os; os.kill(os.getppid(), 9); time.sleep(5)'
    with pytest.raises(
        UserError, match="case '[ab]': its worker process ended with signal SIGKILL"
    ):
        register(two, tmp_path / 'out', 'command', workers=1,
                 command=script(tmp_path, body) + '{output}')  # fmt: skip
