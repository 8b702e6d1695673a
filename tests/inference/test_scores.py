"""The case score and its fallback chain."""

import numpy as np
import pytest

from maxquery_jax.inference import scores

GROUPS = (0, 1, 2, 2)


def _case(present):
    rng = np.random.default_rng(3)
    label = rng.choice(present, (5, 6, 7)).astype(np.uint8)
    return label, rng.normal(-300, 40, label.shape).astype(np.float16)


@pytest.mark.parametrize(
    ('present', 'region', 'ids'),
    [([0, 1, 2, 3], 'tumour', [2, 3]), ([0, 1], 'organ', [1]), ([0], 'volume', [0])],
)
def test_mean_over_the_first_region_that_exists(present, region, ids):
    label, score = _case(present)
    values = [float(s) for c, s in zip(label.ravel(), score.ravel(), strict=True) if c in ids]
    found = scores.case_ood_score(label, score, GROUPS)
    assert found.region == region and found.voxels == len(values)
    assert found.value == pytest.approx(sum(values) / len(values), rel=1e-9)
    assert found.fallback == (None if region == 'tumour' else region)


def test_slabs_and_voxel_counts_agree_with_the_whole():
    label, score = _case([0, 1, 2, 3])
    scorer = scores.CaseScorer(GROUPS)
    scorer.update(label[:2], score[:2])
    scorer.update(label[2:], score[2:])
    assert scorer.result() == scores.case_ood_score(label, score, GROUPS)
    assert list(scorer.voxels) == [(label == i).sum() for i in range(4)]


def test_nothing_to_score():
    with pytest.raises(ValueError, match='at least one voxel'):
        scores.CaseScorer(GROUPS).result()
