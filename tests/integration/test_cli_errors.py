"""The shipped commands answer a wrong call with one line and exit code 2, before computing."""

import pathlib
import re

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
DEMO = '--config=configs/maxquery.py:demo'
VERBS = sorted(path.stem for path in (ROOT / 'launch').glob('[a-z]*.py'))


def launch(python, verb, *args):
    return processes.run(
        [python, '-m', f'launch.{verb}', *args],
        cwd=ROOT,
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ('verb', 'args', 'words'),
    [
        ('train', [], ['--config']),
        ('train', [DEMO], ['--workdir']),
        ('train', [DEMO, '--config.data.pach_size=1'], ['pach_size']),
        ('train', [DEMO, '--config.extend.epochs=3'], ['no such field', 'extend']),
        ('train', [DEMO, '--config.pretrain.epoch=3'], ['epoch', 'mean "epochs"']),
        ('train', ['--config=configs/maxquery.py:dmo', '--workdir=x'], ['dmo', "'demo'"]),
        ('train', ['--config=configs/nothing.py', '--workdir=x'], ['nothing.py']),
        (
            'train',
            [DEMO, '--workdir=W', '--config.finetune.optim.learning_rate=-1.0'],
            ['finetune.optim', 'learning_rate'],
        ),
        ('train', [DEMO, '--workdir=W', '--config.data.patch_size=(32,64,63)'], ['63']),
        (
            'train',
            [DEMO, '--workdir=W', '--config.model.decoder.query_groups=(1,2,3)'],
            ['query_groups', '32'],
        ),
        (
            'train',
            ['--config=configs/maxquery.py:pancreas', '--workdir=W'],
            ['--config.data.store', ':demo'],
        ),
        (
            'train',
            ['--config=configs/zept.py', '--workdir=W'],
            ['--config.data.store', ':demo'],
        ),
        ('train', [DEMO, '--workdir=W', 'extra'], ['extra']),
        ('predict', ['--model=/nonexistent', '--input=a', '--output=b'], ['/nonexistent']),
        ('evaluate', ['--model=/nonexistent'], ['/nonexistent']),
        ('report', ['--model=/nonexistent'], ['/nonexistent']),
        (
            'prepare',
            ['--dataset=decathlon', '--source=/nonexistent', '--store=W'],
            ['/nonexistent'],
        ),
        ('check', ['--dataset=decathlon', '--source=/nonexistent'], ['/nonexistent']),
        ('check', ['--dataset=nothing', '--source=.'], ['nothing', 'decathlon']),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_line_and_exit_2(python, tmp_path, verb, args, words):
    args = [a.replace('=W', f'={tmp_path / "run"}') for a in args]
    result = launch(python, verb, *args)
    lines = [line for line in result.stderr.splitlines() if line.startswith('error:')]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and 'Traceback' not in result.stderr
    for word in words:
        assert word in lines[0]


def flags_of(module):
    """Names of the flags of a verb's module and of those that it imports from launch."""
    text = (ROOT / 'launch' / f'{module}.py').read_text()
    helpers = {name for line in re.findall(r'^from launch import (.*)', text, re.MULTILINE)
               for name in line.split(', ')} - {'_cli'}  # fmt: skip
    own = re.findall(r"DEFINE_\w+\(\s*'(\w+)'", text)
    return {*own, *(name for helper in helpers for name in flags_of(helper))}


@pytest.mark.integration
@pytest.mark.parametrize('verb', VERBS)
def test_help_teaches_with_a_command_and_lists_every_flag(python, verb):
    result = launch(python, verb, '--help')
    assert f'python -m launch.{verb}' in result.stdout
    shown = set(re.findall(r'^  --(?:\[no\])?(\w+)', result.stdout, re.MULTILINE))
    assert flags_of(verb) <= shown and len(shown) > 1
