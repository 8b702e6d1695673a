"""The policy as a whole: rates, order independence, identity, sharding, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.augment import sample
from maxquery_jax.augment.policy import (
    AugmentPolicy,
    crop_size,
    deform_rate,
    is_dummy_2d,
    make_augment,
    make_center_crop,
    no_augmentation,
    shard_augment,
)
from maxquery_jax.errors import UserError

INTENSITY = {'lower': [-200.0], 'upper': [300.0], 'shift': [50.0], 'scale': [100.0]}
PATCH = (8, 8, 8)
ZERO = np.uint32(0)
# Sigma of the elastic field in proportion to these small patches.
SMALL = {'elastic_sigma': (2.0, 3.0), 'elastic_alpha': (0.0, 100.0)}


def make_batch(rows=2, size=(14, 14, 14), channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'image': jnp.asarray(rng.integers(-400, 500, (rows, *size, channels)), jnp.int16),
        'label': jnp.asarray(rng.integers(0, 3, (rows, *size)), jnp.uint8),
        'case': jnp.arange(rows, dtype=jnp.int32),
    }


def only(**changes):
    return dataclasses.replace(no_augmentation(), **SMALL, **changes)


@pytest.fixture(scope='module')
def full_augment():
    """Everything on, often: one compilation for the tests that share it."""
    rates = {f.name: 0.7 for f in dataclasses.fields(AugmentPolicy) if f.name.endswith('_rate')}
    policy = AugmentPolicy(**rates, **SMALL)
    return policy, jax.jit(make_augment(policy, PATCH, INTENSITY))


def test_without_any_probability_it_is_the_center_crop():
    batch = make_batch()
    cropped = make_center_crop(PATCH, INTENSITY)(batch)
    augmented = jax.jit(make_augment(no_augmentation(), PATCH, INTENSITY))(batch, jax.random.key(0))
    box = (slice(None),) + (slice(3, 11),) * 3
    image = np.asarray(batch['image'], np.float64)[box]
    want = (np.clip(image, -200, 300) - 50) / 100
    for result in (cropped, augmented):
        assert result['image'].dtype == jnp.float32 and result['label'].dtype == jnp.int32
        np.testing.assert_allclose(result['image'], want, atol=1e-6)
        np.testing.assert_array_equal(result['label'], np.asarray(batch['label'])[box])
        np.testing.assert_array_equal(result['case'], [0, 1])


def test_everything_on_is_deterministic_and_compiles_once(full_augment):
    _, augment = full_augment
    batch = make_batch()
    first = augment(batch, jax.random.key(1), ZERO)
    again = augment(batch, jax.random.key(1), ZERO)
    other = augment(make_batch(seed=1), jax.random.key(2), ZERO)
    assert first['image'].shape == (2, *PATCH, 1)
    assert first['image'].dtype == jnp.float32 and first['label'].dtype == jnp.int32
    np.testing.assert_array_equal(first['image'], again['image'])
    np.testing.assert_array_equal(first['label'], again['label'])
    assert not np.array_equal(first['image'], other['image'])
    assert np.isfinite(first['image']).all() and np.isfinite(other['image']).all()
    assert set(np.unique(first['label'])) <= {0, 1, 2}
    assert augment._cache_size() == 1


def test_a_row_depends_on_its_global_index_only(full_augment):
    _, augment = full_augment
    batch = make_batch()
    swapped = {key: value[::-1] for key, value in batch.items()}
    key = jax.random.key(3)
    plain = augment(batch, key, ZERO)
    shifted = augment(swapped, key, np.uint32(1))  # its first row is batch row 1, as row 1
    np.testing.assert_array_equal(shifted['image'][0], plain['image'][1])
    np.testing.assert_array_equal(shifted['label'][0], plain['label'][1])


def test_vmap_and_shards_give_the_values_of_map():
    policy = only(scaling_rate=0.7, multiplicative_rate=0.7, mirror_rate=0.5)
    batch, key = make_batch(4), jax.random.key(5)
    local = make_augment(policy, PATCH, INTENSITY)
    want = jax.jit(local)(batch, key)
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ('data', 'spatial'), axis_types=axes, devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    sharded = jax.jit(shard_augment(local, mesh, ('data',)))(jax.device_put(batch, sharding), key)
    assert sharded['image'].sharding.spec[0] in ('data', ('data',))
    together = jax.jit(make_augment(policy, PATCH, INTENSITY, per_sample='vmap'))(batch, key)
    assert len({float(np.asarray(image).sum()) for image in want['image']}) == 4
    for result in (sharded, together):
        np.testing.assert_allclose(result['image'], want['image'], atol=2e-3)
        assert (np.asarray(result['label']) != np.asarray(want['label'])).mean() < 0.002  # ties
        np.testing.assert_array_equal(result['case'], batch['case'])


RATES = [
    ('noise_rate', 0.3, {'noise_std': (0.05, 0.1)}),
    ('additive_rate', 0.4, {'channel_rate': 0.5}),
    ('gamma_rate', 0.3, {}),
    ('rotation_rate', 0.2, {}),
    ('scaling_rate', 0.2, {}),
    ('mirror_rate', 0.5, {'mirror_axes': (1,)}),
]


@pytest.mark.parametrize(('name', 'rate', 'others'), RATES)
def test_transforms_are_drawn_at_their_rate(name, rate, others):
    rows, patch = 600, (4, 4, 4)
    batch = make_batch(1, patch)
    batch = {key: jnp.broadcast_to(v, (rows, *v.shape[1:])) for key, v in batch.items()}
    policy = only(**{name: rate}, **others)
    augment = jax.jit(make_augment(policy, patch, INTENSITY, per_sample='vmap'))
    image = augment(batch, jax.random.key(0))['image']
    plain = make_center_crop(patch, INTENSITY)(batch)['image']
    changed = np.abs(np.asarray(image - plain)).max(axis=(1, 2, 3, 4)) > 1e-4
    expected = rate * others.get('channel_rate', 1.0)
    deviation = np.sqrt(expected * (1 - expected) / rows)
    assert abs(changed.mean() - expected) < 4 * deviation


def test_draws_stay_in_their_ranges_and_balance_about_one():
    rows, patch = 800, (2, 2, 2)
    image = jnp.full((rows, *patch, 1), 150, jnp.int16)
    batch = {'image': image, 'label': jnp.zeros((rows, *patch), jnp.uint8)}
    policy = only(multiplicative_rate=1.0, multiplicative_range=(0.5, 3.0))
    augment = jax.jit(make_augment(policy, patch, INTENSITY, per_sample='vmap'))
    factors = np.asarray(augment(batch, jax.random.key(0))['image'])[:, 0, 0, 0, 0]
    assert factors.min() >= 0.5 and factors.max() <= 3.0
    assert factors.min() < 0.52 and factors.max() > 2.9
    assert abs((factors < 1).mean() - 0.5) < 0.07


def test_mirroring_flips_image_and_label_together_and_is_an_involution():
    batch = make_batch(40, PATCH)
    policy = only(mirror_rate=0.5)
    augment = jax.jit(make_augment(policy, PATCH, INTENSITY))
    flipped = jax.device_get(augment(batch, jax.random.key(0)))
    plain = jax.device_get(make_center_crop(PATCH, INTENSITY)(batch))
    seen = set()
    for row in range(40):
        for axes in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]:
            if np.array_equal(np.flip(plain['image'][row], axes), flipped['image'][row]):
                break
        else:
            pytest.fail('not a mirror image')
        np.testing.assert_array_equal(np.flip(plain['label'][row], axes), flipped['label'][row])
        seen.add(axes)
    assert len(seen) == 8
    back = {'image': (flipped['image'] * 100 + 50).astype(jnp.int16), 'label': flipped['label']}
    twice = augment(back, jax.random.key(0))
    np.testing.assert_allclose(twice['image'], plain['image'], atol=0.011)
    np.testing.assert_array_equal(twice['label'], plain['label'])


def test_warped_label_follows_the_image():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (6, 8, 8, 8))
    label = np.kron(coarse, np.ones((1, 4, 4, 4), np.int64))
    batch = {
        'image': jnp.asarray(label[..., None] * 100, jnp.int16),
        'label': jnp.asarray(label, jnp.uint8),
    }
    policy = only(rotation_rate=1.0, scaling_rate=1.0, elastic_rate=1.0, mirror_rate=0.5)
    augment = jax.jit(make_augment(policy, (20, 20, 20), INTENSITY))
    result = augment(batch, jax.random.key(0))
    levels = np.asarray(result['image'])[..., 0] + 0.5  # 0, 1, 2 inside regions, -1.5 outside
    inside = np.isclose(levels, np.round(levels), atol=1e-3) & (levels > -0.5)
    assert inside.mean() > 0.15
    labels = np.asarray(result['label'])
    assert (np.round(levels)[inside] == labels[inside]).mean() > 0.995
    assert (labels[levels < -1.4] == 0).all() and (levels < -1.4).any()


RATES_OF_THREE = {'rotation_rate': 0.2, 'scaling_rate': 0.3, 'elastic_rate': 0.1}


def test_deform_rate_is_that_of_any_of_three():
    assert deform_rate(only(**RATES_OF_THREE)) == pytest.approx(1 - 0.8 * 0.7 * 0.9)
    assert deform_rate(no_augmentation()) == 0
    assert deform_rate(AugmentPolicy()) == pytest.approx(1 - 0.8**3)


@pytest.mark.parametrize('names', [('rotation', 'scaling', 'elastic'), ('scaling',), ()])
def test_draws_given_a_deformation_have_the_rates_they_have_without(names):
    """P(r, s, e) = P(any) P(r, s, e | any), and none without."""
    rates = {f'{n}_rate': RATES_OF_THREE[f'{n}_rate'] for n in names}
    policy = only(**rates)
    rows = 20_000
    uniform = np.random.default_rng(0).random((3, rows))
    rng = np.random.default_rng(1)
    drawn = []
    for flag in (None, rng.random(rows) < deform_rate(policy)):

        def draw(u, deformed, given=flag is not None):
            draws = dict(zip(('rotation', 'scaling', 'elastic'), u[:, None], strict=True))
            return sample._draw_deformations(policy, draws, deformed if given else None)

        flags = np.ones(rows, bool) if flag is None else flag
        found = jax.vmap(draw)(jnp.asarray(uniform.T, jnp.float32), jnp.asarray(flags))
        drawn.append(np.stack([np.asarray(f) for f in found], axis=1))
        if flag is not None:
            np.testing.assert_array_equal(drawn[-1].any(axis=1), flag)
    codes = [np.bincount(d @ [1, 2, 4], minlength=8) / rows for d in drawn]
    np.testing.assert_allclose(codes[0], codes[1], atol=4 * np.sqrt(0.25 / rows))


def test_undeformed_samples_are_cut_out_whatever_is_around_the_patch():
    policy = only(rotation_rate=1.0, mirror_rate=0.5)
    augment = jax.jit(make_augment(policy, PATCH, INTENSITY))
    batch, key = make_batch(4), jax.random.key(0)
    deformed = jnp.array([True, False, True, False])
    noise = {'image': batch['image'].at[:, :3].set(7), 'label': batch['label'].at[:, :3].set(9)}
    first = augment({**batch, 'deformed': deformed}, key)
    other = augment({**batch, **noise, 'deformed': deformed}, key)
    assert set(first) == {'image', 'label', 'case'}
    plain = make_center_crop(PATCH, INTENSITY)(batch)
    for row in range(4):
        same = np.array_equal(first['image'][row], other['image'][row])
        assert same == (not deformed[row])
        flips = [
            np.array_equal(np.flip(plain['image'][row], axes), first['image'][row])
            for axes in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        ]
        assert any(flips) == (not deformed[row])


def test_mirroring_a_warped_patch_is_the_mirrored_warp():
    batch, key = make_batch(3), jax.random.key(0)
    policy = only(rotation_rate=1.0, scaling_rate=1.0)
    plain = jax.jit(make_augment(policy, PATCH, INTENSITY))(batch, key)
    both = dataclasses.replace(policy, mirror_rate=1.0, mirror_axes=(0, 2))
    mirrored = jax.jit(make_augment(both, PATCH, INTENSITY))(batch, key)
    np.testing.assert_allclose(mirrored['image'], np.flip(plain['image'], (1, 3)), atol=2e-3)
    different = np.asarray(mirrored['label']) != np.flip(plain['label'], (1, 3))
    assert different.mean() < 0.01  # ties


def test_slices_only_mode_keeps_slices_apart():
    patch, crop = (4, 16, 16), (4, 24, 24)
    slices = np.arange(4).reshape(4, 1, 1) + 1
    label = np.broadcast_to(slices, crop)
    batch = {
        'image': jnp.asarray(label[None, ..., None] * 50, jnp.int16),
        'label': jnp.asarray(label[None], jnp.uint8),
    }
    policy = only(
        rotation_rate=1.0, scaling_rate=1.0, elastic_rate=1.0, elastic_alpha_2d=(20.0, 30.0)
    )
    assert is_dummy_2d(policy, patch)
    augment = jax.jit(make_augment(policy, patch, INTENSITY))
    for seed in range(3):
        result = augment(batch, jax.random.key(seed))
        labels, image = np.asarray(result['label'])[0], np.asarray(result['image'])[0, ..., 0]
        assert set(np.unique(labels)) <= {0, 1, 2, 3, 4}
        for z in range(4):
            inner = labels[z, 5:11, 5:11]
            assert (inner == z + 1).all()
            np.testing.assert_allclose(image[z, 5:11, 5:11], (50 * (z + 1) - 50) / 100, atol=1e-5)


def test_several_channels_draw_apart_and_stay_aligned():
    batch = make_batch(60, (6, 6, 6), channels=2)
    intensity = {key: values * 2 for key, values in INTENSITY.items()}
    policy = only(additive_rate=1.0, channel_rate=0.5)
    augment = jax.jit(make_augment(policy, (6, 6, 6), intensity))
    image = augment(batch, jax.random.key(0))['image']
    offset = np.asarray(image - make_center_crop((6, 6, 6), intensity)(batch)['image'])
    assert np.ptp(offset, axis=(1, 2, 3)).max() < 1e-5
    offset = offset[:, 0, 0, 0]
    assert abs((np.abs(offset) > 1e-6).mean() - 0.5) < 0.2
    assert (np.abs(offset[:, 0] - offset[:, 1]) > 1e-6).sum() > 30
    assert 0.05 < offset[np.abs(offset) > 1e-6].std() < 0.15


def test_crop_sizes():
    policy = AugmentPolicy()
    assert crop_size(policy, (96, 96, 96)) == (154, 154, 154)  # nnU-Net's
    assert crop_size(policy, (28, 192, 320)) == (28, 374, 448)
    assert crop_size(no_augmentation(), (96, 96, 96)) == (96, 96, 96)
    assert crop_size(only(scaling_rate=0.1), (10, 11, 12)) == (14, 15, 18)
    assert crop_size(only(rotation_rate=0.1, dummy_2d=True), (8, 8, 8)) == (8, 12, 12)


@pytest.mark.parametrize(
    'changes',
    [
        {'rotation_rate': 1.0, 'dummy_2d': True},
        {'scaling_rate': 1.0},
        {'rotation_rate': 1.0, 'rotation_degrees': 30.0},
    ],
)
def test_one_transform_needs_no_padding(changes):
    policy = only(**changes)
    patch = (10, 12, 16)
    crop = crop_size(policy, patch)
    batch = {
        'image': jnp.full((40, *crop, 1), 50, jnp.int16),
        'label': jnp.ones((40, *crop), jnp.uint8),
    }
    result = jax.jit(make_augment(policy, patch, INTENSITY))(batch, jax.random.key(0))
    inside = np.isclose(np.asarray(result['image']), 0, atol=1e-4)
    assert inside.mean() > 0.999
    assert (np.asarray(result['label']) == 1).all()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'noise_rate': 1.5}, 'augment.noise_rate 1.5'),
        ({'scaling_range': (1.4, 0.7)}, 'augment.scaling_range'),
        ({'blur_sigma': (0.0, 1.0)}, 'above 0'),
        ({'mirror_axes': (3,)}, 'mirror_axes'),
    ],
)
def test_impossible_policies_are_explained(changes, message):
    with pytest.raises(UserError, match=message):
        AugmentPolicy(**changes)
    assert AugmentPolicy(mirror_axes=[0]).mirror_axes == (0,)


def test_the_papers_list_is_on_by_default():
    policy = AugmentPolicy()
    rates = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    want = {
        'rotation': 0.2, 'scaling': 0.2, 'elastic': 0.2, 'noise': 0.1, 'blur': 0.2,
        'multiplicative': 0.15, 'additive': 0.15, 'contrast': 0.15, 'low_resolution': 0.25,
        'gamma_inverted': 0.1, 'gamma': 0.3, 'mirror': 0.5, 'channel': 0.5,
    }  # fmt: skip
    assert {k[:-5]: v for k, v in rates.items() if k.endswith('_rate')} == want
