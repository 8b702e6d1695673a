"""Swin UNETR: equal to MONAI's with its weights, sizes, names of the parameters."""

import ast
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.swin_transformer import SwinTransformer
from maxquery_jax.models.backbones.swin_unetr import SwinUNETR
from maxquery_jax.models.backbones.swin_weights import params_from_monai
from maxquery_jax.models.segmenter import Segmenter
from tests.golden import make_swin_unetr

GOLDEN = pathlib.Path(make_swin_unetr.__file__).with_name('swin_unetr.npz')


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def _backbone(case):
    options = {**make_swin_unetr.OPTIONS, **make_swin_unetr.CASES[case][0]}
    return SwinUNETR(
        feature_size=options['feature_size'],
        depths=options['depths'],
        num_heads=options['num_heads'],
        window_size=options['window_size'],
        qkv_bias=options.get('qkv_bias', True),
        normalize=options.get('normalize', True),
        merging=options['downsample'],
        residual_conv=options.get('use_v2', False),
    )


def _monai_weights(case, golden):
    return {
        str(name): make_swin_unetr.draw_weight(case, str(name), ast.literal_eval(str(shape)))
        for name, shape in zip(golden[f'{case}/names'], golden[f'{case}/shapes'], strict=True)
    }


def _image(case):
    shape = make_swin_unetr.CASES[case][1]
    return make_swin_unetr.draw(f'{case}/image', shape).astype(np.float32)


def _check(case, name, output, golden):
    assert output.shape == tuple(golden[f'{case}/{name}/shape']), name
    expected = golden[f'{case}/{name}']
    error = np.abs(make_swin_unetr.sample(case, name, np.asarray(output)) - expected).max()
    # Instance norm over the 2 (16) voxels of the coarsest levels divides rounding by small numbers.
    bound = {'decoder32': 1e-3, 'decoder16': 1e-4}.get(name, 2e-5)
    assert error < bound * np.abs(expected).max(), (case, name, error / np.abs(expected).max())


def _run(function, *args):
    """Compiles without optimisation, which takes half the time."""
    options = {'xla_backend_optimization_level': 0}
    return jax.jit(function).lower(*args).compile(compiler_options=options)(*args)


def _shapes(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape for path, leaf in flat
    }


@pytest.mark.parametrize('case', ['merging', 'mergingv2', 'legacy'])
def test_every_level_equals_monais_with_the_same_weights(case, golden):
    model = Segmenter(backbone=_backbone(case), num_classes=2, deep_supervision=False)
    params, image = params_from_monai(_monai_weights(case, golden)), _image(case)
    abstract = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))['params']
    assert _shapes(params) == _shapes(abstract)
    assert sum(w.size for w in jax.tree.leaves(params)) == golden[f'{case}/parameters']
    features = _run(model.backbone.apply, {'params': params['backbone']}, image)
    for stride, output in features.encoder.items():
        _check(case, f'encoder{stride}', output, golden)
    for stride, output in features.decoder.items():
        _check(case, f'decoder{stride}', output, golden)
    assert sorted(features.encoder) == [2, 4, 8, 16, 32]
    assert sorted(features.decoder) == [1, 2, 4, 8, 16, 32]
    head = params['seg_head0']
    logits = np.asarray(features.full) @ head['kernel'][0, 0, 0] + head['bias']
    _check(case, 'logits', logits, golden)


def test_sides_that_nothing_divides_are_padded_as_monais_transformer_pads(golden):
    options = {**make_swin_unetr.OPTIONS, **make_swin_unetr.CASES['odd'][0]}
    model = SwinTransformer(
        features=options['feature_size'],
        depths=options['depths'],
        num_heads=options['num_heads'],
        window_size=options['window_size'],
    )
    weights = {k: v for k, v in _monai_weights('odd', golden).items() if k.startswith('swinViT')}
    params = params_from_monai(weights)['backbone']['swin']
    states = _run(model.apply, {'params': params}, _image('odd'))
    for index, state in enumerate(states):
        _check('odd', f'encoder{2 ** (index + 1)}', state, golden)


@pytest.mark.parametrize(('name', 'classes'), make_swin_unetr.PAPER.items())
def test_the_full_size_network_has_monais_parameter_count(name, classes, golden):
    model = Segmenter(backbone=SwinUNETR(), num_classes=classes, deep_supervision=False)
    image = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == golden[f'{name}/parameters']
    assert round(count / 1e6, 2) == 62.19


def test_the_demos_anisotropic_patch_keeps_its_size():
    image = jax.ShapeDtypeStruct((2, 24, 48, 48, 3), jnp.float32)
    model = SwinUNETR(feature_size=12, window_size=4)
    features, params = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    sizes = {1: (24, 48, 48), 2: (12, 24, 24), 4: (6, 12, 12), 8: (3, 6, 6), 16: (2, 3, 3)}
    sizes[32] = (1, 2, 2)
    channels = {1: 12, 2: 12, 4: 24, 8: 48, 16: 96, 32: 192}
    assert model.output_strides == tuple(sizes)
    for stride, x in features.decoder.items():
        assert x.shape == (2, *sizes[stride], channels[stride])
        assert stride == 1 or features.encoder[stride].shape == x.shape
    assert features.full.shape == (2, 24, 48, 48, 12)
    names = nn.get_partition_spec(params)['params']
    block = names['swin']['stage0']['block0']
    assert tuple(block['attention']['qkv']['kernel']) == ('features_in', 'features_out')
    up = names['decoder_block0']['up']['kernel']
    assert tuple(up) == (None, None, None, 'features_in', 'features_out')


def test_a_patch_with_one_coarsest_voxel_is_refused():
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), jnp.float32)
    with pytest.raises(UserError, match=r'(32, 32, 32).*more than 32 voxels.*depths'):
        jax.eval_shape(SwinUNETR().init, jax.random.key(0), image)


def test_the_transformers_weights_alone_and_foreign_names():
    weights = {
        'module.layers2.0.blocks.1.mlp.fc2.weight': np.arange(6).reshape(2, 3),
        'layers1.0.blocks.0.attn.relative_position_index': np.zeros(3),
        'module.patch_embed.proj.weight': np.arange(16).reshape(2, 1, 2, 2, 2),
    }
    swin = params_from_monai(weights)['backbone']['swin']
    kernel = swin['stage1']['block1']['mlp']['layer1']['kernel']
    np.testing.assert_array_equal(kernel, [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(swin['patch_embed']['kernel'][:, 1], np.arange(8, 16))
    with pytest.raises(UserError, match=r'encoder\.conv\.weight'):
        params_from_monai({'encoder.conv.weight': np.zeros(1)})
