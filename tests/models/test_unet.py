"""U-Net: equal to nnU-Net's network, output strides, names of the parameters, forms, heads."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.topology import Topology, plan_topology
from maxquery_jax.models.backbones.unet import UNet
from maxquery_jax.models.segmenter import Segmenter
from tests.golden import make_unet

GOLDEN = pathlib.Path(make_unet.__file__).with_name('unet.npz')


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def _leaves(tree):
    """Path to leaf, paths as 'backbone/encoder_stage0/...'."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def _peer_name(path, num_stages):
    """Name of a parameter in nnU-Net's network, whose decoder counts from the coarsest stage."""
    number = int(re.search(r'\d+', path).group())
    depth = num_stages - 2 - number
    head = {
        'encoder_stage': f'encoder.stages.{number}.0.convs',
        'decoder_stage': f'decoder.stages.{depth}.convs',
        'upsample': f'decoder.transpconvs.{depth}',
        'seg_head': f'decoder.seg_layers.{depth}',
    }[re.sub(r'\d.*', '', path.removeprefix('backbone/'))]
    tail = path.removeprefix('backbone/').split('/')[1:]
    tail = [
        'weight' if part in ('kernel', 'scale') else part.removeprefix('conv') or 'conv'
        for part in tail
    ]
    return '.'.join([head, *tail])


def _peer_weight(case, path, shape, num_stages):
    """The parameter `path` of nnU-Net's network of the golden file, in our layout."""
    name = _peer_name(path, num_stages)
    if len(shape) == 1:
        return make_unet.draw_weight(case, name, shape)
    extent, cin, cout = shape[:3], shape[3], shape[4]
    if 'transpconvs' in name:
        return make_unet.draw_weight(case, name, (cin, cout, *extent)).transpose(2, 3, 4, 0, 1)
    return make_unet.draw_weight(case, name, (cout, cin, *extent)).transpose(2, 3, 4, 1, 0)


def _segmenter(case, conv_form='plain'):
    shape, features, kernels, strides, convs, classes = make_unet.CASES[case]
    topology = Topology(features=features, strides=strides, kernels=kernels)
    backbone = UNet(topology=topology, convs_per_stage=convs, conv_form=conv_form)
    model = Segmenter(backbone=backbone, num_classes=classes)
    image = make_unet.draw(f'{case}/image', shape).astype(np.float32)
    abstract = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))['params']
    flat, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    weights = [
        _peer_weight(
            case,
            jax.tree_util.keystr(path, simple=True, separator='/'),
            leaf.shape,
            topology.num_stages,
        )
        for path, leaf in flat
    ]
    return model, {'params': jax.tree_util.tree_unflatten(treedef, weights)}, image


def _random_params(model, image):
    """Parameters without running the initialisers, whose compilation is slow."""
    abstract = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.0, 0.5, leaf.shape).astype(np.float32), abstract)


@pytest.mark.parametrize('case', list(make_unet.CASES))
def test_outputs_equal_those_of_nnunet_with_the_same_weights(case, golden):
    model, params, image = _segmenter(case)
    outputs = jax.jit(lambda p, x: model.apply(p, x, train=True))(params, image)
    ours = (outputs.seg_logits, *outputs.aux_outputs)
    assert len(ours) == sum(key.startswith(f'{case}/') for key in golden) - 1
    for index, output in enumerate(ours):
        expected = golden[f'{case}/{index}']
        assert output.shape == expected.shape
        error = np.abs(np.asarray(output) - expected).max() / np.abs(expected).max()
        assert error < 1e-5, (case, index, error)
    assert sum(w.size for w in jax.tree.leaves(params)) == golden[f'{case}/parameters']


@pytest.mark.parametrize(
    ('name', 'patch', 'spacing', 'classes'),
    [
        ('pancreas', (28, 192, 320), (3.0, 0.419, 0.419), 9),
        ('liver', (40, 192, 224), (3.0, 0.76, 0.76), 7),
    ],
)
def test_the_papers_patches_give_nnunets_parameter_counts(name, patch, spacing, classes, golden):
    model = Segmenter(backbone=UNet(topology=plan_topology(patch, spacing)), num_classes=classes)
    image = jax.ShapeDtypeStruct((1, *patch, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == golden[f'{name}/parameters']


def test_scan_and_plain_give_the_same_outputs():
    results = []
    for form in ('plain', 'scan'):
        model, params, image = _segmenter('one_conv', form)
        results.append(jax.jit(model.apply)(params, image).seg_logits)
    plain, scan = results
    np.testing.assert_allclose(scan, plain, atol=1e-5 * np.abs(plain).max())
    assert (np.asarray(scan) != np.asarray(plain)).any()  # the field reaches the convolutions


def test_features_are_keyed_by_output_stride():
    topology = plan_topology((4, 16, 32), (4.0, 1.0, 1.0), base=2)
    assert topology.output_strides == (1, 2, 4)
    model = UNet(topology=topology, convs_per_stage=1)
    image = jax.ShapeDtypeStruct((2, 4, 16, 32, 3), jnp.float32)
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    shapes = {1: (2, 4, 16, 32, 2), 2: (2, 4, 8, 16, 4), 4: (2, 4, 4, 8, 8)}
    assert {stride: x.shape for stride, x in features.encoder.items()} == shapes
    assert {stride: x.shape for stride, x in features.decoder.items()} == shapes
    assert features.full.shape == shapes[1]


def test_the_coarsest_decoder_entry_is_the_encoders():
    topology = Topology(features=(2, 3), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2)
    model = UNet(topology=topology, convs_per_stage=1)
    image = jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 1))
    features = jax.jit(model.apply)(_random_params(model, image), image)
    np.testing.assert_array_equal(features.decoder[2], features.encoder[2])
    np.testing.assert_array_equal(features.decoder[1], features.full)
    assert np.abs(features.decoder[1] - features.encoder[1]).max() > 0


