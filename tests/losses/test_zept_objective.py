"""ZePT's objective is the weighted sum of its parts, and heeds what a sample annotates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses import alignment, masks
from maxquery_jax.losses.zept import zept_objective
from maxquery_jax.typing import Array

SHAPE = (2, 3, 4)
# Classes: background, liver, liver tumour, spleen. Queries: liver, spleen; tumour, unseen tumour.
TRUTH: dict[str, Any] = {'parents': (-1, -1, 1, -1), 'query_classes': (1, 3, 2, masks.UNSEEN)}
CLASS_MASK = jnp.asarray([[True, True, True, True], [True, True, False, False]])
COUNTED = np.array([[True, True, True, False], [True, False, False, False]])


@dataclasses.dataclass
class Outputs:
    mask_logits: Array
    class_logits: Array
    knowledge_queries: Array | None = None
    temperature: Array | None = None


def normal(seed, *shape) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def label() -> Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, *SHAPE)), jnp.uint8)


def stage_two() -> Outputs:
    return Outputs(
        normal(1, 2, 4, *SHAPE), normal(2, 2, 2, 2), normal(3, 2, 4, 5), jnp.asarray(0.1)
    )


@pytest.mark.parametrize('align_unseen', [False, True])
def test_the_loss_is_the_weighted_sum_of_its_parts(label, align_unseen):
    outputs, knowledge = stage_two(), normal(4, 4, 5)
    loss, metrics = zept_objective(
        outputs,
        label,
        class_mask=CLASS_MASK,
        knowledge=knowledge,
        align_unseen=align_unseen,
        dice_weight=2.0,
        ce_weight=3.0,
        class_weight=5.0,
        alignment_weight=7.0,
        **TRUTH,
    )
    targets = masks.query_targets(label, **TRUTH)
    sets = [
        masks.mask_losses(
            outputs.mask_logits[:, own], targets[:, own], jnp.asarray(COUNTED[:, own])
        )
        for own in (slice(0, 2), slice(2, 3))  # organs; the one tumour that training shows
    ]
    dice, bce = (sum(part) for part in zip(*sets, strict=True))
    classes = masks.class_embedding_loss(outputs.class_logits, jnp.asarray(COUNTED[:, :2]))
    assert outputs.knowledge_queries is not None
    logits = alignment.alignment_logits(outputs.knowledge_queries, knowledge, 0.1)
    counted = None if align_unseen else jnp.asarray(COUNTED)
    aligned = alignment.alignment_loss(logits, counted)
    expected = {'dice': dice, 'ce': bce, 'class': classes, 'alignment': aligned}
    assert set(metrics) == {'loss', *expected}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss, 2 * dice + 3 * bce + 5 * classes + 7 * aligned, rtol=1e-5)


def test_unannotated_queries_get_no_gradient(label):
    outputs = stage_two()

    @jax.jit
    @jax.grad
    def grad(parts):
        changed = dataclasses.replace(outputs, mask_logits=parts[0], knowledge_queries=parts[1])
        return zept_objective(
            changed, label, class_mask=CLASS_MASK, knowledge=normal(4, 4, 5), **TRUTH
        )[0]

    by_mask, by_text = grad((outputs.mask_logits, outputs.knowledge_queries))
    np.testing.assert_array_equal(np.asarray(by_mask).any(axis=(2, 3, 4)), COUNTED)
    np.testing.assert_array_equal(np.asarray(by_text).any(axis=2), COUNTED)


def test_stage_one_needs_no_texts_and_stage_two_does(label):
    two = stage_two()
    one = Outputs(two.mask_logits[:, :2], two.class_logits)
    loss, metrics = zept_objective(one, label, **TRUTH)
    np.testing.assert_allclose(loss, sum(metrics[k] for k in ('dice', 'ce', 'class')), rtol=1e-6)
    with pytest.raises(ValueError, match='knowledge'):
        zept_objective(two, label, **TRUTH)


def test_an_organs_mask_holds_its_tumours_unless_told_otherwise(label):
    outputs = stage_two()

    def by_mask(*, organs_hold_tumours: bool) -> np.ndarray:
        def loss(mask_logits):
            changed = dataclasses.replace(outputs, mask_logits=mask_logits, knowledge_queries=None)
            options = {**TRUTH, 'organs_hold_tumours': organs_hold_tumours}
            return zept_objective(changed, label, **options)[0]

        return np.asarray(jax.grad(loss)(outputs.mask_logits))

    tumour = np.asarray(label) == 2
    held, healthy = by_mask(organs_hold_tumours=True), by_mask(organs_hold_tumours=False)
    assert (held[:, 0][tumour] < 0).all()  # the liver's mask is drawn over them ...
    assert (healthy[:, 0][tumour] > 0).all()  # ... or away from them
    assert (healthy[:, 0][np.asarray(label) == 1] < 0).all()
    np.testing.assert_array_equal(held[:, 1:], healthy[:, 1:])  # spleen and tumours as before
