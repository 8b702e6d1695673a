"""ZePT as a whole, on a backbone that only pools: what learns, what comes out, and when."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from maxquery_jax import axes
from maxquery_jax.errors import UserError
from maxquery_jax.losses.alignment import alignment_logits, alignment_loss
from maxquery_jax.losses.masks import class_embedding_loss, mask_losses
from maxquery_jax.models.backbones.swin_unetr import SwinUNETR
from maxquery_jax.models.maxquery import average_pool
from maxquery_jax.models.zept import STAGE1_MODULES, ZePT, anomaly_map
from maxquery_jax.models.zept_decoders import ZePTOptions
from maxquery_jax.typing import PixelFeatures
from tests.models.random_params import draw_params

# Compiling is nearly all of a test's time.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

SHAPE, N, M, T = (4, 8, 8), 3, 2, 5
ORGANS = np.array([[True, True, True], [True, False, True]])
TUMOURS = np.array([[True, False], [True, False]])  # the second is in no training label


class PoolingBackbone(nn.Module, kw_only=True):
    """Pools the image to strides 4, 2 and 1 and mixes channels; the encoder may be wider."""

    widths: tuple[int, int] = (4, 6)  # encoder at strides 4 and 2
    decoder_widths: tuple[int, int] = (4, 6)

    @nn.compact
    def __call__(self, image, *, train=False):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes.DENSE_KERNEL)

        def mix(stride, width, name):
            linear = nn.Dense(width, use_bias=False, kernel_init=init, name=name)
            return nn.leaky_relu(linear(average_pool(image, (stride,) * 3)))

        encoder = {s: mix(s, w, f'e{s}') for s, w in zip((4, 2), self.widths, strict=True)}
        decoder = {s: mix(s, w, f'd{s}') for s, w in zip((4, 2), self.decoder_widths, strict=True)}
        return PixelFeatures(encoder=encoder, decoder=decoder, full=mix(1, 7, 'full'))


def build(stage=2, backbone=None, hosts=(), **kwargs) -> ZePT:
    sizes = {
        'num_fundamental': N,
        'num_advanced': M,
        'output_strides': (2,),  # what is compiled has one block; compiling is what takes time
        'query_dim': 8,
        'refine_dim': 8,
        'num_heads': 2,
        'mlp_ratio': 2,
        'text_dim': T,
    }
    return ZePT(
        backbone=backbone or PoolingBackbone(),
        options=ZePTOptions(**{**sizes, **kwargs}),
        stage=stage,
        hosts=hosts,
    )


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *SHAPE, 3)).astype(np.float32)


def abstract_params(model, image):
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    return jax.eval_shape(lambda r: model.init(r, image, train=True), rngs)['params']


def draw(model, image):
    return draw_params(abstract_params(model, image), seed=2)


@pytest.fixture(scope='module')
def params(image):
    return draw(build(), image)


@pytest.fixture(scope='module')
def run():
    """Stage II with the default options, compiled once."""
    return jit(build().apply)


def path_names(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator='/'): leaf for p, leaf in leaves}


def objective(outputs):
    """Everything a stage trains; the second tumour has a text but no mask."""
    masks = ORGANS if outputs.knowledge_queries is None else np.hstack([ORGANS, TUMOURS])
    masks = masks[:, : outputs.mask_logits.shape[1]]
    targets = np.random.default_rng(3).random(outputs.mask_logits.shape) < 0.3
    loss = sum(mask_losses(outputs.mask_logits, jnp.asarray(targets), jnp.asarray(masks)))
    loss += class_embedding_loss(outputs.class_logits)
    if outputs.knowledge_queries is not None:
        texts = np.random.default_rng(4).normal(size=(N + M, T))
        texts = jnp.asarray(texts, jnp.float32)
        queries = outputs.knowledge_queries
        loss += alignment_loss(alignment_logits(queries, texts, outputs.temperature))
    return loss


def dead_parameters(model, params, image) -> set[str]:
    @jit
    @jax.grad
    def grad(p):
        rngs = {'dropout': jax.random.key(5)}
        return objective(model.apply({'params': p}, image, train=True, rngs=rngs))

    grads = {name: np.asarray(leaf) for name, leaf in path_names(grad(params)).items()}
    assert all(np.isfinite(leaf).all() for leaf in grads.values())
    largest = max(np.abs(leaf).max() for leaf in grads.values())
    return {name for name, leaf in grads.items() if np.abs(leaf).max() < 1e-7 * largest}


def only_attention_biases(names) -> bool:
    """A softmax ignores what moves all its logits alike: the bias of an attention's keys, or of a
    grouping's queries."""
    return all(name.endswith(('attention/key/bias', 'grouping/query/bias')) for name in names)


