"""`build_model`: what the configuration becomes, and one line for each mistake in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from ml_collections import ConfigDict

from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.unet import UNetSegmenter
from maxquery_jax.models.build import build_model
from maxquery_jax.models.maxquery import MaxQuery

PATCH, SPACING = (8, 16, 16), (2.0, 2.0, 2.0)


@pytest.fixture
def cfg() -> ConfigDict:
    return ConfigDict(
        {
            'dtype': 'float32',
            'backbone': {
                'name': 'unet',
                'base_features': 4,
                'max_features': 8,
                'convs_per_stage': 1,
                'max_stages': 0,
                'deep_supervision': True,
            },
            'decoder': {
                'num_queries': 6,
                'query_groups': (2, 1, 3),
                'output_strides': (4, 2),
                'query_dim': 16,
                'embed_dim': 8,
                'num_heads': 2,
                'ffn_dim': 16,
                'drop_path': 0.2,
                'deep_supervision': True,
                'pixel_stride': (1, 1, 1),
                'self_attention_input': 'pre',
                'kmeans_reduction': 'sum',
                'pixel_norm': 'instance',
            },
        }
    )


def build(cfg, objective='maxquery', **kwargs):
    options = {'num_classes': 3, 'patch_size': PATCH, 'spacing_mm': SPACING, **kwargs}
    return build_model(cfg, objective=objective, **options)


def abstract_init(model):
    image = jnp.zeros((1, *PATCH, 1))
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    return jax.eval_shape(lambda r: model.init(r, image, train=True), rngs)['params']


def test_maxquery_on_the_unet_runs(cfg):
    model = build(cfg)
    assert isinstance(model, MaxQuery)
    image = np.random.default_rng(0).normal(size=(1, *PATCH, 1)).astype(np.float32)
    rng = np.random.default_rng(1)  # drawn without compiling `init`
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), meta.unbox(abstract_init(model))
    )
    outputs = jax.jit(model.apply)({'params': params}, image)
    assert outputs.seg_logits.shape == (1, *PATCH, 3)
    assert outputs.final.query_response.shape == (1, 6, *PATCH)
    assert np.isfinite(outputs.seg_logits).all()


def test_fields_reach_the_model(cfg):
    cfg.dtype = 'bfloat16'
    cfg.decoder.pixel_stride = (1, 2, 2)
    cfg.decoder.self_attention_input = 'post'
    cfg.decoder.kmeans_reduction = 'mean'
    cfg.decoder.pixel_norm = 'l2'
    model = build(cfg, conv_form='scan')
    assert model.decoder.dtype == jnp.bfloat16
    assert model.backbone.dtype == jnp.bfloat16
    assert model.backbone.conv_form == 'scan'
    assert model.pixel_stride == (1, 2, 2)
    assert model.decoder.output_strides == (4, 2)
    decoder = model.decoder
    assert (decoder.self_attention_input, decoder.kmeans_reduction) == ('post', 'mean')
    assert model.decoder.pixel_norm == 'l2'
    assert decoder.drop_path == 0.2


def test_both_objectives_share_the_backbones_parameters(cfg):
    segmenter = build(cfg, 'segmentation')
    assert isinstance(segmenter, UNetSegmenter)
    one, two = abstract_init(segmenter)['backbone'], abstract_init(build(cfg))['backbone']
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.map(lambda x: x.shape, one) == jax.tree.map(lambda x: x.shape, two)


def test_max_stages_caps_the_topology(cfg):
    free = build(cfg, 'segmentation').backbone.topology.num_stages
    cfg.backbone.max_stages = 2
    assert free > 2
    assert build(cfg, 'segmentation').backbone.topology.num_stages == 2


def test_the_papers_patches_have_the_papers_strides(cfg):
    """Sec. 4.2: strides 32, 16, 8 and 4 exist for the pancreas and the liver patch."""
    cfg.decoder.output_strides = (32, 16, 8, 4)
    for patch, in_plane in (((28, 192, 320), 0.419), ((40, 192, 224), 0.760)):
        model = build(cfg, patch_size=patch, spacing_mm=(3.0, in_plane, in_plane))
        assert set(model.decoder.output_strides) <= set(model.backbone.topology.output_strides)


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('dtype', 'float16', ['float16', 'float32, bfloat16']),
        ('backbone.name', 'resnet', ['resnet', 'unet']),
        ('decoder.query_groups', (2, 1, 4), ['(2, 1, 4)', 'num_queries 6']),
        ('decoder.query_groups', (3, 3), ['(3, 3)', 'three']),
        ('decoder.query_groups', (3, 0, 3), ['(3, 0, 3)', 'positive']),
        ('decoder.output_strides', (32, 4, 2), ['stride 32', '4, 2, 1']),
        ('decoder.query_dim', 18, ['query_dim 18', '(4)']),
        ('decoder.drop_path', 1.0, ['drop_path 1.0']),
        ('decoder.pixel_stride', (1, 3, 1), ['(1, 3, 1)', '(8, 16, 16)']),
        ('decoder.pixel_stride', (1, 0, 1), ['(1, 0, 1)']),
        ('decoder.self_attention_input', 'middle', ['middle', 'pre, post']),
        ('decoder.kmeans_reduction', 'max', ['max', 'sum, mean']),
        ('decoder.pixel_norm', 'batch', ['batch', 'instance, l2']),
    ],
)
def test_mistakes_are_named_in_one_line(cfg, field, value, words):
    with cfg.ignore_type():
        *path, last = field.split('.')
        node = cfg[path[0]] if path else cfg
        node[last] = value
    with pytest.raises(UserError) as error:
        build(cfg)
    message = str(error.value)
    assert '\n' not in message
    assert field in message
    for word in words:
        assert word in message


def test_unknown_objective_and_too_few_classes(cfg):
    with pytest.raises(UserError, match='zept.*segmentation, maxquery'):
        build(cfg, 'zept')
    with pytest.raises(UserError, match='1 known class'):
        build(cfg, num_classes=1)
