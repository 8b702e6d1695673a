"""The training and validation steps: pure functions, compiled once per phase."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from maxquery_jax import axes
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.models.partition import constrain
from maxquery_jax.ops.targets import Parents, class_targets
from maxquery_jax.train.rngs import stream
from maxquery_jax.train.state import TrainState
from maxquery_jax.typing import Array, Batch, PyTree

Metrics = dict[str, Array]
Objective = Callable[..., tuple[Array, Metrics]]
"""`objective(outputs, label=, class_mask=)`; class_mask only if the batch holds one."""
Gradients = Callable[..., tuple[PyTree, Metrics]]
"""`gradients(state, image, truth, key)`, truth being what the batch holds beside the image."""
Augment = Callable[[Batch, Array], Batch]
ModelInputs = Callable[[Batch], dict[str, Any]]
"""What a batch holds beside the image to what the model is called with beside the image."""
ModelParams = Callable[[PyTree], PyTree]
"""Parameters as a state holds them to those that the model is called with."""


def image_alone(truth: Batch) -> dict[str, Any]:
    """`ModelInputs` of a model that sees nothing of the truth."""
    del truth
    return {}


def as_stored(params: PyTree) -> PyTree:
    """`ModelParams` of a state that holds the model's own shapes."""
    return params


class AugmentStep:
    """`step(batch, index) -> batch`: the device augmentation as a program of its own.

    Apart from the train step it is compiled once for all stages of an experiment and runs while
    the device still computes the step before.
    """

    def __init__(self, augment: Augment, *, seed: int, stage: str) -> None:
        """Compiles nothing yet.

        Args:
            augment: raw batch and key to float image [B, D, H, W, P] and int label [B, D, H, W];
                other entries pass through, but for `case`.
            seed: of the run.
            stage: name of the stage; the key derives from (seed, stage, step).
        """

        def step(batch: Batch, key: Array) -> Batch:
            return augment({name: x for name, x in batch.items() if name != 'case'}, key)

        self._jitted = jax.jit(step)
        self._seed, self._stream = seed, f'{stage}/augment'

    def __call__(self, batch: Batch, index: int | Array) -> Batch:
        """Augments the batch of step `index`."""
        return self._jitted(batch, stream(self._seed, self._stream, index))

    def lower(self, batch: PyTree, key: PyTree) -> jax.stages.Lowered:
        """Lowers the program for an abstract batch and key."""
        return self._jitted.lower(batch, key)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    objective: Objective,
    *,
    accumulate: int = 1,
    frozen_steps: int = 0,
    model_inputs: ModelInputs = image_alone,
    model_params: ModelParams = as_stored,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch, key) -> (state, metrics)`.

    The key is that of the stage's dropout stream, the same at every step: the seed must not be
    part of the program, or every seed of a study would compile its own.

    Gradients of `accumulate` micro-batches are averaged; losses and norms are per sample, so the
    result is the full batch's. In the first `frozen_steps` steps no gradient is computed below
    the pixel features. A non-finite loss leaves parameters and optimiser state unchanged (the
    loop stops on it), so that no damaged state can be saved.

    Args:
        model: called as `model.apply(..., image, train=True)`.
        tx: optimiser.
        objective: outputs and what else the batch holds, label [B, D, H, W] and perhaps class_mask
            [B, K], to (loss, metrics).
        accumulate: micro-batches per step; divides the batch size.
        frozen_steps: steps in which the model is called with `freeze_backbone=True`.
        model_inputs: further keyword arguments of the model, from the truth.
        model_params: parameters of the state to those of the model.
    """
    gradients = _make_gradients(model, objective, model_inputs, model_params)
    if frozen_steps:
        gradients = _freeze_at_first(gradients, frozen_steps)
    if accumulate > 1:
        gradients = _accumulate(gradients, accumulate)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        truth = {name: x for name, x in batch.items() if name != 'image'}
        grads, metrics = gradients(state, batch['image'], truth, key)
        metrics['grad_norm'] = optax.tree.norm(grads)

        def update(grads: PyTree) -> tuple[PyTree, PyTree]:
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state

        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
        params, opt_state = jax.lax.cond(
            finite, update, lambda _: (state.params, state.opt_state), grads
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _make_gradients(
    model: nn.Module, objective: Objective, model_inputs: ModelInputs, model_params: ModelParams
) -> Gradients:
    """Gradients and metrics of a batch."""

    def gradients(state: TrainState, image: Array, truth: Batch, key: Array, **call):
        image = constrain(image, axes.VOLUME)
        truth = truth | {'label': constrain(truth['label'], axes.VOLUME[:-1])}
        call |= model_inputs(truth)

        def loss_fn(params: PyTree) -> tuple[Array, Metrics]:
            outputs = model.apply(
                {'params': model_params(params)},
                image,
                train=True,
                rngs={'dropout': key},
                **call,
            )
            return objective(outputs, **truth)

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, metrics

    return gradients


def _freeze_at_first(gradients: Gradients, frozen_steps: int) -> Gradients:
    """Stops gradients at the pixel features in the first steps."""

    def chosen(state: TrainState, image: Array, truth: Batch, key: Array):
        return jax.lax.cond(
            state.step < frozen_steps,
            lambda *args: gradients(*args, freeze_backbone=True),
            gradients,
            state,
            image,
            truth,
            key,
        )

    return chosen


def _accumulate(gradients: Gradients, parts: int) -> Gradients:
    """Averages over micro-batches, one after the other."""

    def split(x: Array) -> Array:  # rows stay on their device: micro-batch a takes row a mod parts
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def accumulated(state: TrainState, image: Array, truth: Batch, key: Array):
        def body(total, part):
            index, image_part, truth_part = part
            grads, metrics = gradients(
                state, image_part, truth_part, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        batches = (jnp.arange(parts), split(image), jax.tree.map(split, truth))
        grads, metrics = jax.lax.scan(body, zeros, batches)
        scale = 1.0 / parts
        return jax.tree.map(lambda g: g * scale, grads), jax.tree.map(jnp.mean, metrics)

    return accumulated


Masks = Callable[[Any, Array], tuple[Array, Array]]
"""(outputs, label [B, D, H, W]) to predicted and true masks, bool [K, B, D, H, W] each."""


def exclusive_masks(num_classes: int) -> Masks:
    """Masks of a model with one class per voxel."""

    def masks(outputs: Any, label: Array) -> tuple[Array, Array]:
        classes = jnp.arange(num_classes).reshape(-1, 1, 1, 1, 1)
        predicted = jnp.argmax(outputs.seg_logits, axis=-1)
        return predicted[None] == classes, label[None] == classes

    return masks


def overlapping_masks(parents: Parents, query_classes: Sequence[int]) -> Masks:
    """Masks of a model with one sigmoid per query; an organ's hold its tumours.

    Args:
        parents: of the K classes, see `ops.targets.class_targets`.
        query_classes: class of each query, `losses.masks.UNSEEN` for none; classes without a query
            are neither predicted nor counted.
    """

    def masks(outputs: Any, label: Array) -> tuple[Array, Array]:
        logits = outputs.mask_logits
        rows = [-1] * len(parents)
        for query, known in enumerate(query_classes[: logits.shape[1]]):
            if known != UNSEEN:
                rows[known] = query
        empty = jnp.zeros_like(label, bool)
        truth = jnp.moveaxis(class_targets(label, parents), -1, 0)
        predicted = [logits[:, q] > 0 if q >= 0 else empty for q in rows]
        shown = [truth[k] if q >= 0 else empty for k, q in enumerate(rows)]
        return jnp.stack(predicted), jnp.stack(shown)

    return masks


def make_eval_step(
    model: nn.Module, crop: Augment, masks: Masks, model_params: ModelParams = as_stored
) -> Callable[[PyTree, Batch], Array]:
    """Builds `step(params, batch) -> counts` for validation Dice.

    Returns:
        A function whose result is [K, 3] int32: voxels of (true positive, predicted, labelled)
        per class, summed over the batch; samples that do not annotate a class add nothing to it.
    """

    def step(params: PyTree, batch: Batch) -> Array:
        batch = crop(batch, jax.random.key(0))
        params = model_params(params)
        outputs = model.apply({'params': params}, batch['image'], train=False)
        predicted, label = masks(outputs, batch['label'])
        if 'class_mask' in batch:
            annotated = batch['class_mask'].T[:, :, None, None, None]
            predicted, label = predicted & annotated, label & annotated
        counts = [predicted & label, predicted, label]
        return jnp.stack([c.sum((1, 2, 3, 4), dtype=jnp.int32) for c in counts], axis=-1)

    return step
