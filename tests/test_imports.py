"""The layering of the package, checked on its source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'maxquery_jax'

# A module may import from its own layer and from every layer before it.
LAYERS = [
    {'axes', 'typing', 'errors', 'files', 'progress'},
    {'ops'},
    {'models', 'baselines', 'augment', 'losses', 'metrics', 'optim'},
    {'train', 'inference', 'data', 'text', 'parallel', 'aot'},
    {'study', 'report', 'bundle'},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NO_JAX = ('data', 'metrics')
NO_MODELS = ('data', 'text')
CONFIG_READERS = {'inference/model.py'}  # rebuilds the model of a run; others are handed a config
FORBIDDEN = {'torch', 'tensorflow', 'pickle', 'configs', 'launch'}


def imported(file: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob('*.py'))


def part(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_every_part_has_a_layer():
    assert {part(f) for f in FILES} - {'__init__'} <= set(RANK)


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    own = part(file)
    for name in imported(file):
        top, *rest = name.split('.')
        assert top not in FORBIDDEN, f'{file} imports {name}'
        if top == 'maxquery_jax' and rest and own != '__init__':
            assert RANK[rest[0]] <= RANK[own], f'{file}: {own} may not import {name}'
            if own in NO_MODELS:
                assert rest[0] not in ('models', 'losses', 'train', 'inference'), f'{file}: {name}'
        if own in NO_JAX:
            assert top not in ('jax', 'flax'), f'{file} must stay free of JAX'
        if name.startswith('ml_collections'):
            relative = str(file.relative_to(PACKAGE))
            assert relative in CONFIG_READERS, f'{file} builds configs'


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').rglob('*.py')), ids=lambda f: f.name)
def test_configs_import_only_config_code(file):
    assert {n.split('.')[0] for n in imported(file)} <= {
        'configs',
        'ml_collections',
        'difflib',
        'collections',
        'typing',
    }


@pytest.mark.parametrize('file', sorted((ROOT / 'launch').glob('*.py')), ids=lambda f: f.name)
def test_launch_files_are_thin(file):
    assert len(file.read_text().splitlines()) < 100
