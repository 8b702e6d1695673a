"""`prepare` killed at any point continues, and a killed worker is named by its case."""

import multiprocessing
import os
import pathlib
import re
import signal
import threading
import time

import nifti_helper as helper
import pytest

from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
SHAPE = (16, 14, 10)
SPLITS = {'train': ['a', 'b'], 'val': ['c'], 'test': ['d']}
OPTIONS = {'split': SplitOptions(given=SPLITS), 'log': lambda _: None}
# A process that kills itself when a function is called for the n-th time.
CHILD = r"""
import importlib, os, signal, sys
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.splits import SplitOptions

raw, store, module, name, fatal = sys.argv[1:]
owner = importlib.import_module(module)
*path, last = name.split('.')
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), 0

def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, last, wrapped)
splits = {'train': ['a', 'b'], 'val': ['c'], 'test': ['d']}
prepare('decathlon', raw, store, split=SplitOptions(given=splits), workers=0)
"""
STORE = 'maxquery_jax.data.store_write'
# What is called for the n-th time, and how many cases are complete by then.
POINTS = {
    'while files are checked': ('maxquery_jax.data.scan', 'nifti.to_canonical', 3, 0),
    'before the first array': (STORE, 'write_array', 1, 0),
    'between the arrays of a case': (STORE, 'write_array', 6, 1),
    'before a case gets its name': (STORE, 'StoreWriter._publish', 3, 2),
    'before the manifest': (STORE, 'StoreWriter.finish', 1, 4),
    'before the manifest gets its name': ('maxquery_jax.files', 'os.replace', -1, 4),
}


@pytest.fixture
def raw(tmp_path):
    cases = {name: helper.blob_case(i, SHAPE) for i, name in enumerate('abcd')}
    return helper.decathlon(tmp_path / 'raw', cases)


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.integration
@pytest.mark.parametrize('point', POINTS)
def test_killed_prepare_continues(point, raw, tmp_path, python):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    prepare('decathlon', raw, whole, workers=0, **OPTIONS)
    module, name, number, complete = POINTS[point]
    if number < 0:  # the last of the renames: one for every case comes before
        number = len('abcd') + 1
    run = processes.run(
        [python, '-c', CHILD, str(raw), str(broken), module, name, str(number)],
        cwd=ROOT,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (broken / 'manifest.json').exists()
    # A part of the manifest must not make the folder look like something else.
    assert len(list(broken.glob('.manifest.json.*'))) == point.startswith('before the manifest g')
    with pytest.raises(UserError, match='not finished|no patch store'):
        PatchStore(broken)
    lines = []
    prepare('decathlon', raw, broken, workers=0, **{**OPTIONS, 'log': lines.append})
    written = re.match(r'(\d) of 4 cases are written already', lines[0])
    assert (int(written[1]) if written else 0) == complete
    assert snapshot(whole) == snapshot(broken)


def test_killed_worker_is_named_and_the_rest_is_kept(raw, tmp_path):
    """Kill -9 of a process of the pool, whichever it is."""
    victims = []

    def kill():
        while not victims:
            victims.extend(multiprocessing.active_children()[:1])
            time.sleep(0.01)
        os.kill(victims[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"case '[a-d]': its worker process ended with signal SIGK"):
        prepare('decathlon', raw, tmp_path / 'store', workers=2, **OPTIONS)
    killer.join(timeout=10)
    assert not multiprocessing.active_children()
    manifest = prepare('decathlon', raw, tmp_path / 'store', workers=0, **OPTIONS)
    assert sorted(manifest.cases) == list('abcd')
