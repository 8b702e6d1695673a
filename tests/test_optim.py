"""Optimisers against formulas written here, and freezing by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxquery_jax import optim
from maxquery_jax.errors import UserError

PARAMS = {'backbone': {'k': jnp.array([1.0, -2.0])}, 'head': {'k': jnp.array([0.5, 3.0])}}
DEFAULTS = {
    'learning_rate': 0.1,
    'epochs': 4,
    'steps_per_epoch': 5,
    'weight_decay': 0.01,
    'clip_norm': 0.0,
}


def run(tx, steps, params=PARAMS, gradient=lambda p, t: jax.tree.map(lambda x: x * 0 + 0.3, p)):
    state = tx.init(params)
    history = []
    for t in range(steps):
        updates, state = tx.update(gradient(params, t), state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def test_poly_schedule_is_constant_within_an_epoch():
    schedule = optim.poly_schedule(0.1, epochs=4, steps_per_epoch=5, power=0.9)
    expected = [0.1 * (1 - (t // 5) / 4) ** 0.9 for t in range(20)]
    np.testing.assert_allclose([schedule(jnp.int32(t)) for t in range(20)], expected, rtol=1e-6)


def test_sgd_is_coupled_decay_with_nesterov_momentum():
    tx, _ = optim.make_optimizer('sgd', **DEFAULTS, momentum=0.9)
    weight, velocity = 0.5, 0.0
    for t in range(7):
        gradient = 0.3 + 0.01 * weight
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (1 - (t // 5) / 4) ** 0.9 * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(run(tx, 7)[-1]['head']['k'][0], weight, rtol=1e-6)


def test_radam_is_coupled_decay_with_rectification():
    tx, _ = optim.make_optimizer('radam', **DEFAULTS)
    weight, m, v = 3.0, 0.0, 0.0
    b1, b2 = 0.9, 0.999
    rho_inf = 2 / (1 - b2) - 1
    for t in range(1, 13):
        gradient = 0.3 + 0.01 * weight
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        m_hat, rho = m / (1 - b1**t), rho_inf - 2 * t * b2**t / (1 - b2**t)
        update = m_hat
        if rho >= 5:
            r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
            update = r * m_hat / ((v / (1 - b2**t)) ** 0.5 + 1e-8)
        weight -= 0.1 * (1 - ((t - 1) // 5) / 4) ** 0.9 * update
    np.testing.assert_allclose(run(tx, 12)[-1]['head']['k'][1], weight, rtol=1e-4)


def test_adam_is_coupled_decay_with_its_betas():
    tx, _ = optim.make_optimizer('adam', **DEFAULTS, betas=(0.5, 0.9))
    weight, m, v = 3.0, 0.0, 0.0
    for t in range(1, 8):
        gradient = 0.3 + 0.01 * weight
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        rate = 0.1 * (1 - ((t - 1) // 5) / 4) ** 0.9
        weight -= rate * (m / (1 - 0.5**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-8)
    np.testing.assert_allclose(run(tx, 7)[-1]['head']['k'][1], weight, rtol=1e-5)


def test_frozen_backbone_stays_exact_then_moves_at_its_multiplier():
    frozen, _ = optim.make_optimizer(
        'sgd', **DEFAULTS, momentum=0.0, frozen_epochs=1, backbone_multiplier=0.1
    )
    history = run(frozen, 6)
    for params in history[:5]:
        np.testing.assert_array_equal(params['backbone']['k'], PARAMS['backbone']['k'])
    before, after = history[4]['backbone']['k'], history[5]['backbone']['k']
    rate = 0.1 * (1 - 1 / 4) ** 0.9
    np.testing.assert_allclose(after, before - 0.1 * rate * (0.3 + 0.01 * before), rtol=1e-5)


def test_moments_of_frozen_parameters_start_when_they_thaw():
    frozen, _ = optim.make_optimizer(
        'radam', **DEFAULTS | {'weight_decay': 0.0, 'epochs': 1000}, frozen_epochs=2
    )
    plain, _ = optim.make_optimizer('radam', **DEFAULTS | {'weight_decay': 0.0, 'epochs': 1000})
    late = run(frozen, 20)
    early = run(plain, 10)
    moved_late = late[-1]['backbone']['k'] - late[9]['backbone']['k']
    moved_early = early[-1]['backbone']['k'] - PARAMS['backbone']['k']
    np.testing.assert_allclose(moved_late, moved_early, rtol=0.02)  # same bias correction


def test_state_structure_is_the_same_frozen_and_thawed():
    tx, _ = optim.make_optimizer('radam', **DEFAULTS, frozen_epochs=1)
    state = tx.init(PARAMS)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(7):
        _, state = tx.update(PARAMS, state, PARAMS)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'learning_rate': -1.0}, 'learning_rate'),
        ({'learning_rate': float('nan')}, 'learning_rate'),
        ({'weight_decay': 2.0}, 'weight_decay'),
        ({'clip_norm': -1.0}, 'clip_norm'),
        ({'frozen_epochs': 9}, 'frozen_epochs'),
        ({'betas': (0.5, 1.0)}, 'betas'),
    ],
)
def test_numbers_out_of_range_are_named(change, message):
    with pytest.raises(UserError, match=message):
        optim.make_optimizer('sgd', **DEFAULTS | change)


def test_unknown_optimiser_lists_the_known():
    with pytest.raises(UserError, match='sgd, radam, adamw, adam'):
        optim.make_optimizer('lion', **DEFAULTS)


def test_fixed_parameters_stay_exact_also_under_weight_decay():
    """Decoupled decay moves a parameter whose gradient is zero."""
    params = {'backbone': {'w': jnp.ones(3)}, 'head': {'w': jnp.ones(3)}}
    moving, _ = optim.make_optimizer('adamw', **DEFAULTS | {'weight_decay': 0.1})
    fixed = optim.keep_fixed(moving, ('backbone',))
    zeros = jax.tree.map(jnp.zeros_like, params)
    for tx, stays in ((moving, False), (fixed, True)):
        updates, _ = tx.update(zeros, tx.init(params), params)
        assert bool(jnp.all(updates['backbone']['w'] == 0)) == stays
        assert bool(jnp.all(updates['head']['w'] < 0))


def test_cosine_schedule_warms_up_and_ends_near_zero():
    """Four epochs of two steps, one of them warm-up (ZePT Sec. 4)."""
    schedule = optim.cosine_schedule(1.0, 4, 2, 1)
    rates = [float(schedule(step)) for step in range(8)]
    expected = [0.5, 0.5, 1.0, 1.0, 0.75, 0.75, 0.25, 0.25]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    with pytest.raises(UserError, match=r'warmup_epochs must lie in 0..epochs-1'):
        optim.make_optimizer('adamw', **DEFAULTS | {'epochs': 2, 'warmup_epochs': 2})
    with pytest.raises(UserError, match="unknown schedule 'step'"):
        optim.make_optimizer('adamw', **DEFAULTS, schedule='step')
