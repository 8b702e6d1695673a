"""Builds one stage: model, objective, optimiser, augmentation, compiled steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import meta
from jax.sharding import Mesh

from maxquery_jax.augment import policy as augment_policy
from maxquery_jax.baselines.synthcp.model import synthcp_objective
from maxquery_jax.data.store import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.losses import total
from maxquery_jax.models.build import build_model
from maxquery_jax.models.zept import STAGE1_MODULES
from maxquery_jax.optim import build_optimizer, keep_fixed
from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import DATA, FSDP
from maxquery_jax.train import steps, zept_stage
from maxquery_jax.train.flops import program_flops
from maxquery_jax.train.layout import StateLayout
from maxquery_jax.train.rngs import stream_key
from maxquery_jax.train.state import abstract_params
from maxquery_jax.typing import Array, Config


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, ready to be initialised, compiled and run.

    Attributes:
        name: field of the config.
        config: that field.
        model: linen module.
        tx: optimiser.
        schedule: its learning rate by step.
        total_steps: optimiser steps.
        crop_size: voxels (z, y, x) read per sample; augmentation cuts the patch out of it.
        patch_size: voxels (z, y, x) the model sees.
        deform_rate: share of the samples that are deformed, for which more than the patch is read.
        layout: of the whole state on the mesh.
        train_step: pure; takes state, augmented batch and `dropout_key`.
        dropout_key: of the stage's stream.
        augment_step: raw batch and step index to augmented batch.
        eval_step: validation counts.
        masked_classes: K if batches hold a `class_mask` [B, K], as those of a partially labelled
            data set do; else 0.
    """

    name: str
    config: Config
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    crop_size: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    deform_rate: float
    layout: StateLayout
    train_step: Callable
    dropout_key: Array
    augment_step: steps.AugmentStep
    eval_step: Callable
    masked_classes: int = 0

    def jit_step(self) -> Callable:
        """The train step as it is compiled everywhere: state donated, in its shards afterwards."""
        return jax.jit(
            self.train_step, donate_argnums=0, out_shardings=(self.layout.shardings, None)
        )

    def abstract_raw_batch(self, rows: int, channels: int, mesh: Mesh) -> dict[str, Any]:
        """Shapes of a raw batch as the pipeline delivers it."""
        place = sharding.batch_sharding(mesh)
        shape = (rows, *self.crop_size)
        return {
            'image': jax.ShapeDtypeStruct((*shape, channels), jnp.int16, sharding=place),
            'label': jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place),
            'case': jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place),
            **self._abstract_mask(rows, place),
        }

    def abstract_batch(self, rows: int, channels: int, mesh: Mesh) -> dict[str, Any]:
        """Shapes of an augmented batch, the train step's input."""
        place = sharding.batch_sharding(mesh)
        shape = (rows, *self.patch_size)
        return {
            'image': jax.ShapeDtypeStruct((*shape, channels), jnp.float32, sharding=place),
            'label': jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place),
            **self._abstract_mask(rows, place),
        }

    def _abstract_mask(self, rows: int, place) -> dict[str, Any]:
        if not self.masked_classes:
            return {}
        shape = (rows, self.masked_classes)
        return {'class_mask': jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=place)}


