"""Checkpoints: round trip, damage, dtype, merging between stages."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.train import checkpoint
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
    with pytest.raises(UserError, match='float32 in the checkpoint and bfloat16'):
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


def test_merge_takes_shared_leaves_and_fails_on_unexplained_names():
    initial = {'backbone': {'k': np.zeros((2, 3))}, 'decoder': {'q': np.full(2, 7.0)}}
    merged = checkpoint.merge_params(initial, PARAMS, only_loaded='head/', only_initial='decoder/')
    np.testing.assert_array_equal(merged['backbone']['k'], PARAMS['backbone']['k'])
    np.testing.assert_array_equal(merged['decoder']['q'], initial['decoder']['q'])
    with pytest.raises(UserError, match='head/b'):
        checkpoint.merge_params(initial, PARAMS, only_initial='decoder/')
    with pytest.raises(UserError, match='decoder/q'):
        checkpoint.merge_params(initial, PARAMS, only_loaded='head/')
    initial['backbone']['k'] = np.zeros((2, 4))
    with pytest.raises(UserError, match='backbone/k has shape'):
        checkpoint.merge_params(initial, PARAMS, only_loaded='head/', only_initial='decoder/')