def test_every_parameter_of_stage_two_learns(params, image):
    dead = dead_parameters(build(), params, image)
    # No block sees stride 4, and nothing but prompts, which train nothing, sees the decoder.
    unused = {f'backbone/{name}/kernel' for name in ('e4', 'd4', 'd2')}
    assert unused <= dead
    assert only_attention_biases(dead - unused)


def test_every_parameter_of_stage_one_learns(image):
    model = build(stage=1, output_strides=(4, 2))
    dead = dead_parameters(model, draw(model, image), image)
    unused = {f'backbone/{name}/kernel' for name in ('d4', 'd2')}
    assert unused <= dead
    assert only_attention_biases(dead - unused)


def test_frozen_stage_one_gets_no_gradient(params, image):
    dead = dead_parameters(build(freeze_stage1=True), params, image)
    frozen = {n for n in path_names(params) if n.startswith(('backbone/', 'fundamental_decoder/'))}
    assert frozen <= dead
    assert only_attention_biases(dead - frozen)


@pytest.mark.parametrize(
    'options', [{}, {'ofg': False}, {'grouping': 'groupvit'}, {'qrd': False, 'qka': False}]
)
def test_stage_one_is_a_subtree_of_stage_two(options, image):
    one = path_names(meta.unbox(abstract_params(build(stage=1, **options), image)))
    two = path_names(meta.unbox(abstract_params(build(**options), image)))
    assert {name.split('/')[0] for name in one} == set(STAGE1_MODULES)
    assert {name: two[name].shape for name in one} == {n: leaf.shape for n, leaf in one.items()}
    added = {name.split('/')[0] for name in two if name not in one}
    assert added >= {'refinement_decoder', 'fundamental_out', 'advanced_mask_head'}
    assert not added & set(STAGE1_MODULES)


def test_stage_two_starts_with_the_organs_of_stage_one(params, image, run):
    out = jax.tree.map(np.zeros_like, params['fundamental_out'])  # as it is initialised
    boxed = abstract_params(build(), image)['fundamental_out']
    assert set(boxed) == set(out)
    stage1 = {name: params[name] for name in STAGE1_MODULES}
    one = jit(build(stage=1).apply)({'params': stage1}, image)
    two = run({'params': {**params, 'fundamental_out': out}}, image)
    assert one.mask_logits.shape == (2, N, *SHAPE)
    assert two.mask_logits.shape == (2, N + M, *SHAPE)
    np.testing.assert_allclose(two.organ_logits, one.mask_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two.class_logits, one.class_logits, rtol=1e-4, atol=1e-5)
    assert two.tumour_logits.shape == (2, M, *SHAPE)
    assert two.knowledge_queries.shape == (2, N + M, T)
    np.testing.assert_array_equal(anomaly_map(two), -two.organ_logits.max(axis=1))


def test_initial_values(image):
    init = jit(lambda key: meta.unbox(build().init(key, image))['params'])
    params = init(jax.random.key(0))
    assert not params['refinement_decoder']['queries'].any()
    assert not params['fundamental_out']['kernel'].any()
    assert params['fundamental_decoder']['queries'].std() > 0.5
    np.testing.assert_allclose(np.exp(params['log_temperature']), 0.07, rtol=1e-5)


def test_prompts_do_not_depend_on_batch_neighbours(params, image, run):
    check_neighbours(run, params, image)


