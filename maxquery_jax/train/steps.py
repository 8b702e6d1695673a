"""The training and validation steps: pure functions, compiled once per phase."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from maxquery_jax.train.rngs import stream
from maxquery_jax.train.state import TrainState
from maxquery_jax.typing import Array, Batch, PyTree

Metrics = dict[str, Array]
Objective = Callable[[PyTree, Array], tuple[Array, Metrics]]
Augment = Callable[[Batch, Array], Batch]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    objective: Objective,
    augment: Augment,
    *,
    seed: int,
    stage: str,
    accumulate: int = 1,
    apply_kwargs: dict | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)`.

    Gradients of `accumulate` micro-batches are averaged; losses and norms are per sample, so the
    result is the full batch's. A non-finite loss leaves parameters and optimiser state unchanged
    (the loop stops on it), so that no damaged state can be saved.

    Args:
        model: called as `model.apply(..., image, train=True, **apply_kwargs)`.
        tx: optimiser.
        objective: outputs and label [B, D, H, W] to (loss, metrics).
        augment: raw batch and key to float image [B, D, H, W, P] and int label.
        seed: of the run; random streams derive from (seed, stage, step).
        stage: name of the stage.
        accumulate: micro-batches per step; divides the batch size.
        apply_kwargs: extra static arguments of the model's call.
    """
    apply_kwargs = apply_kwargs or {}

    def loss_fn(params: PyTree, image: Array, label: Array, key: Array) -> tuple[Array, Metrics]:
        outputs = model.apply(
            {'params': params}, image, train=True, rngs={'dropout': key}, **apply_kwargs
        )
        return objective(outputs, label)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(params: PyTree, image: Array, label: Array, key: Array):
        if accumulate == 1:
            (_, metrics), grads = grad_fn(params, image, label, key)
            return grads, metrics

        def split(x: Array) -> Array:  # rows stay on their device: micro-batch a takes row a mod A
            return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

        def body(total, part):
            index, image_part, label_part = part
            (_, metrics), grads = grad_fn(
                params, image_part, label_part, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        parts = (jnp.arange(accumulate), split(image), split(label))
        grads, metrics = jax.lax.scan(body, zeros, parts)
        scale = 1.0 / accumulate
        return jax.tree.map(lambda g: g * scale, grads), jax.tree.map(jnp.mean, metrics)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = augment(batch, stream(seed, f'{stage}/augment', state.step))
        key = stream(seed, f'{stage}/dropout', state.step)
        grads, metrics = gradients(state.params, batch['image'], batch['label'], key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics['grad_norm'] = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
        keep = lambda new, old: jax.tree.map(  # noqa: E731
            lambda n, o: jnp.where(finite, n, o), new, old
        )
        params, opt_state = keep(params, state.params), keep(opt_state, state.opt_state)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def make_eval_step(
    model: nn.Module, crop: Augment, num_classes: int
) -> Callable[[PyTree, Batch], Array]:
    """Builds `step(params, batch) -> counts` for validation Dice.

    Returns:
        A function whose result is [K, 3] float32: voxels of (true positive, predicted, labelled)
        per class, summed over the batch.
    """

    def step(params: PyTree, batch: Batch) -> Array:
        batch = crop(batch, jax.random.key(0))
        outputs = model.apply({'params': params}, batch['image'], train=False)
        predicted = jnp.argmax(outputs.seg_logits, axis=-1)
        classes = jnp.arange(num_classes).reshape(-1, 1, 1, 1, 1)
        predicted, label = predicted[None] == classes, batch['label'][None] == classes
        counts = [predicted & label, predicted, label]
        return jnp.stack([c.sum((1, 2, 3, 4), dtype=jnp.float32) for c in counts], axis=-1)

    return step
