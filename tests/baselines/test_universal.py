"""The Universal Model against loops; texts, patches and annotations act where they must."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta

from maxquery_jax import axes
from maxquery_jax.baselines.universal import (
    TextVectors,
    UniversalModel,
    UniversalOutputs,
    num_dynamic,
    num_groups,
    universal_objective,
)
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.models.backbones.swin_unetr import SwinUNETR
from maxquery_jax.models.maxquery import average_pool
from maxquery_jax.typing import PixelFeatures

SHAPE, CLASSES, T = (2, 4, 4), 3, 5
DEEP, FULL, FEATURES, WIDTH = 24, 6, 7, 4  # 24 channels have 12 groups, 6 have 6


class PoolingBackbone(nn.Module, kw_only=True):
    """Pools the image to strides 2 and 1 and mixes channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train=False):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes.DENSE_KERNEL)

        def mix(stride, width, name):
            linear = nn.Dense(width, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)
            return linear(average_pool(image, (stride,) * 3))

        encoder = {1: mix(1, 3, 'e1'), 2: mix(2, DEEP, 'e2')}
        return PixelFeatures(encoder=encoder, decoder=encoder, full=mix(1, FULL, 'full'))


def vectors(seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(CLASSES, T)).astype(np.float32)


def build(text=None, **kwargs) -> UniversalModel:
    text = TextVectors(vectors() if text is None else text)
    sizes = {'features': FEATURES, 'dynamic_features': WIDTH}
    return UniversalModel(**{'backbone': PoolingBackbone(), 'text': text, **sizes, **kwargs})


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *SHAPE, 2)).astype(np.float32)


def apply(model, params, image, **kwargs) -> Any:
    return model.apply({'params': params}, image, **kwargs)


def abstract_params(model, image):
    return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.fixture(scope='module')
def params(image):
    """Random parameters drawn without compiling `init`; norms near their start."""
    rng = np.random.default_rng(2)

    def one(path, leaf):
        values = rng.normal(0, 1, leaf.shape)
        values = 1.5 * values / leaf.shape[0] ** 0.5 if len(leaf.shape) == 2 else 0.3 * values
        return (values + ('scale' in path[-1].key)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, meta.unbox(abstract_params(build(), image)))


@pytest.fixture(scope='module')
def run(params):
    """Masks of an image and texts, compiled once."""
    return jax.jit(lambda image, text: apply(build(), params, image, text=text).mask_logits)


@pytest.fixture(scope='module')
def masks(run, image) -> np.ndarray:
    return np.asarray(run(image, vectors()))


def linear(p, x):
    return x @ np.asarray(p['kernel'], float) + np.asarray(p['bias'], float)


def loop_norm_relu(p, x, groups):
    """Group norm and ReLU of one sample [..., C], group by group."""
    out = np.zeros(x.shape)
    size = x.shape[-1] // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        values = np.asarray(x[..., part], float)
        mean = sum(values.ravel()) / values.size
        variance = sum((values.ravel() - mean) ** 2) / values.size
        out[..., part] = (values - mean) / np.sqrt(variance + 1e-5)
    return np.maximum(out * p['scale'] + p['bias'], 0)


def loop_forward(params, features, text):
    """Class by class and voxel by voxel, with the sizes of a convolution read off one by one."""
    full, deepest = np.asarray(features.full), np.asarray(features.encoder[2])
    out = np.zeros((full.shape[0], len(text), *full.shape[1:4]))
    for b, c in np.ndindex(out.shape[:2]):
        pixels = linear(params['pixel'], loop_norm_relu(params['pixel_norm'], full[b], FULL))
        patch = loop_norm_relu(params['global_norm'], deepest[b], 12).reshape(-1, DEEP).mean(0)
        patch = linear(params['global_projection'], patch)
        word = np.maximum(linear(params['text_projection'], text[c]), 0)
        numbers = list(linear(params['controller'], np.concatenate([patch, word])))
        weights = [
            [[numbers.pop(0) for _ in range(WIDTH)] for _ in range(n)] for n in (WIDTH, WIDTH, 1)
        ]
        biases = [[numbers.pop(0) for _ in range(n)] for n in (WIDTH, WIDTH, 1)]
        assert not numbers
        for voxel in np.ndindex(*full.shape[1:4]):
            x = pixels[voxel]
            for i in range(3):
                x = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weights[i]]
                x = [v + bias for v, bias in zip(x, biases[i], strict=True)]
                x = [max(v, 0) for v in x] if i < 2 else x
            out[(b, c, *voxel)] = x[0]
    return out


