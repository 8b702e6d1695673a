"""Checkpoints: round trip, damage, dtype, the best, other meshes, merging between stages."""

import errno
import gc
import json
import os
import re
import resource
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxquery_jax import axes
from maxquery_jax.errors import UserError
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train import checkpoint
from maxquery_jax.train.layout import StateLayout
from maxquery_jax.train.merge import merge_params
from maxquery_jax.train.state import TrainState

PARAMS = {'backbone': {'k': jnp.arange(6.0).reshape(2, 3)}, 'head': {'b': jnp.ones(3)}}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))


def make_state(step=0):
    return TrainState(jnp.int32(step), PARAMS, TX.init(PARAMS))


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'stages': ['pretrain', 'finetune']}))
    directory = tmp_path / 'checkpoints' / 'pretrain'
    directory.mkdir(parents=True)
    checkpoints = checkpoint.StageCheckpoints(directory, keep=2)
    for step in (3, 6, 9):
        checkpoints.save(make_state(step), step)
    checkpoints.close()
    return tmp_path


def test_newest_are_kept_and_restore_is_exact(run_dir):
    checkpoints = checkpoint.StageCheckpoints(run_dir / 'checkpoints' / 'pretrain')
    assert checkpoints.steps() == [6, 9]
    state = checkpoints.restore(abstract(make_state()), 9)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(9))
    checkpoints.close()


def test_wrong_tree_and_wrong_dtype_are_user_errors(run_dir):
    checkpoints = checkpoint.StageCheckpoints(run_dir / 'checkpoints' / 'pretrain')
    shapes = abstract(make_state())
    with pytest.raises(UserError, match='params.head'):
        checkpoints.restore(shapes.replace(params={'backbone': shapes.params['backbone']}), 9)
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), shapes.params
    )
    with pytest.raises(UserError, match=r'float32\[2, 3\] in the checkpoint and bfloat16'):
        checkpoints.restore(shapes.replace(params=half), 9)
    checkpoints.close()


def test_load_params_takes_the_last_stage_that_has_a_checkpoint(run_dir):
    params, stage, step = checkpoint.load_params(run_dir)
    assert (stage, step) == ('pretrain', 9)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    with pytest.raises(UserError, match='no stage'):
        checkpoint.load_params(run_dir, 'stage2')
    shutil.rmtree(run_dir / 'checkpoints')
    with pytest.raises(UserError, match='no finished checkpoint'):
        checkpoint.load_params(run_dir)
    with pytest.raises(UserError, match='not a run directory'):
        checkpoint.load_params(run_dir / 'nothing')


def only(folder, name):
    return next(path for path in sorted(folder.rglob(name)) if path.is_file())


def truncate(folder):
    data = only(folder, 'd/*')
    data.write_bytes(data.read_bytes()[:-3])


def flip_a_bit(folder):
    data = only(folder, 'd/*')
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def forget_checksums(folder):  # as a kill right after the save
    (folder / 'checksums.json').unlink()


def lose_a_file_unlisted(folder):
    forget_checksums(folder)
    only(folder, 'manifest.ocdbt').unlink()


def garble_metadata_unlisted(folder):
    forget_checksums(folder)
    only(folder, '_METADATA').write_bytes(b'\0' * 100)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    truncate: r'has \d+ of \d+ bytes',
    flip_a_bit: 'is corrupt',
    lambda folder: only(folder, '_METADATA').unlink(): '_METADATA is missing',
    lambda folder: (folder / 'checksums.json').write_text('{'): 'checksums.json is corrupt',
    lose_a_file_unlisted: 'cannot be read',
    garble_metadata_unlisted: 'cannot be read',
    empty: 'folder is empty',
}


