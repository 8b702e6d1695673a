"""Checkpoints of a stage: atomic saves, newest complete one found, merge between stages."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from maxquery_jax.errors import UserError
from maxquery_jax.train.state import TrainState, path_name
from maxquery_jax.typing import PyTree

CHECKPOINT_DIR = 'checkpoints'

_policies = ocp.training.save_decision_policies
_preservation = ocp.training.preservation_policies


@dataclasses.dataclass
class StageCheckpoints:
    """Saves and restores one stage's state below `RUN/checkpoints/STAGE`.

    Attributes:
        directory: folder of the stage.
        keep: number of newest checkpoints that stay.
    """

    directory: pathlib.Path
    keep: int = 2

    def __post_init__(self) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            str(self.directory.absolute()),
            save_decision_policy=_policies.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=_preservation.LatestN(self.keep),  # pyright: ignore[reportArgumentType]
        )

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return sorted(found.step for found in self._checkpointer.checkpoints)

    def save(self, state: TrainState, step: int) -> None:
        """Starts an asynchronous save; the previous one is waited for."""
        self._checkpointer.save_async(step, state, force=True)

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """Loads step `step` into the shardings of `abstract`.

        Raises:
            UserError: the checkpoint's tree or dtypes are not the model's.
        """
        where = f'checkpoint {self.directory.name}/{step}'
        self._require_dtypes(abstract, step)
        try:
            return self._checkpointer.load(step, abstract)
        except Exception as error:
            cause = error.__cause__ or error
            reason = ' '.join(str(cause).split())[:300]
            raise UserError(
                f'{where} cannot be read into this model: {reason}; use the config it was trained '
                'with, or another --workdir'
            ) from error

    def _require_dtypes(self, abstract: TrainState, step: int) -> None:
        """Orbax casts a leaf of another dtype without a word; a resumed run must not."""
        stored = self._checkpointer.metadata(step).metadata
        dtypes = {
            path_name(p): leaf.dtype
            for p, leaf in jax.tree_util.tree_leaves_with_path(stored)
            if hasattr(leaf, 'dtype')
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            name = path_name(path)
            if name in dtypes and dtypes[name] != leaf.dtype:
                raise UserError(
                    f'{name} is {dtypes[name]} in the checkpoint and {leaf.dtype} in the model'
                )

    def close(self) -> None:
        """Waits for a running save."""
        self._checkpointer.close()


def load_params(run_dir: str | pathlib.Path, stage: str | None = None) -> tuple[PyTree, str, int]:
    """Reads the parameters of a run's newest checkpoint as host arrays.

    Args:
        run_dir: a run directory.
        stage: stage name; None takes the last stage that has a checkpoint.

    Returns:
        Parameters, stage name and step.

    Raises:
        UserError: no such run, stage or checkpoint.
    """
    run_dir = pathlib.Path(run_dir)
    config_file = run_dir / 'config.json'
    if not config_file.is_file():
        raise UserError(f'{run_dir} is not a run directory: it has no config.json')
    stages = json.loads(config_file.read_text())['stages']
    if stage is not None and stage not in stages:
        raise UserError(f'{run_dir} has no stage {stage!r}; it has {", ".join(stages)}')
    for name in [stage] if stage else reversed(stages):
        directory = run_dir / CHECKPOINT_DIR / name
        if not directory.is_dir():
            continue
        with ocp.training.Checkpointer(str(directory.absolute())) as checkpointer:
            if checkpointer.latest is None:
                continue
            step = checkpointer.latest.step
        return _read_params(directory / str(step)), name, step
    raise UserError(f'{run_dir} has no finished checkpoint yet; train it first')


def _read_params(directory: pathlib.Path) -> PyTree:
    """Parameters of one checkpoint folder as numpy arrays; optimiser state is not read."""
    tree = ocp.metadata(str(directory.absolute())).metadata['params']
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cpu), tree
    )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(str(directory.absolute()), {'params': abstract})
    return jax.tree.map(np.asarray, loaded['params'])


def merge_params(
    initial: PyTree, loaded: PyTree, *, only_loaded: str = '', only_initial: str = ''
) -> PyTree:
    """Takes `loaded` where both trees have a leaf; every other leaf must be excused.

    Args:
        initial: parameters of the new stage.
        loaded: parameters of the old one.
        only_loaded: regex of paths that may be dropped from `loaded`.
        only_initial: regex of paths that may keep their initial value.

    Raises:
        UserError: a path in one tree only that its regex does not cover, or a shape that differs.
    """
    old = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}
    new = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(initial)}
    _require_excused(sorted(set(old) - set(new)), only_loaded, 'only in the checkpoint')
    _require_excused(sorted(set(new) - set(old)), only_initial, 'only in the model')

    def take(path: Any, leaf):
        name = path_name(path)
        if name not in old:
            return leaf
        if old[name].shape != leaf.shape:
            raise UserError(
                f'parameter {name} has shape {old[name].shape} in the checkpoint and '
                f'{leaf.shape} in the model; the two stages need the same backbone'
            )
        return old[name]

    return jax.tree_util.tree_map_with_path(take, initial)


def _require_excused(names: list[str], pattern: str, where: str) -> None:
    unexplained = [name for name in names if not (pattern and re.match(pattern, name))]
    if unexplained:
        shown = ', '.join(unexplained[:4]) + (' ...' if len(unexplained) > 4 else '')
        raise UserError(f'{len(unexplained)} parameters are {where}: {shown}')