def make_model(
    config: Config,
    objective: str,
    num_classes: int,
    spacing_mm: tuple[float, ...],
    conv_form: str | None = None,
) -> nn.Module:
    """The model of an objective; raises UserError when sizes do not fit together."""
    return build_model(
        config.model,
        num_classes=num_classes,
        patch_size=tuple(config.data.patch_size),
        spacing_mm=(spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        objective=objective,
        conv_form=conv_form or config.model.conv_form,
        zept=zept_stage.model_sizes(config) if zept_stage.has_query_table(objective) else None,
    )


def build_stage(
    config: Config, name: str, manifest: Manifest, mesh: Mesh, *, is_partial: bool = False
) -> Stage:
    """Builds stage `name` of an experiment for a data set.

    Args:
        config: the experiment.
        name: stage name.
        manifest: of the store it trains on; of several, any one.
        mesh: devices.
        is_partial: whether a store does not annotate all classes.

    Raises:
        UserError: model, patch, batch or mesh do not fit together.
    """
    cfg = config[name]
    _refuse_partial_synthesis(name, cfg, is_partial)
    sharding.check_batch(mesh, config.data.batch_size, cfg.accumulate)
    patch_size = tuple(config.data.patch_size)
    model = make_model(config, cfg.objective, manifest.num_classes, manifest.spacing_mm)
    tx, schedule = build_optimizer(cfg)
    if cfg.objective == 'zept_stage2' and config.model.zept.freeze_stage1:
        tx = keep_fixed(tx, STAGE1_MODULES)
    boxed = abstract_params(model, (1, *patch_size, len(manifest.channels)))
    layout = StateLayout(boxed, tx, mesh)
    crop = augment_policy.make_center_crop(patch_size, manifest.intensity)
    if config.augment.enabled:
        policy = augment_policy.AugmentPolicy()
        augment = augment_policy.make_augment(policy, patch_size, manifest.intensity)
        crop_size = augment_policy.crop_size(policy, patch_size)
        deform_rate = augment_policy.deform_rate(policy)
        if mesh.size > 1:  # each device augments its own rows, so an undrawn transform is free
            augment = augment_policy.shard_augment(augment, mesh, (DATA, FSDP))
    else:
        augment, crop_size, deform_rate = crop, patch_size, 1.0
    objective = _make_objective(cfg, config, manifest, config.model.conv_form)
    train_step = steps.make_train_step(
        model,
        tx,
        objective,
        accumulate=cfg.accumulate,
        frozen_steps=cfg.optim.frozen_epochs * cfg.steps_per_epoch,
        model_inputs=_make_model_inputs(cfg, config, manifest),
        model_params=_make_model_params(cfg, config, manifest, layout),
    )
    masks = _make_masks(cfg, config, manifest)
    return Stage(
        name=name,
        config=cfg,
        model=model,
        tx=tx,
        schedule=schedule,
        total_steps=cfg.epochs * cfg.steps_per_epoch,
        crop_size=crop_size,
        patch_size=patch_size,
        deform_rate=deform_rate,
        layout=layout,
        train_step=train_step,
        dropout_key=stream_key(config.seed, f'{name}/dropout'),
        augment_step=steps.AugmentStep(augment, seed=config.seed, stage=name),
        eval_step=steps.make_eval_step(model, crop, masks, layout.model_params),
        masked_classes=manifest.num_classes if is_partial else 0,
    )


def _is_synthesis(cfg: Config) -> bool:
    """Whether a stage maps labels to images, so that its model needs the labels too."""
    return cfg.objective == 'synthcp'


def _refuse_partial_synthesis(name: str, cfg: Config, is_partial: bool) -> None:
    if is_partial and _is_synthesis(cfg):
        raise UserError(
            f'{name}: synthcp synthesises images from complete labels; give stores that annotate '
            'every class'
        )


def _make_model_inputs(cfg: Config, config: Config, manifest: Manifest) -> steps.ModelInputs:
    """What the model of a stage is called with beside the image."""
    if _is_synthesis(cfg):
        return lambda truth: {'label': truth['label']}
    if zept_stage.is_box_prompted(cfg, config):
        return zept_stage.make_box_prompt(config, manifest)
    return steps.image_alone


def _make_model_params(
    cfg: Config, config: Config, manifest: Manifest, layout: StateLayout
) -> steps.ModelParams:
    """What the model of a stage is trained with in place of the stored parameters."""
    if not zept_stage.has_query_table(cfg.objective):
        return layout.model_params
    tie = zept_stage.tie_unseen_queries(cfg, config, manifest)
    return lambda params: tie(layout.model_params(params))


def _make_masks(cfg: Config, config: Config, manifest: Manifest) -> steps.Masks:
    if zept_stage.has_query_table(cfg.objective):
        table = zept_stage.query_table(config, manifest)
        return steps.overlapping_masks(table.parents, table.classes)
    return steps.exclusive_masks(manifest.num_classes)


def _make_objective(cfg: Config, config: Config, manifest: Manifest, form: str) -> steps.Objective:
    if zept_stage.has_query_table(cfg.objective):
        return zept_stage.make_objective(cfg, config, manifest)
    loss = cfg.loss
    shared = {
        'ce_weight': loss.ce_weight,
        'dice_weight': loss.dice_weight,
        'batch_dice': loss.batch_dice,
    }
    if cfg.objective == 'segmentation':
        return functools.partial(total.segmentation_objective, **shared)
    if _is_synthesis(cfg):
        return functools.partial(
            synthcp_objective, feature_weight=loss.feature_weight, l1_weight=loss.l1_weight
        )
    return functools.partial(
        total.maxquery_objective,
        query_groups=tuple(config.model.decoder.query_groups),
        class_groups=manifest.class_groups,
        parents=manifest.parents,
        qd_weight=loss.qd_weight,
        aux_weight=loss.aux_weight,
        form=form,
        **shared,
    )


def count_flops(config: Config, stage: Stage, manifest: Manifest) -> float:
    """Operations of one forward and backward pass of one patch, on the plain convolutions."""
    model = make_model(
        config, stage.config.objective, manifest.num_classes, manifest.spacing_mm, 'plain'
    )
    objective = _make_objective(stage.config, config, manifest, 'plain')
    params = stage.layout.params
    image = jax.ShapeDtypeStruct((1, *stage.patch_size, len(manifest.channels)), jnp.float32)
    label = jax.ShapeDtypeStruct((1, *stage.patch_size), jnp.int32)

    model_inputs = _make_model_inputs(stage.config, config, manifest)

    def loss(params, image, label):
        call = model_inputs({'label': label})
        outputs = model.apply(
            {'params': params}, image, train=True, rngs={'dropout': jax.random.key(0)}, **call
        )
        return objective(outputs, label)[0]

    return program_flops(jax.grad(loss), params, image, label)


def count_forward_flops(
    config: Config,
    objective: str,
    *,
    num_classes: int,
    num_channels: int,
    spacing_mm: tuple[float, ...],
) -> float:
    """Operations of one forward pass of one patch at prediction, whatever forms it runs in.

    Args:
        config: the experiment.
        objective: of one of its stages.
        num_classes: K, background included.
        num_channels: P.
        spacing_mm: (z, y, x).
    """
    model = make_model(config, objective, num_classes, spacing_mm, 'plain')
    patch_size = tuple(config.data.patch_size)
    image = jax.ShapeDtypeStruct((1, *patch_size, num_channels), jnp.float32)
    params = meta.unbox(abstract_params(model, image.shape))
    return program_flops(lambda p, x: model.apply({'params': p}, x), params, image)