@pytest.mark.parametrize('source', ['decoder', 'mask'])
def test_other_prompts_do_not_depend_on_batch_neighbours(params, image, source):
    check_neighbours(jit(build(prompt_source=source).apply), params, image)


def check_neighbours(run, params, image):
    changed = np.concatenate([image[:1], 5 * image[1:] + 1])
    one, two = run({'params': params}, image), run({'params': params}, changed)
    assert set(one.prompts) == {2}
    assert one.prompts[2].shape == (2, 2, 4, 4)
    np.testing.assert_array_equal(one.prompts[2][0], two.prompts[2][0])
    assert (np.asarray(one.anomaly[2][1]) != np.asarray(two.anomaly[2][1])).any()
    np.testing.assert_allclose(one.mask_logits[0], two.mask_logits[0], rtol=1e-4, atol=1e-5)


def masks_of(*boxes):
    """A sample [D, H, W] for each box (z0, y0, x0, z1, y1, x1); None for no voxel."""
    masks = np.zeros((len(boxes), *SHAPE), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box:
            mask[tuple(slice(*ends) for ends in zip(box[:3], box[3:], strict=True))] = True
    return masks


def test_box_prompts_take_the_place_of_the_anomaly_maps(params, image, run):
    prompted = jit(lambda v, x, prompt: build().apply(v, x, prompt=prompt))
    variables = {'params': params}
    one = prompted(variables, image, masks_of((1, 2, 0, 2, 4, 3), None))
    expected = np.zeros((2, 4, 4), bool)
    expected[0, 1, :2] = True  # cells of 2 x 2 x 2
    np.testing.assert_array_equal(one.prompts[2][0], expected)
    np.testing.assert_array_equal(one.anomaly[2][0], expected)
    assert not one.prompts[2][1].any()  # attends everywhere
    assert np.isfinite(one.mask_logits).all()
    two = prompted(variables, image, masks_of((0, 4, 4, 4, 8, 8), (0, 0, 0, 4, 8, 8)))
    assert differing(one, two) == [True, False]
    assert differing(one, run(variables, image)) == [True, True]


def differing(one, two):
    """Whether a sample's tumours are others; rounding is not."""
    gap = np.abs(np.asarray(one.tumour_logits) - np.asarray(two.tumour_logits))
    return (gap.max(axis=(1, 2, 3, 4)) > 1e-3).tolist()


def test_a_network_of_boxes_without_any_attends_everywhere(params, image):
    run = jit(build(prompt_source='box').apply)
    outputs = run({'params': params}, image)
    assert set(outputs.prompts) == {2} and not outputs.prompts[2].any()
    everywhere = jit(lambda p, x, m: build().apply({'params': p}, x, prompt=m))(
        params, image, np.ones((2, *SHAPE), bool)
    )
    assert differing(outputs, everywhere) == [False, False]


def shapes_of(model, image):
    shapes = meta.unbox(abstract_params(model, image))
    return shapes, jax.eval_shape(lambda p: model.apply({'params': p}, image), shapes)


def test_ablations_change_what_they_say(image):
    full, _ = shapes_of(build(), image)
    grouped, _ = shapes_of(build(ofg=False), image)
    assert 'grouping' not in grouped['fundamental_decoder']['block0']
    assert 'self' in grouped['fundamental_decoder']['block0']
    clustered, _ = shapes_of(build(grouping='groupvit'), image)
    block = clustered['fundamental_decoder']['block0']
    assert 'soft' not in block
    assert set(block['groupvit']) == {'self', 'grouping'}
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (full, clustered)]
    assert sizes[0] - sizes[1] == 1  # the learned temperature
    plain, outputs = shapes_of(build(qrd=False), image)
    assert outputs.prompts == {}
    assert 'joint' not in plain['refinement_decoder']
    concatenated, _ = shapes_of(build(pma=False), image)
    name = 'feature_projection0'
    before = full['refinement_decoder'][name]['kernel'].shape[0]
    assert concatenated['refinement_decoder'][name]['kernel'].shape[0] == before + 1
    without, outputs = shapes_of(build(qka=False), image)
    assert outputs.knowledge_queries is None
    assert outputs.temperature is None
    assert 'knowledge_projection' not in without
    released, _ = shapes_of(build(alignment='dot'), image)
    assert 'knowledge_norm' in released


