"""Validation inside training: Dice of a few fixed batches of the validation cases."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxquery_jax.errors import UserError
from maxquery_jax.parallel import sharding
from maxquery_jax.train.data import TrainingData
from maxquery_jax.train.schedule import is_due
from maxquery_jax.train.stage import Stage
from maxquery_jax.typing import Config, PyTree

Row = dict[str, Any]  # of metrics.jsonl

MEAN = 'dice_mean'


@dataclasses.dataclass
class Validator:
    """Counts the voxels of one stage's predictions.

    The batches are drawn by the run's seed from the validation cases, without augmentation: they
    are the same at every step and on any number of devices and processes. Each process reads its
    own rows; the compiled step sums over all.

    Attributes:
        config: the experiment.
        stage: the built stage.
        data: its stores.
        mesh: devices.
    """

    config: Config
    stage: Stage
    data: TrainingData
    mesh: Mesh

    def __post_init__(self) -> None:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._count = jax.jit(self.stage.eval_step, out_shardings=everywhere)
        self._require_metric(self.config.checkpoint.best)

    def is_due(self, step: int) -> bool:
        """Whether to validate after `step` steps."""
        if not self.config.validation.batches or not self.data.num_cases('val'):
            return False
        return is_due(step, self.config.validation.every_steps, self.stage.total_steps)

    def run(self, params: PyTree, step: int) -> Row:
        """The row of `metrics.jsonl`: `dice/CLASS` of the classes that occur, and their mean.

        Args:
            params: sharded parameters.
            step: finished steps, for the row.

        Raises:
            UserError: a case cannot be read.
        """
        manifest = self.data.manifest
        counts = np.zeros((manifest.num_classes, 3))
        batches = self.data.batches(
            self.config,
            'val',
            crop_size=self.stage.patch_size,
            oversample_rate=1.0,
            rows=sharding.process_rows(self.mesh, self.config.data.batch_size),
            num_workers=0,
            prefetch=2,
        )
        with batches:
            for _ in range(self.config.validation.batches):
                batch = sharding.put_batch(next(batches), self.mesh)
                counts += np.asarray(self._count(params, batch))
        dice = 2 * counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2], 1)
        seen = counts[:, 2] > 0
        row: Row = {'step': step, 'stage': self.stage.name, 'split': 'val'}
        names = class_keys(manifest.class_names)
        row |= {name: float(d) for name, d, s in zip(names, dice, seen, strict=True) if s}
        row[MEAN] = float(dice[1:][seen[1:]].mean()) if seen[1:].any() else None
        return row

    def _require_metric(self, metric: str) -> None:
        """Refuses a best checkpoint by a value that will never be there."""
        if not metric:
            return
        names = (MEAN, *class_keys(self.data.manifest.class_names))
        if metric not in names:
            raise UserError(
                f'config.checkpoint.best={metric!r} is no value of validation; choose from '
                f'{", ".join(names)}'
            )
        if not self.data.num_cases('val'):
            raise UserError(
                f'config.checkpoint.best={metric!r} needs validation cases and the data has none; '
                'prepare it with a val split, or leave checkpoint.best empty'
            )


def class_keys(names: tuple[str, ...]) -> list[str]:
    """Keys of the classes' Dice in a row."""
    return [f'dice/{name}' for name in names]