def test_forward_matches_loops(params, image, masks):
    backbone = PoolingBackbone()
    features = backbone.apply({'params': params['backbone']}, image)
    expected = loop_forward(params, features, vectors())
    assert (expected.std(axis=(2, 3, 4)) > 0.05).all()
    np.testing.assert_allclose(masks, expected, rtol=1e-3, atol=1e-4)


def test_own_texts_are_the_default(params, image, masks):
    own = jax.jit(build().apply)({'params': params}, image)
    assert isinstance(own, UniversalOutputs)
    np.testing.assert_allclose(own.mask_logits, masks, rtol=1e-4, atol=1e-5)


def test_a_mask_depends_on_its_own_text_alone(run, image, masks):
    text = vectors()
    text[1] = vectors(seed=7)[1]
    other = np.asarray(run(image, text))
    assert (np.abs(other - masks).max(axis=(0, 2, 3, 4)) > 1e-3).tolist() == [False, True, False]
    for c in range(CLASSES):  # the same pixels, yet not the same mask
        assert np.abs(masks[:, c] - masks[:, (c + 1) % CLASSES]).max() > 0.1
    same = np.asarray(run(image, np.stack([text[0], text[0], text[2]])))
    np.testing.assert_array_equal(same[:, 0], same[:, 1])


class SplitBackbone(nn.Module):
    """Full-resolution features are some channels of the image, the coarsest ones are the others."""

    @nn.compact
    def __call__(self, image, *, train=False):
        encoder = {2: average_pool(image[..., FULL:], (2, 2, 2))}
        return PixelFeatures(encoder=encoder, decoder=encoder, full=image[..., :FULL])


def test_dynamic_convolutions_depend_on_the_patch(params):
    """All masks of a voxel change with a far one, through the global feature alone."""
    model = build(backbone=SplitBackbone())
    head = {name: values for name, values in params.items() if name != 'backbone'}
    image = np.random.default_rng(3).normal(size=(1, *SHAPE, FULL + DEEP)).astype(np.float32)
    changed = image.copy()
    changed[:, :, 2:, 2:, FULL:] += np.arange(DEEP)
    run = jax.jit(lambda image: apply(model, head, image).mask_logits)
    one, two = np.asarray(run(image)), np.asarray(run(changed))
    assert (np.abs(one - two)[:, :, :, :2, :2].max(axis=(2, 3, 4)) > 1e-3).all()


def test_batch_neighbours_change_nothing(run, image, masks):
    changed = np.concatenate([image[:1], 5 * image[1:] + 1])
    other = np.asarray(run(changed, vectors()))
    np.testing.assert_array_equal(other[0], masks[0])
    assert (other[1] != masks[1]).any()


def head_size(text_dim, deep, full, features=256, width=8) -> int:
    """Texts, patch (norm and projection), controller, pixels (norm and projection)."""
    controller = 2 * features * num_dynamic(width) + num_dynamic(width)
    text, patch = text_dim * features + features, 2 * deep + deep * features + features
    return text + patch + controller + 2 * full + full * width + width


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameter_count(image):
    params = dict(meta.unbox(abstract_params(build(), image)))
    params.pop('backbone')
    assert count(params) == head_size(T, DEEP, FULL, FEATURES, WIDTH)


def test_official_sizes():
    """96^3, Swin UNETR 48, 32 classes with vectors of CLIP's width: sizes only."""
    assert num_dynamic(8) == 153
    text = TextVectors(np.ones((32, 512)))
    model = UniversalModel(backbone=SwinUNETR(), text=text)
    image = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
    variables = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
    params = dict(variables['params'])
    params.pop('backbone')
    assert count(params) == head_size(512, 768, 48) == 408_705
    outputs = jax.eval_shape(model.apply, variables, image)
    assert outputs.mask_logits.shape == (1, 32, 96, 96, 96)


