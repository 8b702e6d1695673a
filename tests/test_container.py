"""The container file, as far as it can be checked without an engine to build it."""

import pathlib
import re
import shlex
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCKERFILE = ROOT / 'containers/Dockerfile'


@pytest.fixture(scope='module')
def steps():
    """(instruction, arguments) in order; continued lines joined."""
    text = re.sub(r'\\\n\s*', ' ', DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith('#')]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def _arguments(steps, instruction):
    return [arguments for name, arguments in steps if name == instruction]


def test_what_is_copied_exists(steps):
    sources = [s for line in _arguments(steps, 'COPY') for s in shlex.split(line)[:-1]]
    assert {'pyproject.toml', 'maxquery_jax', 'configs', 'launch'} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    # The build needs these, or pip fails.
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert {project['readme'], *project['license-files']} <= set(sources)


def test_it_installs_as_ci_does(steps):
    """The same pip line as the core install of .ci/run, which runs, plus extras and no cache."""
    (ci,) = re.findall(r'python" -m pip install (.*) \.\n', (ROOT / '.ci/run').read_text())
    (run,) = [line for line in _arguments(steps, 'RUN') if '-m pip install' in line]
    installs = re.findall(r'python -m pip install (.*?) --no-cache-dir "(.*?)"', run)
    assert [options for options, _ in installs] == [ci, ci]
    assert [what for _, what in installs] == ['jax[$ACCELERATOR]', '.[$EXTRAS]']
    defaults = dict(line.split('=') for line in _arguments(steps, 'ARG'))
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert set(defaults['EXTRAS'].split(',')) <= set(project['optional-dependencies'])
    assert defaults['ACCELERATOR'] == 'cpu'


def test_it_runs_a_verb_as_an_ordinary_user(steps):
    names = [name for name, _ in steps]
    assert names[-1] == 'ENTRYPOINT' and names.index('USER') > names.index('RUN')
    assert _arguments(steps, 'USER') == ['maxquery']
    (entry,) = _arguments(steps, 'ENTRYPOINT')
    assert entry == '["python", "-m", "launch.train"]'
    assert (ROOT / 'launch/train.py').exists()
    (base,) = _arguments(steps, 'FROM')
    assert re.fullmatch(r'python:3\.\d+-slim', base)  # a plain name: no registry is written down
