"""Learning-rate schedule and optimiser of a stage, with freezing by parameter path."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from maxquery_jax.errors import UserError
from maxquery_jax.typing import Array, Config, PyTree

BACKBONE = 'backbone'
OPTIMISERS = ('sgd', 'radam', 'adamw', 'adam')
SCHEDULES = ('poly', 'cosine')


class FreezeState(NamedTuple):
    """`count` int32 steps seen; `inner` the wrapped transformation's state."""

    count: Array
    inner: PyTree


def poly_schedule(
    learning_rate: float, epochs: int, steps_per_epoch: int, power: float
) -> optax.Schedule:
    """Polynomial decay per epoch: lr * (1 - epoch / epochs)^power (nnU-Net; MaxQuery Sec. 4.2).

    Args:
        learning_rate: value in epoch 0.
        epochs: number of epochs; the rate would reach 0 after the last.
        steps_per_epoch: optimiser steps of one epoch.
        power: exponent, 0.9 in nnU-Net.
    """

    def schedule(count):
        epoch = jnp.minimum(count // steps_per_epoch, epochs - 1)
        return learning_rate * (1.0 - epoch / epochs) ** power

    return schedule


def cosine_schedule(
    learning_rate: float, epochs: int, steps_per_epoch: int, warmup_epochs: int
) -> optax.Schedule:
    """Linear warm-up, then half a cosine to 0, per epoch (ZePT Sec. 4).

    Args:
        learning_rate: value after the warm-up.
        epochs: number of epochs; the rate would reach 0 after the last.
        steps_per_epoch: optimiser steps of one epoch.
        warmup_epochs: epoch e of them has (e + 1) / (warmup_epochs + 1) of the rate, so that the
            first one trains.
    """

    def schedule(count):
        epoch = jnp.minimum(count // steps_per_epoch, epochs - 1)
        warm = (epoch + 1) / (warmup_epochs + 1)
        done = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1)
        return learning_rate * jnp.where(
            epoch < warmup_epochs, warm, 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        )

    return schedule


def freeze_for(
    inner: optax.GradientTransformation, frozen_steps: int
) -> optax.GradientTransformation:
    """Zero updates and an untouched inner state for the first `frozen_steps` steps.

    Moments and their bias correction therefore start when the parameters start to train, as in
    an optimiser that never saw them before, and the state's structure never changes, so a
    checkpoint from either phase loads in the other.
    """

    def init(params: PyTree) -> FreezeState:
        return FreezeState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates, state, params=None):
        def skip(updates: PyTree) -> tuple[PyTree, PyTree]:
            return jax.tree.map(jnp.zeros_like, updates), state.inner

        def apply(updates: PyTree) -> tuple[PyTree, PyTree]:
            return inner.update(updates, state.inner, params)

        updates, kept = jax.lax.cond(state.count < frozen_steps, skip, apply, updates)
        return updates, FreezeState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def keep_fixed(
    inner: optax.GradientTransformation, roots: tuple[str, ...]
) -> optax.GradientTransformation:
    """Zero updates for parameters below some roots, weight decay included."""

    def is_fixed(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: _root(path) in roots, params)

    return optax.chain(inner, optax.masked(optax.set_to_zero(), is_fixed))


def label_by_root(params: PyTree) -> PyTree:
    """Labels each leaf 'backbone' or 'rest' by the first part of its path."""

    def label(path, _):
        return BACKBONE if _root(path) == BACKBONE else 'rest'

    return jax.tree_util.tree_map_with_path(label, params)


def _root(path) -> str:
    parts = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    return parts[0]


