"""`build_model`: what the configuration becomes, and one line for each mistake in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from ml_collections import ConfigDict

from maxquery_jax.errors import UserError
from maxquery_jax.models.build import build_model
from maxquery_jax.models.maxquery import MaxQuery
from maxquery_jax.models.segmenter import Segmenter

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
                'feature_size': 4,
                'window_size': 2,
                'depths': (2, 1),
                'num_heads': (1, 2),
                'patch_merging': 'merging',
                'residual_conv': False,
                'transformer_layers': 2,
                'transformer_dim': 12,
                'transformer_heads': 3,
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
    assert isinstance(segmenter, Segmenter)
    one, two = abstract_init(segmenter)['backbone'], abstract_init(build(cfg))['backbone']
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.map(lambda x: x.shape, one) == jax.tree.map(lambda x: x.shape, two)


@pytest.mark.parametrize('objective', ['segmentation', 'maxquery'])
@pytest.mark.parametrize('backbone', ['unet', 'swin_unetr', 'transunet'])
def test_every_backbone_serves_every_objective_at_demo_size(cfg, backbone, objective):
    cfg.backbone.update({'name': backbone, 'depths': (2, 2, 2), 'num_heads': (1, 2, 4)})
    cfg.decoder.output_strides = (8, 4)
    patch = (24, 48, 48)
    model = build(cfg, objective, patch_size=patch, spacing_mm=(5.0, 4.0, 4.0))
    image = jax.ShapeDtypeStruct((2, *patch, 3), jnp.float32)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    outputs, variables = jax.eval_shape(
        lambda rngs, image: model.init_with_output(rngs, image, train=True), rngs, image
    )
    assert outputs.seg_logits.shape == (2, *patch, 3)
    assert outputs.aux_outputs
    assert 'backbone' in variables['params']
    if objective == 'segmentation':
        sizes = [tuple(-(-n // 2**i) for n in patch) for i in (1, 2, 3)]
        assert [z.shape[1:4] for z in outputs.aux_outputs[:2]] == sizes[:2]
    boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    assert all(isinstance(box, meta.AxisMetadata) for box in boxes)  # logical axes everywhere


def _loss(outputs):
    """Depends on every output, and on every voxel and class differently."""
    rng = np.random.default_rng(3)
    leaves = jax.tree.leaves(outputs)
    return sum(jnp.sum(x * rng.normal(size=x.shape).astype(np.float32)) for x in leaves)


@pytest.mark.parametrize(
    ('backbone', 'objective'),
    [('swin_unetr', 'segmentation'), ('transunet', 'segmentation'), ('swin_unetr', 'maxquery')],
)
def test_every_parameter_gets_a_gradient(cfg, backbone, objective):
    cfg.backbone.update({'name': backbone, 'residual_conv': True})
    cfg.decoder.drop_path = 0.0
    model = build(cfg, objective)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *PATCH, 1)).astype(np.float32)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), meta.unbox(abstract_init(model))
    )

    def loss(params):
        return _loss(model.apply({'params': params}, image, train=True))

    options = {'xla_backend_optimization_level': 0}  # compiles in half the time
    gradients = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options=options)(params)
    flat, _ = jax.tree_util.tree_flatten_with_path(gradients)
    names = {jax.tree_util.keystr(k, simple=True, separator='/'): np.asarray(g) for k, g in flat}
    assert all(np.isfinite(g).all() for g in names.values())
    # Softmax cancels what a bias of the keys adds.
    dead = {name for name, g in names.items() if not np.abs(g).max() > 0}
    assert not {name for name in dead if not name.endswith('key/bias')}


def test_the_backbones_fields_reach_it(cfg):
    cfg.backbone.update({'name': 'swin_unetr', 'patch_merging': 'legacy', 'residual_conv': True})
    swin = build(cfg, 'segmentation', conv_form='scan').backbone
    assert (swin.feature_size, swin.window_size) == (4, 2)
    assert (swin.depths, swin.num_heads) == ((2, 1), (1, 2))
    assert (swin.merging, swin.residual_conv, swin.conv_form) == ('legacy', True, 'scan')
    cfg.backbone.name = 'transunet'
    trans = build(cfg, 'segmentation').backbone
    assert trans.grid == (4, 4, 4)  # 8 x 16 x 16 by the stride (2, 4, 4)
    assert (trans.transformer_layers, trans.transformer_dim, trans.transformer_heads) == (2, 12, 3)


@pytest.mark.parametrize(
    ('backbone', 'field', 'value', 'words'),
    [
        ('swin_unetr', 'depths', (2,), ['(2,)', '(1, 2)']),
        ('swin_unetr', 'num_heads', (1, 3), ['num_heads[1] 3', '8 channels']),
        ('swin_unetr', 'window_size', 1, ['window_size 1', '2']),
        ('swin_unetr', 'patch_merging', 'v1', ['v1', 'legacy']),
        ('swin_unetr', 'dropout_rate', 0.5, ['dropout_rate 0.5', 'transunet']),
        ('transunet', 'transformer_heads', 5, ['transformer_heads 5', '12 channels']),
        ('transunet', 'transformer_layers', 0, ['transformer_layers', 'positive']),
    ],
)
def test_mistakes_in_the_backbone_are_named(cfg, backbone, field, value, words):
    cfg.backbone.name = backbone
    with cfg.ignore_type(), cfg.unlocked():
        cfg.backbone[field] = value
    with pytest.raises(UserError) as error:
        build(cfg, 'segmentation')
    assert all(word in str(error.value) for word in words), error.value


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


@pytest.mark.parametrize('field', ['conv_form', 'remat'])
def test_unknown_forms_are_named(cfg, field):
    options = {'conv_form': 'fast'} if field == 'conv_form' else {}
    cfg.remat = 'all' if field == 'remat' else 'none'
    with pytest.raises(UserError, match=f"model.{field} is '(fast|all)'; allowed: "):
        build(cfg, **options)
