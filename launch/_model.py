"""Flags of predict for what to predict with: runs, their stage and checkpoint."""

import os
import pathlib
from typing import Any

from absl import flags

_MODEL = flags.DEFINE_list(
    'model', None, 'Run directory (--workdir of a training); several with commas: an ensemble.'
)
_STAGE = flags.DEFINE_string('stage', None, 'Stage of the run; the last trained one by default.')
_CHECKPOINT = flags.DEFINE_enum(
    'checkpoint',
    'newest',
    ('newest', 'best'),
    'Which checkpoint of the run; best: by the validation metric --config.checkpoint.best of it.',
)


def load() -> Any:
    """The model, and its run's cache of compiled programs.

    Raises:
        UserError: no run is named, or it cannot be loaded.
    """
    from maxquery_jax.errors import UserError
    from maxquery_jax.inference.ensemble import load_ensemble
    from maxquery_jax.train.experiment import enable_compilation_cache

    if not _MODEL.value:
        raise UserError('name a trained run with --model, e.g. --model=runs/demo')
    model = load_ensemble(_MODEL.value, _STAGE.value, checkpoint=_CHECKPOINT.value)
    cache = pathlib.Path(_MODEL.value[0]) / 'cache'
    if os.access(cache, os.W_OK):
        enable_compilation_cache(cache)
    return model
