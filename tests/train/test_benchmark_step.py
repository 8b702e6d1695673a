"""The step benchmark as a command, and the stage it is asked for."""

import json
import pathlib

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = [
    '--config=configs/maxquery.py:demo',
    '--config.data.patch_size=(4,8,8)',
    '--config.augment.enabled=False',
    '--config.model.conv_form=plain',
    '--config.model.backbone.base_features=4',
    '--config.model.backbone.max_stages=2',
    '--config.model.decoder.output_strides=(2,)',
    '--config.model.decoder.query_dim=16',
    '--config.model.decoder.embed_dim=8',
    '--config.model.decoder.ffn_dim=16',
    '--tumours=2',
    '--channels=2',
    '--spacing_mm=4,4,4',
]


def benchmark(python, *flags, part='step'):
    command = [python, '-m', 'launch.benchmark', f'--part={part}', *TINY, *flags]
    return processes.run(command, cwd=ROOT)


@pytest.mark.integration
def test_the_command_measures_real_steps(python, tmp_path):
    file = tmp_path / 'figures.json'
    done = benchmark(python, '--steps=2', f'--json={file}')
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures == json.loads(done.stdout)
    assert (figures['config'], figures['stage']) == ('maxquery:demo', 'finetune')
    assert figures['patch_size'] == [4, 8, 8] and figures['num_classes'] == 4
    assert figures['num_steps'] == 2
    assert 0 < figures['step_s_min'] <= figures['step_s_median'] <= figures['step_s_max']
    assert figures['loss_last'] < figures['loss_first']  # the same batch thrice
    size = benchmark(python, part='size')
    assert size.returncode == 0, size.stderr
    counted = json.loads(size.stdout)
    for name in ('config', 'stage', 'patch_size', 'num_classes', 'parameters'):
        assert figures[name] == counted[name]
    assert figures['gflop_per_step'] == 2 * counted['gflop_step'] > 4 * counted['gflop_forward'] > 0
    assert figures['compile_s'] > 0 and figures['peak_rss_gib'] > 0


@pytest.mark.integration
def test_a_stage_that_is_not_there_is_one_line(python):
    done = benchmark(python, '--stage=tune')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == 'error: --stage=tune is not one of pretrain, finetune'