@pytest.mark.parametrize(('damage', 'words'), DAMAGES.items())
def test_a_damaged_checkpoint_is_skipped_with_one_line(run_dir, damage, words, capfd):
    folder = run_dir / 'checkpoints' / 'pretrain'
    damage(folder / '9')
    assert checkpoint.load_params(run_dir)[2] == 6
    checkpoints = checkpoint.StageCheckpoints(folder)
    capfd.readouterr()
    state, step = checkpoints.restore_newest(abstract(make_state()))
    gc.collect()  # what a library left behind complains when it is collected
    printed = capfd.readouterr()
    assert step == 6 and printed.err == ''
    jax.tree.map(np.testing.assert_array_equal, state, make_state(6))
    [line] = printed.out.splitlines()
    assert re.match(f'warning: checkpoint {folder}/9 .*{words}.*; renamed to 9.damaged', line)
    assert checkpoints.steps() == [6]
    checkpoints.save(make_state(9), 9)  # the number is free again
    checkpoints.close()
    assert checkpoints.steps() == [6, 9] and (folder / '9.damaged').is_dir()


def test_without_a_readable_checkpoint_nothing_is_touched(run_dir):
    folder = run_dir / 'checkpoints' / 'pretrain'
    for step in (6, 9):
        truncate(folder / str(step))
    checkpoints = checkpoint.StageCheckpoints(folder)
    with pytest.raises(UserError, match='pretrain/9 is damaged.*nor any of the 1 older ones; put'):
        checkpoints.restore_newest(abstract(make_state()))
    with pytest.raises(UserError, match='pretrain/9 is damaged.*put back a copy'):
        checkpoint.load_params(run_dir)
    assert checkpoints.steps() == [6, 9]


def test_what_a_kill_left_is_removed_and_never_loaded(run_dir):
    folder = run_dir / 'checkpoints' / 'pretrain'
    for name in ('12.orbax-checkpoint-tmp', '12.orbax-checkpoint-tmp-3', '3.old', '4.damaged'):
        shutil.copytree(folder / '9', folder / name)
    checkpoints = checkpoint.StageCheckpoints(folder)
    assert checkpoints.steps() == [6, 9] and checkpoint.load_params(run_dir)[2] == 9
    checkpoints.clean()
    assert sorted(path.name for path in folder.iterdir()) == ['4.damaged', '6', '9']


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(run_dir, capfd):
    """No file of this process may grow beyond a limit, which ends a save in the background."""
    checkpoints = checkpoint.StageCheckpoints(run_dir / 'checkpoints' / 'pretrain')
    large = TrainState(jnp.int32(12), {'k': jax.random.normal(jax.random.key(0), (2**18,))}, ())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
        with pytest.raises(UserError, match=r'pretrain/12 cannot be written \(File too large\)'):
            checkpoints.save(large, 12)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr() == ('', '')
    assert checkpoints.steps() == [6, 9]
    checkpoints.save(large, 12)
    checkpoints.close()
    assert checkpoints.steps() == [9, 12]


@pytest.mark.parametrize('then', ['save', 'close', 'check'])
def test_a_failed_save_is_heard_whatever_comes_next(run_dir, monkeypatch, then):
    class Failed:
        def result(self):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    checkpoints = checkpoint.StageCheckpoints(run_dir / 'checkpoints' / 'pretrain')
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp, 'save_async', lambda *args, **kwargs: Failed())
        checkpoints.save(make_state(12), 12)
        checkpoints._saving[1].exception()  # waits
    step = {'save': lambda: checkpoints.save(make_state(15), 15)}
    with pytest.raises(UserError, match=r'pretrain/12 cannot be written \(Disk quota exceeded\)'):
        step.get(then, getattr(checkpoints, then))()
    checkpoints.close()
    assert checkpoints.steps() == [6, 9]


def test_the_best_stays_beside_the_newest(tmp_path):
    checkpoints = checkpoint.StageCheckpoints(tmp_path / 'stage', keep=2)
    for step in range(1, 6):
        checkpoints.save(make_state(step), step, is_best=step in (1, 2))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(make_state(6), 6, is_best=True)
    checkpoints.close()
    assert checkpoints.steps() == [5, 6]


