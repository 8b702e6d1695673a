"""What --list, --describe and --spec_template print."""

import json
import pathlib

import pytest

from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.datasets.custom import load_spec
from maxquery_jax.data.datasets.listing import format_list, format_spec
from maxquery_jax.data.sources import LAYOUTS
from maxquery_jax.errors import UserError
from tests import processes

ROOT = pathlib.Path(__file__).parents[3]


def test_list_names_every_data_set_once():
    lines = format_list(LAYOUTS).splitlines()
    for name, spec in DATASETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert spec.layout.summary in line and spec.licence.split(' (')[0] in line
        assert spec.annotated_names[0] in line
    assert all(any(line.startswith(name) for line in lines) for name in LAYOUTS)
    assert max(map(len, lines)) < 180


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_description(name):
    spec, text = DATASETS[name], format_spec(name)
    words = ' '.join(text.split())
    for part in (spec.title, spec.licence, spec.citation, spec.url, spec.note):
        assert ' '.join(part.split()) in words
    for raw_id, label in spec.labels.items():
        for side in spec.left_right.get(label, (label,)):
            assert f'{raw_id} {side} {spec.to_taxonomy[side] or "-"}' in words
    assert max(map(len, text.splitlines())) <= 130


def test_unknown_name():
    with pytest.raises(UserError, match='--describe=x.*btcv'):
        format_spec('x')


def launch(python, verb, *args):
    return processes.run(
        [python, '-m', f'launch.{verb}', *args], cwd=ROOT,
    )  # fmt: skip


@pytest.mark.integration
def test_commands(python, tmp_path):
    done = launch(python, 'prepare', '--list')
    assert done.returncode == 0 and 'kits23' in done.stdout and not done.stderr
    done = launch(python, 'check', '--describe=nothing')
    assert done.returncode == 2 and done.stderr.startswith('error: --describe=nothing')
    done = launch(python, 'prepare', '--spec_template')
    (tmp_path / 'mine.json').write_text(done.stdout)
    assert load_spec(tmp_path / 'mine.json').name == json.loads(done.stdout)['name']
