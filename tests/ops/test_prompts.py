"""ZePT's visual prompts against loops, and that each sample is on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import prompts

SHAPE = (2, 3, 4)


@pytest.fixture
def queries() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *SHAPE, 6)).astype(np.float32)


def loop_prompt(queries, features, threshold):
    """Eq. 7 and 8 of one sample, voxel by voxel."""
    score = np.zeros(SHAPE)
    for voxel in np.ndindex(*SHAPE):
        score[voxel] = -max(float(np.dot(q, features[voxel])) for q in queries)
    normalised = (score - score.min()) / (score.max() - score.min())
    return score, normalised, normalised >= threshold


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.8])
def test_prompt_matches_loop(queries, features, threshold):
    anomaly = prompts.scale_anomaly(jnp.asarray(queries), jnp.asarray(features))
    mask = prompts.mask_prompt(anomaly, threshold)
    for b in range(2):
        score, normalised, expected = loop_prompt(queries[b], features[b], threshold)
        np.testing.assert_allclose(anomaly[b], score, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prompts.min_max(anomaly)[b], normalised, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(mask[b], expected)


def test_batch_neighbours_change_nothing(queries, features):
    alone = prompts.mask_prompt(prompts.scale_anomaly(queries[:1], features[:1]))
    other = jnp.asarray(np.concatenate([features[:1], 100 * features[1:]]))
    together = prompts.mask_prompt(prompts.scale_anomaly(queries, other))
    np.testing.assert_array_equal(alone[0], together[0])


def test_constant_map_prompts_everywhere():
    anomaly = jnp.stack([jnp.full(SHAPE, 3.0), jnp.arange(24.0).reshape(SHAPE)])
    mask = np.asarray(prompts.mask_prompt(anomaly))
    assert mask[0].all()
    assert mask[1].sum() == 12
    assert np.isfinite(prompts.min_max(anomaly)).all()


def test_prompts_train_nothing(queries, features):
    def objective(q, f):
        anomaly = prompts.scale_anomaly(q, f)
        return jnp.sum(prompts.min_max(anomaly) * prompts.mask_prompt(anomaly))

    grads = jax.grad(objective, (0, 1))(jnp.asarray(queries), jnp.asarray(features))
    assert not any(np.asarray(g).any() for g in grads)


def test_attention_bias_and_its_fallback():
    prompt = jnp.asarray([[True, False, True], [False, False, False]])
    bias = np.asarray(prompts.attention_bias(prompt))
    np.testing.assert_array_equal(bias, [[0, -np.inf, 0], [0, 0, 0]])
    assert np.isfinite(jax.nn.softmax(bias, axis=-1)).all()


@pytest.mark.parametrize('margin', [0, 1, 1.5])
def test_boxes_match_loop(margin):
    shape = (4, 8, 8)
    boxes = np.array([[[1, 2, 3, 2, 5, 6], [0, 0, 0, 0, 0, 0]], [[3, 7, 0, 4, 8, 1]] * 2])
    result = prompts.rasterise_boxes(jnp.asarray(boxes), shape, margin=margin)
    expected = np.zeros((2, *shape), bool)
    for b, z, y, x in np.ndindex(2, *shape):
        for box in boxes[b]:
            touches = [
                i < box[3 + a] + margin and i + 1 > box[a] - margin for a, i in enumerate((z, y, x))
            ]
            expected[b, z, y, x] |= all(touches) and box.any()
    np.testing.assert_array_equal(result, expected)


def test_no_boxes_prompt_nothing():
    assert not prompts.rasterise_boxes(jnp.zeros((1, 2, 6)), SHAPE, margin=3).any()


@pytest.mark.parametrize('grid', [(4, 9, 5), (2, 3, 5), (1, 1, 1), (3, 4, 2)])
def test_coarse_prompts_match_loop(grid):
    """Grids that divide the input, and one whose last cells reach beyond it."""
    mask = np.random.default_rng(4).random((3, 4, 9, 5)) < 0.1
    mask[2] = False
    mask[1, -1, -1, -1] = True
    cells = [-(-n // g) for n, g in zip(mask.shape[1:], grid, strict=True)]
    expected = np.zeros((3, *grid), bool)
    for b, *voxel in np.argwhere(mask):
        expected[(b, *(v // c for v, c in zip(voxel, cells, strict=True)))] = True
    found = prompts.coarsen_prompt(jnp.asarray(mask), grid)
    np.testing.assert_array_equal(found, expected)
    assert expected[:2].any() and not expected[2].any()


def test_boxes_from_mask_are_the_components():
    mask = np.zeros((5, 6, 7), bool)
    mask[0, 1, 1] = True
    mask[2:4, 1:3, 2:6] = True
    mask[4, 3, 6] = True  # touches the block by a corner
    boxes = prompts.boxes_from_mask(mask)
    assert sorted(boxes.tolist()) == [[0, 1, 1, 1, 2, 2], [2, 1, 2, 5, 4, 7]]
    assert prompts.boxes_from_mask(np.zeros_like(mask)).shape == (0, 6)
    covered = prompts.rasterise_boxes(jnp.asarray(boxes)[None], mask.shape)
    assert np.asarray(covered)[0][mask].all()


def test_anomaly_logit_bias_matches_loop():
    rng = np.random.default_rng(2)
    organs = rng.normal(size=(1, 3, *SHAPE)).astype(np.float32)
    tumours = rng.normal(size=(1, 2, *SHAPE)).astype(np.float32)
    score = -organs.max(axis=1)
    hosts = ((0, 2), (2,))
    new_organs, new_tumours = prompts.anomaly_logit_bias(
        jnp.asarray(organs), jnp.asarray(tumours), hosts
    )
    np.testing.assert_allclose(new_organs[:, 0], organs[:, 0] - score, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new_organs[:, 1], organs[:, 1])
    np.testing.assert_allclose(new_organs[:, 2], organs[:, 2] - 2 * score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_tumours, tumours + score[:, None], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='1 entries of hosts for 2'):
        prompts.anomaly_logit_bias(jnp.asarray(organs), jnp.asarray(tumours), ((0,),))


BOX_SHAPE, CLASSES = (4, 5, 6), (2, 7, 5)
box = jax.jit(prompts.boxes_from_labels, static_argnames='classes')
rasterise = jax.jit(prompts.rasterise_boxes, static_argnames='shape')


@pytest.fixture
def sparse_labels() -> np.ndarray:
    """Few voxels per class, so that boxes differ; the last sample shows no class asked for."""
    rng = np.random.default_rng(3)
    label = np.where(rng.random((6, *BOX_SHAPE)) < 0.05, rng.integers(1, 8, (6, *BOX_SHAPE)), 0)
    label[-1] = 1
    return label.astype(np.uint8)


def loop_boxes(label, classes):
    """Smallest and largest index of the voxels of each class."""
    boxes = np.zeros((len(label), len(classes), 6), int)
    for b, m in np.ndindex(boxes.shape[:2]):
        voxels = [v for v in np.ndindex(label.shape[1:]) if label[(b, *v)] == classes[m]]
        if voxels:
            boxes[b, m] = [*np.min(voxels, axis=0), *(np.max(voxels, axis=0) + 1)]
    return boxes


def test_boxes_from_labels_match_loops_under_jit_and_vmap(sparse_labels):
    expected = loop_boxes(sparse_labels, CLASSES)
    assert (expected[:-1].any(axis=-1)).sum() > 8
    assert not expected[-1].any()
    boxes = box(sparse_labels, CLASSES)
    assert boxes.dtype == jnp.int32
    np.testing.assert_array_equal(boxes, expected)
    mapped = jax.vmap(lambda label: box(label, CLASSES))(sparse_labels.reshape(3, 2, *BOX_SHAPE))
    np.testing.assert_array_equal(mapped.reshape(boxes.shape), expected)
    for b in range(len(sparse_labels)):  # batch neighbours change nothing
        np.testing.assert_array_equal(box(sparse_labels[b : b + 1], CLASSES)[0], expected[b])


def box_of(mask):
    """Of a mask in one piece; zeros for an empty one."""
    return [*prompts.boxes_from_mask(mask).tolist(), [0] * 6][0]


def test_box_of_a_single_lesion_is_that_of_its_mask():
    label = np.zeros((2, *BOX_SHAPE), np.int32)
    label[0, 1:4, 0:2, 5:6] = 7
    label[1, 0, 4, 0] = 2
    label[1, 3, 4, 5] = 3
    boxes = np.asarray(box(label, CLASSES))
    for b, m in np.ndindex(2, 3):
        np.testing.assert_array_equal(boxes[b, m], box_of(label[b] == CLASSES[m]))
    covered = np.asarray(rasterise(boxes, shape=BOX_SHAPE))
    np.testing.assert_array_equal(covered, np.isin(label, CLASSES))


def test_no_class_has_no_box():
    label = np.full((1, *BOX_SHAPE), -1)
    assert not np.asarray(box(label, (-1, 3))).any()
    empty = box(label, ())
    assert empty.shape == (1, 0, 6)
    assert not np.asarray(rasterise(empty, shape=BOX_SHAPE)).any()