def test_the_best_is_the_earliest_of_the_largest_that_is_there():
    rows = [
        {'stage': stage, 'split': split, 'step': step, 'dice_mean': value}
        for stage, split, step, value in (
            ('a', 'val', 1, 0.9), ('b', 'val', 1, 0.2), ('b', 'val', 2, None), ('b', 'train', 3, 1),
            ('b', 'val', 4, 0.5), ('b', 'val', 5, 0.7), ('b', 'val', 6, 0.5),
        )
    ]  # fmt: skip
    assert checkpoint.best_step(rows, 'b', 'dice_mean', {1, 2, 3, 4, 6}) == (4, 0.5)
    assert checkpoint.best_step(rows, 'b', 'dice_mean', {2, 3}) is None
    assert checkpoint.best_step(rows, 'b', 'dice/liver', {1, 4}) is None


def test_load_params_without_a_best_one_says_what_there_is(run_dir):
    with pytest.raises(UserError, match='kept no best checkpoint.*the newest is step 9'):
        checkpoint.load_params(run_dir, best=True)
    config = {'stages': ['pretrain', 'finetune'], 'checkpoint': {'best': 'dice_mean'}}
    (run_dir / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='no checkpoint of pretrain with .* dice_mean'):
        checkpoint.load_params(run_dir, best=True)
    row = {'stage': 'pretrain', 'split': 'val', 'step': 6, 'dice_mean': 0.5}
    (run_dir / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    assert checkpoint.load_params(run_dir, best=True)[2] == 6


def layout_on(mesh, params):
    """Kernels lie over fsdp; a bias of 7 is padded."""
    boxed = jax.tree.map(
        lambda x: nn.LogicallyPartitioned(x, (axes.FEATURES_IN, axes.FEATURES_OUT)[-x.ndim :]),
        params,
    )
    return StateLayout(boxed, TX, mesh)


@pytest.mark.parametrize(('data', 'fsdp'), [(2, 4), (1, 8), (1, 1)])
def test_restoring_on_another_mesh_is_exact(tmp_path, data, fsdp):
    key = jax.random.key(0)
    params = {'k': np.asarray(jax.random.normal(key, (3, 16))), 'b': np.arange(7, dtype=np.float32)}
    before = layout_on(make_mesh(4, 2, 1), params)
    state = before.create(params)
    state = state.replace(opt_state=jax.tree.map(lambda x: x + 0.1, state.opt_state))
    checkpoints = checkpoint.StageCheckpoints(tmp_path / 'stage')
    checkpoints.save(before.to_saved(state), 4)
    checkpoints.wait()
    after = layout_on(make_mesh(data, fsdp, 1), params)
    saved, step = checkpoints.restore_newest(after.abstract_saved)
    checkpoints.close()
    assert step == 4
    assert saved.params['b'].shape == (7,)
    jax.tree.map(np.testing.assert_array_equal, saved, before.to_saved(state))
    restored = after.from_saved(saved)
    jax.tree.map(np.testing.assert_array_equal, after.to_saved(restored), saved)
    assert {len(x.sharding.device_set) for x in restored.params.values()} == {data * fsdp}
    held = {name: x.addressable_shards[0].data.shape for name, x in restored.params.items()}
    assert held == {'k': (3, 16 // fsdp), 'b': (-(-7 // fsdp),)}


def test_merge_takes_shared_leaves_and_fails_on_unexplained_names():
    initial = {'backbone': {'k': np.zeros((2, 3))}, 'decoder': {'q': np.full(2, 7.0)}}
    merged = merge_params(initial, PARAMS, only_loaded='head/', only_initial='decoder/')
    np.testing.assert_array_equal(merged['backbone']['k'], PARAMS['backbone']['k'])
    np.testing.assert_array_equal(merged['decoder']['q'], initial['decoder']['q'])
    with pytest.raises(UserError, match='head/b'):
        merge_params(initial, PARAMS, only_initial='decoder/')
    with pytest.raises(UserError, match='decoder/q'):
        merge_params(initial, PARAMS, only_loaded='head/')
    initial['backbone']['k'] = np.zeros((2, 4))
    with pytest.raises(UserError, match='backbone/k has shape'):
        merge_params(initial, PARAMS, only_loaded='head/', only_initial='decoder/')
