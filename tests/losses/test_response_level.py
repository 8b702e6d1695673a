"""What the losses of MaxQuery do not see: a number added to all responses of a voxel."""

import jax
import numpy as np

from maxquery_jax.losses.query_distribution import query_distribution_loss
from maxquery_jax.models.maxquery import segment
from maxquery_jax.ops.anomaly import query_logit_score, query_softmax_score

SHAPE = (4, 5, 6)
CLASS_GROUPS = (0, 1, 2, 2)


def test_no_loss_fixes_the_level_that_equation_9_takes():
    keys = jax.random.split(jax.random.key(0), 4)
    response = 3 * jax.random.normal(keys[0], (2, 32, *SHAPE))
    moved = response + 5 * jax.random.normal(keys[1], (2, 1, *SHAPE))
    classes = jax.random.normal(keys[2], (2, 32, len(CLASS_GROUPS)))
    label = jax.random.randint(keys[3], (2, *SHAPE), 0, len(CLASS_GROUPS))
    losses = [
        query_distribution_loss(r, label, (16, 4, 12), CLASS_GROUPS) for r in (response, moved)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(segment(classes, moved), segment(classes, response), atol=1e-4)
    np.testing.assert_allclose(query_softmax_score(moved), query_softmax_score(response), atol=1e-5)
    assert np.abs(query_logit_score(moved) - query_logit_score(response)).mean() > 1
