"""Eq. 8, deep supervision, and how the terms add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses.query_distribution import query_distribution_loss
from maxquery_jax.losses.segmentation import cross_entropy, soft_dice_loss
from maxquery_jax.losses.total import (
    deep_supervision_weights,
    maxquery_objective,
    segmentation_objective,
)
from maxquery_jax.ops.assignment import aggregate, assignment
from maxquery_jax.typing import MaxQueryOutputs, QueryPrediction, SegmentationOutputs

QUERIES, CLASSES = (2, 1, 3), (0, 1, 2, 2)
SHAPE = (4, 4, 8)


@pytest.fixture
def label() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, *SHAPE)), jnp.int32)


@pytest.fixture
def outputs() -> MaxQueryOutputs:
    rng = np.random.default_rng(0)

    def prediction(shape):
        return QueryPrediction(
            query_response=jnp.asarray(rng.normal(size=(2, 6, *shape)), jnp.float32),
            class_logits=jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32),
        )

    final = prediction(SHAPE)
    return MaxQueryOutputs(
        final=final,
        aux_outputs=(prediction((1, 1, 2)), prediction((2, 2, 4))),
        seg_logits=aggregate(final.class_logits, assignment(final.query_response)),
    )


def objective(**options):
    groups = {'query_groups': QUERIES, 'class_groups': CLASSES}
    return jax.jit(functools.partial(maxquery_objective, **groups, **options))


@jax.jit
def prediction_loss(prediction: QueryPrediction, label: jax.Array, qd_weight: float) -> jax.Array:
    logits = aggregate(prediction.class_logits, assignment(prediction.query_response))
    qd = query_distribution_loss(prediction.query_response, label, QUERIES, CLASSES)
    return cross_entropy(logits, label) + soft_dice_loss(logits, label) + qd_weight * qd


@pytest.mark.parametrize(
    ('num', 'expected'),
    [(1, [1]), (2, [1, 0]), (3, [2 / 3, 1 / 3, 0]), (5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])],
)
def test_deep_supervision_weights(num, expected):
    np.testing.assert_allclose(deep_supervision_weights(num), expected)


def test_segmentation_objective_is_nnunets_weighted_sum(label):
    rng = np.random.default_rng(2)
    logits = [
        jnp.asarray(rng.normal(size=(2, *(n // s for n in SHAPE), 4)), jnp.float32)
        for s in (1, 2, 4)
    ]
    # The nearest voxel to the centre of a block of 2 is the upper one of it.
    labels = [label, label[:, 1::2, 1::2, 1::2]]
    terms = jax.jit(lambda a, b: (cross_entropy(a, b), soft_dice_loss(a, b)))
    parts = [terms(a, b) for a, b in zip(logits[:2], labels, strict=True)]
    objective = functools.partial(segmentation_objective, ce_weight=0.5, dice_weight=2.0)
    outputs = SegmentationOutputs(logits[0], tuple(logits[1:]))
    loss, metrics = jax.jit(objective)(outputs, label)
    sums = [0.5 * ce + 2.0 * dice for ce, dice in parts]
    np.testing.assert_allclose(loss, 2 / 3 * sums[0] + 1 / 3 * sums[1], rtol=1e-5)
    np.testing.assert_allclose(metrics['aux'], sums[1] / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics['ce'], parts[0][0], rtol=1e-6)
    np.testing.assert_allclose(metrics['dice'], parts[0][1], rtol=1e-6)


def test_segmentation_objective_passes_the_class_mask(label):
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(2, *SHAPE, 4)), jnp.float32)
    mask = jnp.array([[True, True, True, False]] * 2)

    def loss(x):
        return segmentation_objective(SegmentationOutputs(x), label % 3, class_mask=mask)[0]

    grad = np.asarray(jax.jit(jax.grad(loss))(logits))
    assert (grad[..., 3] == 0).all()
    assert (grad[..., :3] != 0).any()


def test_maxquery_objective_adds_up(outputs, label):
    loss, metrics = objective(qd_weight=0.3, aux_weight=0.7)(outputs, label)
    assert set(metrics) == {'loss', 'ce', 'dice', 'qd', 'aux'}
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())
    np.testing.assert_allclose(loss, metrics['loss'])
    expected = prediction_loss(outputs.final, label, 0.3) + 0.7 * metrics['aux']
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_aux_loss_on_resized_labels(outputs, label):
    """The label of a block's stride is the one nearest to its voxels' centres."""
    _, metrics = objective(aux_resize='label')(outputs, label)
    expected = prediction_loss(outputs.aux_outputs[0], label[:, 2::4, 2::4, 2::4], 0.1)
    expected += prediction_loss(outputs.aux_outputs[1], label[:, 1::2, 1::2, 1::2], 0.1)
    np.testing.assert_allclose(metrics['aux'], expected, rtol=1e-5)


def test_aux_loss_on_resized_predictions(outputs, label):
    """A prediction that is constant in space is the same at every size."""
    block = outputs.aux_outputs[0]
    flat = block.replace(query_response=block.query_response[:, :, :1, :1, :1])
    _, metrics = objective()(outputs.replace(aux_outputs=(flat,)), label)
    full = jnp.broadcast_to(flat.query_response, (2, 6, *SHAPE))
    expected = prediction_loss(flat.replace(query_response=full), label, 0.1)
    np.testing.assert_allclose(metrics['aux'], expected, rtol=1e-5)


def test_both_resizings_agree_at_the_labels_size(outputs, label):
    same = outputs.replace(aux_outputs=(outputs.final,))
    one, two = (objective(aux_resize=how)(same, label)[1]['aux'] for how in ('prediction', 'label'))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(one, prediction_loss(outputs.final, label, 0.1), rtol=1e-5)


@pytest.mark.parametrize('how', ['prediction', 'label'])
def test_every_response_and_class_logit_learns(how, outputs, label):
    grads = jax.jit(jax.grad(lambda o: objective(aux_resize=how)(o, label)[0]))(outputs)
    for prediction in grads.aux_outputs:
        assert all(
            np.isfinite(g).all() and (np.asarray(g) != 0).any() for g in jax.tree.leaves(prediction)
        )
    assert all((np.asarray(g) != 0).all() for g in jax.tree.leaves(grads.final))


def test_no_aux_outputs(outputs, label):
    _, metrics = objective()(outputs.replace(aux_outputs=()), label)
    assert float(metrics['aux']) == 0


def test_names_an_unknown_resize(outputs, label):
    with pytest.raises(ValueError, match='both'):
        objective(aux_resize='both')(outputs, label)


@pytest.mark.parametrize('masked', [False, True])
def test_slice_by_slice_equals_whole(masked, outputs, label):
    mask = jnp.array([[True, True, True, False], [True, True, False, True]]) if masked else None
    outputs = outputs.replace(aux_outputs=())  # coarse ones are never sliced
    results = []
    for form in ('plain', 'scan'):
        function = objective(form=form, batch_dice=True, qd_weight=0.5)
        grad = jax.value_and_grad(lambda o, f=function: f(o, label, class_mask=mask)[0])
        results.append(jax.jit(grad)(outputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), *results)
