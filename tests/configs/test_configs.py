"""Every config builds, states the paper's numbers and refuses what makes no sense."""

import math

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import maxquery
from maxquery_jax.errors import UserError
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.validate import validate

SPACING = {'pancreas': (3.0, 0.419, 0.419), 'liver': (3.0, 0.76, 0.76)}


@pytest.mark.parametrize('variant', ['pancreas', 'liver', 'demo', 'small', 'demo,no_qd'])
def test_variants_validate_and_trace(variant):
    config = maxquery.get_config(variant).lock()
    validate(config)
    spacing = SPACING.get(variant, (5.0, 4.0, 4.0))
    for stage in config.stages:
        model = make_model(config, config[stage].objective, 7, spacing, 'plain')
        image = jax.ShapeDtypeStruct((1, *config.data.patch_size, 1), jnp.float32)
        outputs = jax.eval_shape(
            lambda key, x, m=model: m.init_with_output(
                {'params': key, 'dropout': key}, x, train=True
            )[0],
            jax.random.key(0),
            image,
        )
        assert outputs.seg_logits.shape == (1, *config.data.patch_size, 7)
        assert outputs.seg_logits.dtype == jnp.float32


def test_paper_numbers():
    config = maxquery.get_config('pancreas')
    tune = config.finetune
    assert config.data.patch_size == (28, 192, 320) and config.data.batch_size == 2
    assert maxquery.get_config('liver').data.patch_size == (40, 192, 224)
    assert (config.pretrain.epochs, tune.epochs, tune.optim.frozen_epochs) == (1000, 200, 50)
    assert (tune.optim.name, tune.optim.learning_rate) == ('radam', 1e-4)
    assert tune.optim.backbone_multiplier == 0.1 and tune.loss.qd_weight == 0.1
    decoder = config.model.decoder
    assert decoder.num_queries == 32 and tuple(decoder.query_groups) == (16, 4, 12)
    assert tuple(decoder.output_strides) == (32, 16, 8, 4)
    assert (decoder.num_heads, decoder.drop_path) == (8, 0.2)


def test_no_qd_changes_one_number():
    full, ablated = maxquery.get_config('demo'), maxquery.get_config('demo,no_qd')
    assert ablated.finetune.loss.qd_weight == 0.0
    ablated.finetune.loss.qd_weight = full.finetune.loss.qd_weight
    ablated.variant = full.variant
    assert full.to_json() == ablated.to_json()


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'pancreas'"):
        maxquery.get_config('pancras')


def set_field(config: ConfigDict, key: str, value) -> None:
    *parents, last = key.split('.')
    for name in parents:
        config = config[name]
    config[last] = value


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('finetune.optim.learning_rate', -1e-4, 'finetune.optim: learning_rate'),
        ('pretrain.optim.learning_rate', math.nan, 'pretrain.optim: learning_rate'),
        ('data.patch_size', (28, 192), 'data.patch_size must be 3 positive integers'),
        ('data.patch_size', (28, 0, 320), 'data.patch_size'),
        ('data.batch_size', 0, 'data.batch_size'),
        ('data.oversample_rate', 1.5, 'data.oversample_rate'),
        ('model.decoder.query_groups', (16, 4, 11), 'add up to 31, num_queries is 32'),
        ('model.decoder.drop_path', 1.0, 'drop_path'),
        ('model.backbone.dropout_rate', 1.0, 'dropout_rate'),
        ('model.backbone.dropout_passes', 0, 'dropout_passes'),
        ('model.synthcp.base_features', 0, 'model.synthcp.base_features'),
        ('pretrain.accumulate', 3, 'does not divide'),
        ('finetune.loss.qd_weight', -0.1, 'finetune.loss.qd_weight'),
        ('finetune.objective', 'segment', 'segmentation, maxquery'),
        ('stages', ('pretrain', 'stage3'), 'stage3'),
        ('seed', -1, 'seed'),
        ('finetune.optim.frozen_epochs', 500, 'frozen_epochs'),
    ],
)
def test_values_out_of_range_are_named(key, value, message):
    config = maxquery.get_config('pancreas')
    set_field(config, key, value)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_a_patch_that_the_strides_cannot_divide_is_named():
    config = maxquery.get_config('pancreas')
    config.data.patch_size = (28, 190, 320)
    with pytest.raises(UserError, match='190'):
        make_model(config, 'segmentation', 9, SPACING['pancreas'], 'plain')