def make_optimizer(
    name: str,
    *,
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    weight_decay: float,
    clip_norm: float,
    schedule: str = 'poly',
    poly_power: float = 0.9,
    warmup_epochs: int = 0,
    momentum: float = 0.99,
    betas: tuple[float, float] = (0.9, 0.999),
    frozen_epochs: int = 0,
    backbone_multiplier: float = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds a stage's optimiser (MaxQuery Sec. 4.2; nnU-Net for 'sgd'; ZePT for 'adamw').

    Weight decay of 'sgd', 'radam' and 'adam' is added to the gradient (coupled L2, as the peers'
    optimisers do it); 'adamw' decouples it.

    Args:
        name: one of `OPTIMISERS`; 'sgd' is Nesterov with `momentum`.
        learning_rate: initial rate.
        epochs: length of the schedule.
        steps_per_epoch: optimiser steps in an epoch.
        weight_decay: coefficient.
        clip_norm: global gradient norm above which gradients are scaled down; 0 is off.
        schedule: 'poly' or 'cosine'.
        poly_power: exponent of the former.
        warmup_epochs: of the latter.
        momentum: of 'sgd'.
        betas: decay of the first and second moment of the others.
        frozen_epochs: epochs without updates for parameters below `backbone/`.
        backbone_multiplier: factor on the updates of `backbone/` afterwards.

    Returns:
        The transformation and its learning-rate schedule (for logs).

    Raises:
        UserError: unknown name, or a number out of range.
    """
    _validate(name, learning_rate, weight_decay, clip_norm, epochs, frozen_epochs)
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f'betas must lie in [0, 1), got {tuple(betas)}')
    if schedule not in SCHEDULES:
        raise UserError(f'unknown schedule {schedule!r}: choose from {", ".join(SCHEDULES)}')
    if not 0 <= warmup_epochs < epochs:
        raise UserError(
            f'warmup_epochs must lie in 0..epochs-1 ({epochs - 1}), got {warmup_epochs}'
        )
    if schedule == 'cosine':
        rate = cosine_schedule(learning_rate, epochs, steps_per_epoch, warmup_epochs)
    else:
        rate = poly_schedule(learning_rate, epochs, steps_per_epoch, poly_power)

    def rule() -> optax.GradientTransformation:
        return _rule(name, weight_decay, momentum, betas)

    parts = []
    if clip_norm:
        parts.append(optax.clip_by_global_norm(clip_norm))
    if frozen_epochs or backbone_multiplier != 1.0:
        backbone = freeze_for(
            optax.chain(rule(), optax.scale(backbone_multiplier)), frozen_epochs * steps_per_epoch
        )
        parts.append(optax.partition({BACKBONE: backbone, 'rest': rule()}, label_by_root))
    else:
        parts.append(rule())
    parts.append(optax.scale_by_learning_rate(rate))
    return optax.chain(*parts), rate


def _rule(
    name: str, weight_decay: float, momentum: float, betas: tuple[float, float]
) -> optax.GradientTransformation:
    """The update of an optimiser before its learning rate."""
    decay = optax.add_decayed_weights(weight_decay)
    if name == 'sgd':
        return optax.chain(decay, optax.trace(momentum, nesterov=True))
    if name == 'radam':
        return optax.chain(decay, optax.scale_by_radam(*betas))
    adam = optax.scale_by_adam(*betas)
    return optax.chain(decay, adam) if name == 'adam' else optax.chain(adam, decay)


def build_optimizer(stage: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and schedule that a stage's config describes."""
    return make_optimizer(**stage.optim, epochs=stage.epochs, steps_per_epoch=stage.steps_per_epoch)


def _validate(name, learning_rate, weight_decay, clip_norm, epochs, frozen_epochs) -> None:
    if name not in OPTIMISERS:
        raise UserError(f'unknown optimiser {name!r}: choose from {", ".join(OPTIMISERS)}')
    if not 0 < learning_rate < 10:
        raise UserError(f'learning_rate must lie in (0, 10), got {learning_rate}')
    if not 0 <= weight_decay < 1:
        raise UserError(f'weight_decay must lie in [0, 1), got {weight_decay}')
    if not clip_norm >= 0:
        raise UserError(f'clip_norm must be 0 (off) or positive, got {clip_norm}')
    if epochs < 1 or not 0 <= frozen_epochs <= epochs:
        raise UserError(f'frozen_epochs must lie in 0..epochs ({epochs}), got {frozen_epochs}')
