"""Validation: the same counts on any number of devices, of rows that every process reads itself."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import maxquery
from maxquery_jax.data.pipeline import build_batches
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.parallel.mesh import make_mesh
from maxquery_jax.train import validation
from maxquery_jax.train.steps import exclusive_masks, make_eval_step
from maxquery_jax.train.validate import validate
from maxquery_jax.typing import SegmentationOutputs
from tests.train.test_data import write_store

CONFIG = ConfigDict(
    {
        'data': {'batch_size': 8},
        'checkpoint': {'best': 'dice/cyst'},
        'validation': {'every_steps': 3, 'batches': 2},
    }
)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'checkpoint.keep': 0}, 'checkpoint.keep must be at least 1'),
        ({'checkpoint.every_steps': -1}, 'checkpoint.every_steps must be 0'),
        ({'validation.every_steps': -5}, 'validation.every_steps must be 0'),
        ({'checkpoint.best': 'dice_mean', 'validation.batches': 0}, 'needs validation.batches'),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    config = maxquery.get_config('demo')
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        validate(config)


class Threshold:
    """A network that calls dense voxels liver."""

    def apply(self, params, image, train):
        dense = (image[..., :1] > 100).astype(jnp.float32)
        return SegmentationOutputs(seg_logits=jnp.concatenate([1 - dense, dense], -1))


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return PatchStore(write_store(tmp_path_factory.mktemp('v') / 's', num_cases=5, num_val=3))


@pytest.fixture
def make(store):
    stage = types.SimpleNamespace(
        name='only', patch_size=(8, 16, 16), total_steps=7,
        eval_step=make_eval_step(Threshold(), lambda batch, key: batch, exclusive_masks(4)),
    )  # fmt: skip
    read = []

    def batches(config, split, **options):
        read.append(options)
        return build_batches([store], split=split, batch_size=8, seed=0, **options)

    def make(**mesh):
        data = types.SimpleNamespace(
            manifest=store.manifest, num_cases=lambda split: 3, batches=batches
        )
        return validation.Validator(CONFIG, stage, data, make_mesh(**mesh)), read

    return make


def test_counts_do_not_depend_on_the_mesh(make):
    one, _ = make(data=1)
    expected = one.run({}, 3)
    assert expected['dice_mean'] is not None and 0 < expected['dice/liver'] < 1
    assert (expected['step'], expected['stage'], expected['split']) == (3, 'only', 'val')
    for sizes in ({'data': 8}, {'data': 2, 'fsdp': 4}, {'data': 2, 'spatial': 4}):
        several, _ = make(**sizes)
        assert several.run({}, 3) == expected


def test_each_process_reads_its_rows(make, monkeypatch):
    """The second of two processes, whose rows alone would make a batch of four."""
    monkeypatch.setattr(validation.sharding, 'process_rows', lambda mesh, size: (4, 5, 6, 7))
    rows = []
    monkeypatch.setattr(
        validation.sharding, 'put_batch', lambda batch, mesh: rows.append(batch) or batch
    )
    validator, read = make(data=8)
    validator.run({}, 3)
    assert read[-1]['rows'] == (4, 5, 6, 7)
    assert [len(batch['image']) for batch in rows] == [4, 4]


def test_dice_is_that_of_the_batches(make, store):
    validator, _ = make(data=1)
    with build_batches(
        [store], split='val', batch_size=8, seed=0, crop_size=(8, 16, 16), oversample_rate=1.0
    ) as stream:
        batches = [next(stream) for _ in range(2)]
    image, label = (
        np.concatenate([batch[name] for batch in batches]) for name in ('image', 'label')
    )
    hit = image[..., 0] > 100
    expected = 2 * (hit & (label == 1)).sum() / (hit.sum() + (label == 1).sum())
    assert validator.run({}, 3)['dice/liver'] == pytest.approx(expected, abs=1e-12)


def test_due_at_its_own_steps_and_at_the_end(make):
    validator, _ = make(data=1)
    assert [step for step in range(1, 8) if validator.is_due(step)] == [3, 6, 7]
