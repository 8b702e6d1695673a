"""Planning rule: nnU-Net's answers, the papers' tables, overrides, errors."""

import pathlib

import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.topology import Topology, plan_topology

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'topology.npz'
ONE, PLANE, HALF = (1, 1, 1), (1, 2, 2), (2, 2, 2)
FLAT, CUBE = (1, 3, 3), (3, 3, 3)
ISOTROPIC = (1.0, 1.0, 1.0)


def test_sixty_patches_get_nnunets_stages():
    with np.load(GOLDEN) as golden:
        rows = list(
            zip(
                golden['patch_size'].tolist(),
                golden['spacing_mm'].tolist(),
                golden['strides'],
                golden['kernels'],
                strict=True,
            )
        )
    assert len(rows) == 60
    for patch, spacing, strides, kernels in rows:
        topology = plan_topology(tuple(patch), tuple(spacing))
        stages = topology.num_stages
        assert stages == int(strides.any(axis=1).sum())
        assert topology.strides == tuple(map(tuple, strides[:stages].tolist()))
        assert topology.kernels == tuple(map(tuple, kernels[:stages].tolist()))


def test_pancreas_patch_of_the_paper():
    topology = plan_topology((28, 192, 320), (3.0, 0.419, 0.419))
    assert topology.features == (32, 64, 128, 256, 320, 320)
    assert topology.strides == (ONE, PLANE, PLANE, HALF, HALF, PLANE)
    assert topology.kernels == (FLAT, FLAT, CUBE, CUBE, CUBE, CUBE)
    cumulative = (ONE, (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (4, 32, 32))
    assert topology.cumulative_strides == cumulative
    assert topology.output_strides == (1, 2, 4, 8, 16, 32)


def test_liver_patch_of_the_paper():
    topology = plan_topology((40, 192, 224), (3.0, 0.76, 0.76))
    assert topology.features == (32, 64, 128, 256, 320, 320)
    assert topology.strides == (ONE, PLANE, HALF, HALF, HALF, PLANE)
    assert topology.kernels == (FLAT, CUBE, CUBE, CUBE, CUBE, CUBE)
    assert topology.cumulative_strides[-1] == (8, 32, 32)


@pytest.mark.parametrize(
    ('patch', 'spacing', 'cumulative'),
    [
        ((96, 96, 96), (1.5, 1.5, 1.5), (16, 16, 16)),
        ((24, 48, 48), (5.0, 3.0, 3.0), (4, 8, 8)),
        ((32, 32, 32), ISOTROPIC, (8, 8, 8)),
    ],
)
def test_small_patches(patch, spacing, cumulative):
    topology = plan_topology(patch, spacing)
    assert topology.cumulative_strides[-1] == cumulative
    assert topology.num_stages == len(bin(max(cumulative))) - 2


def test_features_and_stages_can_be_limited():
    topology = plan_topology((64, 64, 64), ISOTROPIC, base=6, cap=20, max_stages=4)
    assert topology.features == (6, 12, 20, 20)
    assert topology.cumulative_strides[-1] == (8, 8, 8)
    assert len(topology.kernels) == 4
    assert plan_topology((64, 64, 64), ISOTROPIC).num_stages == 5


def test_topology_is_hashable_and_checks_its_lengths():
    assert hash(plan_topology((32, 32, 32), ISOTROPIC)) == hash(
        plan_topology((32, 32, 32), ISOTROPIC)
    )
    with pytest.raises(ValueError, match='one entry per stage, got 2, 1 and 1'):
        Topology(features=(2, 4), strides=(ONE,), kernels=(FLAT,))


@pytest.mark.parametrize(
    ('patch', 'message'),
    [
        ((30, 32, 32), r'side 30 along z is not divisible by the network stride 8; use 24 or 32'),
        ((32, 32, 33), r'side 33 along x is not divisible by the network stride 8; use 32 or 40'),
    ],
)
def test_a_side_that_does_not_divide_names_the_nearest_sizes(patch, message):
    with pytest.raises(UserError, match=message):
        plan_topology(patch, ISOTROPIC)


@pytest.mark.parametrize('side', [24, 32])
def test_the_sizes_named_in_the_error_are_valid(side):
    assert plan_topology((side, 32, 32), ISOTROPIC).num_stages == 4


@pytest.mark.parametrize(
    ('patch', 'spacing', 'options', 'message'),
    [
        ((0, 32, 32), ISOTROPIC, {}, r'patch_size \(0, 32, 32\): z must be a positive'),
        ((32, -4, 32), ISOTROPIC, {}, 'y must be a positive'),
        ((32, 32, 32), (1.0, 0.0, 1.0), {}, r'spacing_mm \(1.0, 0.0, 1.0\): y must be positive'),
        ((32, 32, 32), (1.0, 1.0, float('nan')), {}, 'x must be positive'),
        ((4, 6, 7), ISOTROPIC, {}, 'too small'),
        ((32, 32, 32), ISOTROPIC, {'max_stages': 1}, 'max_stages .* at least 2, got 1'),
        ((32, 32), ISOTROPIC, {}, r'patch_size \(32, 32\): give three numbers'),
    ],
)
def test_impossible_requests_are_the_users_errors(patch, spacing, options, message):
    with pytest.raises(UserError, match=message) as error:
        plan_topology(patch, spacing, **options)
    assert '\n' not in str(error.value)
