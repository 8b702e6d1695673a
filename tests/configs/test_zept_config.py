"""ZePT's config: the paper's sizes, words that build, mistakes that are named."""

import jax
import jax.numpy as jnp
import pytest

from configs import zept
from maxquery_jax.errors import UserError
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.state import abstract_params, count_parameters
from maxquery_jax.train.validate import validate


def shapes(model, size):
    image = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    init = lambda key, x: model.init_with_output({'params': key, 'dropout': key}, x, train=True)[0]  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0), image)


def test_paper_sizes():
    config = zept.get_config().lock()
    validate(config)
    assert config.data.patch_size == (96, 96, 96) and tuple(config.stages) == ('stage1', 'stage2')
    assert (config.stage1.epochs, config.stage1.optim.name) == (1000, 'adamw')
    outputs, count = {}, {}
    for stage in config.stages:
        model = make_model(config, config[stage].objective, 28, (1.5, 1.5, 1.5), 'plain')
        outputs[stage] = shapes(model, config.data.patch_size)
        count[stage] = count_parameters(abstract_params(model, (1, 96, 96, 96, 1))) / 1e6
    assert outputs['stage1'].mask_logits.shape == (1, 25, 96, 96, 96)
    assert outputs['stage2'].mask_logits.shape == (1, 45, 96, 96, 96)
    assert outputs['stage2'].knowledge_queries.shape == (1, 45, 384)  # MiniLM's width
    assert 80 < count['stage1'] < count['stage2'] < 130


@pytest.mark.parametrize('word', sorted(set(zept.VARIANTS) - {'paper', 'demo'}))
def test_words_build(word):
    config = zept.get_config(f'demo,{word}').lock()
    validate(config)
    model = make_model(config, config[config.stages[-1]].objective, 28, (5.0, 5.0, 5.0), 'plain')
    outputs = shapes(model, config.data.patch_size)
    logits = getattr(outputs, 'mask_logits', None)
    if word == 'synthcp':
        assert outputs.fake.shape == (1, *config.data.patch_size, 1)
    elif logits is None:
        assert outputs.seg_logits.shape[-1] == 28
    else:
        assert logits.shape[1] == 11 + (7 if word == 'released' else 20)
    assert config.variant == f'demo,{word}'


def test_seen_tumours_of_a_word():
    config = zept.get_config('demo,seen_lung_liver')
    unseen = config.data.phantom.ood_labels
    assert set(unseen) == {'kidney_tumor', 'pancreas_tumor', 'colon_tumor', 'hepatic_vessel_tumor'}
    assert zept.get_config('demo,supervised').data.phantom.ood_labels == ()


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('output_strides', (64, 32), r'model\.zept\.output_strides .* no features of stride 64'),
        ('num_heads', 5, r'model\.zept\.num_heads 5 must divide the 64 channels'),
        ('prompt_source', 'nowhere', r'model\.zept: prompt_source must be one of'),
        ('temperature', 0.0, r'model\.zept\.temperature 0\.0 must be positive'),
        ('mlp_ratio', 0, r'model\.zept\.mlp_ratio 0 must be positive'),
        ('organs', ('lever',), r"model\.zept\.organs: 'lever' is no organ"),
        ('knowledge', 'nothing', r"knowledge embeddings 'nothing' are unknown"),
    ],
)
def test_mistakes_are_named(field, value, message):
    config = zept.get_config('demo')
    config.model.zept[field] = value
    with pytest.raises(UserError, match=message):
        make_model(config, 'zept_stage2', 28, (5.0, 5.0, 5.0), 'plain')