@pytest.mark.parametrize(('channels', 'groups'), [(48, 16), (320, 16), (24, 12), (34, 2), (17, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert num_groups(channels) == groups


PARENTS = (-1, -1, 1, -1)  # background, an organ, its tumour, another organ
QUERY_CLASSES = (1, 2, UNSEEN)


@pytest.fixture(scope='module')
def label() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 4, (2, *SHAPE))


def test_objective_matches_loops(masks, label):
    class_mask = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], bool)
    loss, metrics = universal_objective(
        UniversalOutputs(mask_logits=jnp.asarray(masks)),
        jnp.asarray(label),
        parents=PARENTS,
        query_classes=QUERY_CLASSES,
        class_mask=jnp.asarray(class_mask),
        dice_weight=2.0,
        ce_weight=0.5,
    )
    samples = {'dice': [], 'ce': []}
    for b, queries in enumerate([(0, 1), (0,)]):
        dice, ce = [], []
        for q in queries:
            truth = np.isin(label[b], [(1, 2), (2,)][q])  # the organ holds its tumour
            p = 1 / (1 + np.exp(-masks[b, q].astype(float)))
            dice.append(1 - 2 * p[truth].sum() / (p.sum() + truth.sum()))
            ce.append(-np.mean(np.where(truth, np.log(p), np.log(1 - p))))
        samples['dice'].append(np.mean(dice))
        samples['ce'].append(np.mean(ce))
    for name, values in samples.items():
        np.testing.assert_allclose(metrics[name], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(loss, 2 * metrics['dice'] + 0.5 * metrics['ce'], rtol=1e-6)
    assert set(metrics) == {'loss', 'dice', 'ce'}


def test_unannotated_pairs_get_no_gradient(masks, label):
    class_mask = jnp.asarray([[True, True, False, True], [True, False, True, True]])

    def loss(logits):
        outputs = UniversalOutputs(mask_logits=logits)
        return universal_objective(
            outputs,
            jnp.asarray(label),
            parents=PARENTS,
            query_classes=QUERY_CLASSES,
            class_mask=class_mask,
        )[0]

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(masks)))
    trained = gradient.any(axis=(2, 3, 4))
    np.testing.assert_array_equal(trained, [[True, False, False], [False, True, False]])


def test_one_class_per_mask(masks, label):
    with pytest.raises(ValueError, match='2 query_classes for 3 masks'):
        universal_objective(
            UniversalOutputs(mask_logits=masks), label, parents=PARENTS, query_classes=(1, 2)
        )


@pytest.fixture(scope='module')
def gradients(image, label, params):
    """Gradients of all parameters and of the texts."""
    model = build()

    def loss(params, text, image, frozen):
        outputs = apply(model, params, image, train=True, text=text, freeze_backbone=frozen)
        return universal_objective(
            outputs, jnp.asarray(label), parents=PARENTS, query_classes=QUERY_CLASSES
        )[0]

    return jax.jit(jax.grad(loss, (0, 1)), static_argnums=3)


def test_every_parameter_learns_but_for_unseen_classes(gradients, params, image):
    grads, text = gradients(params, vectors(), image, False)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    dead = {jax.tree_util.keystr(path) for path, leaf in leaves if not np.asarray(leaf).any()}
    assert dead == {"['backbone']['e1']['kernel']"}  # only the coarsest features are pooled
    np.testing.assert_array_equal(np.asarray(text).any(axis=1), [True, True, False])


def test_frozen_backbone_gets_no_gradient(gradients, params, image):
    grads, _ = gradients(params, vectors(), image, True)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads['backbone']))
    assert np.asarray(grads['pixel']['kernel']).any()


def test_learns_what_the_text_asks_for(params, image):
    """Masks of one image, told apart by the texts alone."""
    label = np.where(image[..., 0] > 0.5, 1, np.where(image[..., 1] > 0.5, 2, 0))
    model, tx = build(), optax.adam(2e-2)

    def loss(params):
        return universal_objective(
            apply(model, params, image, train=True),
            jnp.asarray(label),
            parents=(-1, -1, -1),
            query_classes=QUERY_CLASSES,
        )

    @jax.jit
    def step(params, state):
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics['dice']

    state, dice = tx.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        dice.append(float(value))
    assert dice[0] > 0.4
    assert dice[-1] < 0.15


def test_float32_in_bfloat16_and_logical_axes(image):
    backbone = PoolingBackbone(dtype=jnp.bfloat16)
    model = build(dtype=jnp.bfloat16, backbone=backbone)
    boxed = abstract_params(model, image)
    known = {v for k, v in vars(axes).items() if k.isupper() and isinstance(v, str)}
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert leaf.value.dtype == jnp.float32
        assert len(leaf.names) == len(leaf.value.shape)
        assert set(leaf.names) <= known
    outputs = jax.eval_shape(lambda p: apply(model, p, image), meta.unbox(boxed))
    assert outputs.mask_logits.dtype == jnp.float32


def test_models_compare_by_their_texts():
    one, two = build(), build()
    assert one == two
    assert hash(one) == hash(two)
    assert one != build(text=vectors(seed=9))
    assert 'TextVectors(3 x 5)' in repr(one)


@pytest.mark.parametrize('bad', [np.ones(3), np.full((2, 2), np.nan), []])
def test_bad_text_vectors(bad):
    with pytest.raises(ValueError, match='text vectors must be'):
        TextVectors(bad)