def test_of_two_stages_with_one_output_stride_the_coarser_is_listed():
    strides = ((1, 1, 1), (1, 2, 2), (2, 1, 1))
    topology = Topology(features=(2, 3, 4), strides=strides, kernels=((1, 1, 1),) * 3)
    assert topology.output_strides == (1, 2, 2)
    image = jax.ShapeDtypeStruct((1, 4, 4, 4, 1), jnp.float32)
    model = UNet(topology=topology, convs_per_stage=1)
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {s: x.shape for s, x in features.decoder.items()} == {
        1: (1, 4, 4, 4, 2),
        2: (1, 2, 2, 2, 4),
    }


def test_parameter_paths_shapes_and_logical_axes_are_the_checkpoint_format():
    topology = Topology(
        features=(2, 3), strides=((1, 1, 1), (1, 2, 2)), kernels=((1, 3, 3), (3, 3, 3))
    )
    model = Segmenter(backbone=UNet(topology=topology), num_classes=5)
    image = jax.ShapeDtypeStruct((1, 2, 4, 4, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    shapes = {path: leaf.shape for path, leaf in _leaves(nn.meta.unbox(params)).items()}
    expected = {}
    for unit, kernel in {
        'encoder_stage0/conv0': (1, 3, 3, 1, 2),
        'encoder_stage0/conv1': (1, 3, 3, 2, 2),
        'encoder_stage1/conv0': (3, 3, 3, 2, 3),
        'encoder_stage1/conv1': (3, 3, 3, 3, 3),
        'decoder_stage0/conv0': (1, 3, 3, 4, 2),
        'decoder_stage0/conv1': (1, 3, 3, 2, 2),
    }.items():
        expected[f'backbone/{unit}/conv/kernel'] = kernel
        for vector in ('conv/bias', 'norm/scale', 'norm/bias'):
            expected[f'backbone/{unit}/{vector}'] = kernel[-1:]
    expected['backbone/upsample0/kernel'] = (1, 2, 2, 3, 2)
    expected['backbone/upsample0/bias'] = (2,)
    expected['seg_head0/kernel'] = (1, 1, 1, 2, 5)
    expected['seg_head0/bias'] = (5,)
    assert shapes == expected
    names = nn.get_partition_spec(params)
    stage = names['backbone']['encoder_stage1']['conv0']
    assert tuple(stage['conv']['kernel']) == (None, None, None, 'features_in', 'features_out')
    assert tuple(stage['norm']['scale']) == ('norm',)
    assert tuple(names['seg_head0']['kernel'])[-1] == 'class'
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_auxiliary_outputs_only_when_training_with_deep_supervision():
    topology = plan_topology((16, 16, 16), (1.0, 1.0, 1.0), base=2)
    image = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)

    def outputs(deep_supervision, train):
        backbone = UNet(topology=topology, convs_per_stage=1)
        model = Segmenter(backbone=backbone, num_classes=3, deep_supervision=deep_supervision)
        params = jax.eval_shape(model.init, jax.random.key(0), image)
        result = jax.eval_shape(lambda p, x: model.apply(p, x, train=train), params, image)
        heads = sorted(name for name in params['params'] if name.startswith('seg_head'))
        return [z.shape for z in result.aux_outputs], heads

    assert topology.num_stages == 3
    assert outputs(True, True) == ([(1, 8, 8, 8, 3)], ['seg_head0', 'seg_head1'])
    assert outputs(True, False) == ([], ['seg_head0', 'seg_head1'])
    assert outputs(False, True) == ([], ['seg_head0'])


def test_bfloat16_computes_in_bfloat16_and_returns_float32_logits():
    topology = Topology(features=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2)
    image = jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 1))

    def logits(dtype):
        backbone = UNet(topology=topology, convs_per_stage=1, dtype=dtype)
        features = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)[0]
        assert features.full.dtype == dtype
        model = Segmenter(backbone=backbone, num_classes=3)
        return jax.jit(model.apply)(_random_params(model, image), image).seg_logits

    half, full = logits(jnp.bfloat16), logits(jnp.float32)
    assert half.dtype == full.dtype == jnp.float32
    difference = np.abs(half - full).max() / np.abs(full).max()
    assert 1e-6 < difference < 0.1


def test_an_image_that_does_not_fit_the_strides_names_side_and_stride():
    topology = plan_topology((16, 16, 16), (1.0, 1.0, 1.0), base=2)
    model = UNet(topology=topology)
    image = jax.ShapeDtypeStruct((1, 16, 18, 16, 1), jnp.float32)
    with pytest.raises(UserError, match=r'side 18 along y .* stride 4; use 16 or 20'):
        jax.eval_shape(model.init, jax.random.key(0), image)
