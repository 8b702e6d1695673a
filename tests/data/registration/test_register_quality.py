"""Overlap, similarity and folding against closed forms."""

import numpy as np
import pytest
import register_helper as helper
from sklearn.metrics import mutual_info_score

from maxquery_jax.data.orientation import find_orientation
from maxquery_jax.data.registration import quality
from maxquery_jax.data.registration.choice import Candidate, choose
from maxquery_jax.data.registration.grids import Grid


def grid_of(shape, affine):
    return Grid.of(find_orientation(affine, shape))


OBLIQUE = grid_of(
    (12, 11, 10), helper.centred((12, 11, 10), (2, 3, 4), 'LPS', helper.turn((9, 5, -20)))
)


def test_jacobian_of_a_linear_map_on_an_oblique_grid():
    matrix = np.array([[0.2, 0.1, 0], [-0.3, 0.1, 0.2], [0.0, 0.4, -0.3]])
    u = OBLIQUE.points() @ matrix.T
    expected = np.linalg.det(np.eye(3) + matrix)
    found = quality.jacobian_determinant(u, OBLIQUE.affine)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_mirrored_map_is_folded_everywhere():
    matrix = np.diag([-2.0, 0, 0])  # x -> -x
    found = quality.measure_folding(lambda g: g.points() @ matrix.T, OBLIQUE)
    assert found.share == 1
    assert found.minimum == pytest.approx(-1)
    assert found.largest_mm == pytest.approx(2 * np.abs(OBLIQUE.points()[..., 0]).max())


def test_share_of_folding_of_a_sine():
    """u = a sin(k z): det = 1 + a k cos(k z) is negative where cos(k z) < -1 / (a k)."""
    grid = grid_of((3, 3, 400), helper.centred((3, 3, 400), (1, 1, 0.5)))
    k, strength = 2 * np.pi / 50, 2.0  # four periods

    def wave(part):
        u = np.zeros((*part.shape, 3))
        u[..., 2] = strength / k * np.sin(k * part.points()[..., 2])
        return u

    found = quality.measure_folding(wave, grid)
    assert found.share == pytest.approx(np.arccos(1 / strength) / np.pi, abs=0.01)
    assert found.minimum == pytest.approx(1 - strength, abs=0.01)
    assert found.largest_mm == pytest.approx(strength / k, rel=1e-3)
    whole = quality.jacobian_determinant(wave(grid), grid.affine)  # slabs leave no seam
    assert found.share == pytest.approx((whole <= 0).mean(), abs=1e-12)


def test_identity_does_not_fold():
    found = quality.measure_folding(lambda g: np.zeros((*g.shape, 3)), OBLIQUE)
    assert (found.share, found.minimum, found.largest_mm) == (0, 1, 0)


def test_similarities_equal_other_implementations():
    rng = np.random.default_rng(0)
    a = rng.uniform(-240, 340, 5000)
    b = np.clip(0.5 * a + rng.normal(0, 60, 5000), -250, 349)
    assert quality.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    bins = [np.floor((v + 250) / (600 / 32)).astype(int) for v in (a, b)]
    assert quality.mutual_information(a, b) == pytest.approx(mutual_info_score(*bins), rel=1e-6)
    assert np.isnan(quality.correlation(a, np.ones_like(a)))
    assert np.isnan(quality.mutual_information(a[:0], b[:0]))


def test_dice():
    a, b = np.zeros((2, 10), bool)
    a[:6], b[3:7] = True, True
    assert quality.dice(a, b) == pytest.approx(2 * 3 / 10)
    assert np.isnan(quality.dice(a & False, b & False))


def test_body_has_its_lungs_and_no_table():
    image = helper.scan(noise=0).T.astype(np.float32)
    image[:, 7:8, 4:44] = 100  # a sheet on which the patient lies
    body = quality.body_mask(image)
    points = helper.grid_points(helper.SHAPE, helper.AFFINE).transpose(2, 1, 0, 3)
    centre, axes, _ = helper.ORGANS[0]
    truth = (((points - centre) / axes) ** 2).sum(-1) < 1
    assert quality.dice(body, truth) > 0.95
    assert not body[:, 7, :16].any()
    assert not quality.body_mask(np.full((4, 5, 6), -1000.0)).any()


def candidate(name, image, covered=None):
    covered = np.ones(image.shape, bool) if covered is None else covered
    return Candidate(name, image, covered, lambda: image)


def test_the_better_alignment_is_kept():
    image = helper.scan(noise=2).T.astype(np.float32)
    body = quality.body_mask(image)
    near, far = np.roll(image, 1, 2), np.roll(image, 6, 2)
    kept, note = choose([candidate('headers', far), candidate('rigid', near)], image, body)
    assert (kept.name, note) == ('rigid', '')
    kept, note = choose([candidate('headers', near), candidate('rigid', far)], image, body)
    assert kept.name == 'headers' and note.startswith('rigid is worse than headers')
    three = [candidate('headers', far), candidate('rigid', near), candidate('deformable', far)]
    assert choose(three, image, body)[0].name == 'rigid'


def test_an_alignment_that_loses_the_body_is_not_kept():
    image = helper.scan(noise=2).T.astype(np.float32)
    body = quality.body_mask(image)
    covered = np.zeros(image.shape, bool)
    covered[:6] = True
    few = candidate('rigid', image, covered)
    kept, note = choose([candidate('headers', np.roll(image, 2, 2)), few], image, body)
    assert kept.name == 'headers' and 'of the body' in note
    nothing = candidate('headers', image, covered & False)
    assert choose([nothing, candidate('rigid', image)], image, body)[0].name == 'rigid'