def test_anomaly_logit_bias_is_the_ops_function(params, image, run):
    hosts = ((0,), (0, 2))
    plain = run({'params': params}, image)
    model = build(hosts=hosts, anomaly_logit_bias=True)
    biased = jit(model.apply)({'params': params}, image)
    score = np.asarray(anomaly_map(plain))[:, None]
    np.testing.assert_allclose(
        biased.tumour_logits, plain.tumour_logits + score, rtol=1e-4, atol=1e-5
    )
    expected = plain.organ_logits - score * np.array([2, 0, 1])[None, :, None, None, None]
    np.testing.assert_allclose(biased.organ_logits, expected, rtol=1e-4, atol=1e-5)


def test_decoder_prompts_need_equal_widths(image):
    backbone = PoolingBackbone(decoder_widths=(4, 5))
    shapes_of(build(backbone=backbone), image)
    with pytest.raises(UserError, match='at stride 2 the decoder has 5 channels'):
        shapes_of(build(backbone=backbone, prompt_source='decoder'), image)


def test_bad_choices(image):
    with pytest.raises(ValueError, match='grouping must be one of'):
        ZePTOptions(grouping='medium')
    with pytest.raises(ValueError, match='box_margin must not be negative, got -1'):
        ZePTOptions(box_margin=-1)
    with pytest.raises(ValueError, match="prompt_source 'box' prompts the query refinement"):
        ZePTOptions(prompt_source='box', qrd=False)
    with pytest.raises(ValueError, match='stage must be 1 or 2'):
        abstract_params(build(stage=3), image)


def test_outputs_and_parameters_are_float32_in_bfloat16(image):
    shapes, outputs = shapes_of(build(dtype=jnp.bfloat16, output_strides=(4, 2)), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(outputs)}
    assert dtypes == {jnp.dtype('float32'), jnp.dtype('bool')}


def test_every_parameter_has_logical_axes(image):
    known = {
        value for name, value in vars(axes).items() if name.isupper() and isinstance(value, str)
    }
    boxed = abstract_params(build(alignment='dot'), image)
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == len(leaf.value.shape)
        assert set(leaf.names) <= known


def test_paper_scale():
    """96^3, Swin UNETR 48, 25 + 20 queries: sizes only."""
    image = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
    model = ZePT(backbone=SwinUNETR(), options=ZePTOptions())
    rngs = {'params': jax.random.key(0)}
    variables = meta.unbox(jax.eval_shape(model.init, rngs, image))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert round(count / 1e6, 2) == 128.83  # the released code has 129.8 million
    outputs = jax.eval_shape(model.apply, variables, image)
    assert outputs.mask_logits.shape == (1, 45, 96, 96, 96)
    assert [outputs.prompts[s].shape[1:] for s in (32, 16, 8, 4)] == [
        (n,) * 3 for n in (3, 6, 12, 24)
    ]


def test_a_learned_scalar_shifts_all_masks(image):
    plain, shifted = build(stage=1), build(stage=1, mask_prior=0.01)
    init = jit(lambda key: meta.unbox(shifted.init(key, image))['params'])
    params = init(jax.random.key(1))
    shift = params['mask_shift']
    np.testing.assert_allclose(shift, [np.log(0.01 / 0.99)], rtol=1e-6)
    rest = {name: value for name, value in params.items() if name != 'mask_shift'}
    expected = jit(lambda p: plain.apply({'params': p}, image).mask_logits)(rest)

    def total(p):
        logits = shifted.apply({'params': p}, image).mask_logits
        return jnp.sum(logits), logits

    grads, logits = jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected + shift[0], atol=1e-5)
    np.testing.assert_allclose(grads['mask_shift'], [expected.size], rtol=1e-5)


@pytest.mark.parametrize('prior', [0.0, 1.0, -0.1])
def test_priors_are_probabilities(prior):
    with pytest.raises(ValueError, match='mask_prior must lie in'):
        ZePTOptions(mask_prior=prior)
