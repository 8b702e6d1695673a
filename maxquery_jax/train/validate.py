"""Checks of a config that need no data and no device, before anything is computed."""

import math

from maxquery_jax.errors import UserError
from maxquery_jax.models.build import OBJECTIVES
from maxquery_jax.optim import build_optimizer
from maxquery_jax.typing import Config


def validate(config: Config) -> None:
    """Raises UserError with one line that names the first wrong field and what it may be."""
    _require(bool(config.stages), 'stages is empty; name at least one stage')
    _require(0 <= config.seed < 2**31, f'seed must lie in 0..2**31-1, got {config.seed}')
    data = config.data
    _positive_ints('data.patch_size', data.patch_size, 3)
    _positive('data.batch_size', data.batch_size)
    _require(
        0 <= data.oversample_rate <= 1,
        f'data.oversample_rate must lie in [0, 1], got {data.oversample_rate}',
    )
    _require(data.num_folds >= 2, f'data.num_folds must be at least 2, got {data.num_folds}')
    _require(
        -1 <= data.fold < data.num_folds,
        f'data.fold must be -1 (none) or lie in 0..{data.num_folds - 1}, got {data.fold}',
    )
    _positive('checkpoint.keep', config.checkpoint.keep)
    for section in ('checkpoint', 'log', 'validation'):
        every = config[section].every_steps
        _require(every >= 0, f'{section}.every_steps must be 0 (at the end) or above, got {every}')
    _require(
        not config.checkpoint.best or config.validation.batches >= 1,
        f'checkpoint.best={config.checkpoint.best!r} needs validation.batches of at least 1',
    )
    for name in config.stages:
        _require(name in config, f'stages names {name!r} but the config has no field of that name')
        _validate_stage(name, config[name], data.batch_size)
        if config[name].objective == 'synthcp':
            _validate_synthesis(config, name)
    groups = config.model.decoder.query_groups
    _positive_ints('model.decoder.query_groups', groups, 3)
    _require(
        sum(groups) == config.model.decoder.num_queries,
        f'model.decoder.query_groups {tuple(groups)} add up to {sum(groups)}, '
        f'num_queries is {config.model.decoder.num_queries}; make them equal',
    )
    rate, passes = config.model.backbone.dropout_rate, config.model.backbone.dropout_passes
    _require(0 <= rate < 1, f'model.backbone.dropout_rate must lie in [0, 1), got {rate}')
    _positive('model.backbone.dropout_passes', passes)
    for field, value in config.model.synthcp.items():
        _positive(f'model.synthcp.{field}', value)
    drop_path = config.model.decoder.drop_path
    _require(0 <= drop_path < 1, f'model.decoder.drop_path must lie in [0, 1), got {drop_path}')


def _validate_stage(name: str, stage: Config, batch_size: int) -> None:
    _require(
        stage.objective in OBJECTIVES,
        f'{name}.objective {stage.objective!r} is unknown: choose from {", ".join(OBJECTIVES)}',
    )
    for field in ('epochs', 'steps_per_epoch', 'accumulate'):
        _positive(f'{name}.{field}', stage[field])
    _require(
        batch_size % stage.accumulate == 0,
        f'{name}.accumulate {stage.accumulate} does not divide data.batch_size {batch_size}',
    )
    for field, value in stage.loss.items():
        _require(
            isinstance(value, bool) or (math.isfinite(value) and value >= 0),
            f'{name}.loss.{field} must be a finite number >= 0, got {value}',
        )
    try:
        build_optimizer(stage)
    except UserError as error:
        raise UserError(f'{name}.optim: {error}') from error


def _validate_synthesis(config: Config, name: str) -> None:
    """SynthCP judges a segmenter that is trained already and must stay what it is."""
    stage, position = config[name], tuple(config.stages).index(name)
    before = config[config.stages[position - 1]].objective if position else ''
    _require(
        bool(stage.init_from) or before == 'segmentation',
        f"{name}.objective 'synthcp' judges a trained segmenter: let it follow a stage of "
        f"objective 'segmentation', or set {name}.init_from=RUN:STAGE",
    )
    _require(
        stage.optim.weight_decay == 0 and stage.optim.frozen_epochs == 0,
        f'{name}.optim: weight_decay and frozen_epochs must be 0 for objective synthcp, got '
        f'{stage.optim.weight_decay} and {stage.optim.frozen_epochs}: decay would change the '
        'segmenter',
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _positive(name: str, value: int) -> None:
    _require(value >= 1, f'{name} must be at least 1, got {value}')


def _positive_ints(name: str, values, length: int) -> None:
    _require(
        len(values) == length and all(isinstance(v, int) and v >= 1 for v in values),
        f'{name} must be {length} positive integers, got {tuple(values)}',
    )
