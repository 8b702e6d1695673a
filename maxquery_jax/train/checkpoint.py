"""Checkpoints of a stage: atomic saves in the background, the newest readable one is found.

`RUN/checkpoints/STAGE/STEP/` holds the whole state after so many steps, in Orbax's format. A save
is written under a temporary name and renamed, so a folder that is named by a number is complete
unless it was damaged later. Of the complete ones the newest `keep` stay, and the best.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from maxquery_jax.errors import UserError
from maxquery_jax.parallel import processes
from maxquery_jax.train.checkpoint_errors import DamagedError, as_damaged, quiet_orbax, reason
from maxquery_jax.train.checksums import find_damage, write_checksums
from maxquery_jax.train.run_dir import METRICS, read_rows
from maxquery_jax.train.state import TrainState, path_name
from maxquery_jax.typing import PyTree

CHECKPOINT_DIR = 'checkpoints'

_TEMPORARY, _DAMAGED, _OLD = '.orbax-checkpoint-tmp', '.damaged', '.old'  # ends of folder names


@dataclasses.dataclass
class StageCheckpoints:
    """Saves and restores one stage's state below `RUN/checkpoints/STAGE`.

    Attributes:
        directory: folder of the stage.
        keep: number of newest checkpoints that stay.
        best: step of another one that stays; None for none.
    """

    directory: pathlib.Path
    keep: int = 2
    best: int | None = None

    def __post_init__(self) -> None:
        quiet_orbax()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
        self._saving: tuple[int, concurrent.futures.Future] | None = None

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return checkpoint_steps(self.directory)

    def save(self, state: TrainState, step: int, *, is_best: bool = False) -> None:
        """Starts an asynchronous save; the previous one is waited for.

        Args:
            state: after `step` steps; may be donated as soon as this returns.
            step: names the folder.
            is_best: keeps this one in place of the best until now.

        Raises:
            UserError: this or the previous save failed.
        """
        self.wait()
        self.best = step if is_best else self.best
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # No run has a newer checkpoint than the one that it continues, but a copied one might.
            response = ocp.save_async(self._folder(step), state, overwrite=True)
        except Exception as error:
            raise self._unsaved(step, error) from error
        self._saving = step, self._thread.submit(self._finish, response, step)

    def check(self) -> None:
        """Raises UserError if the running save has failed by now; never waits."""
        if self._saving and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits for the running save, if any; raises UserError if it failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        step, future = saving
        try:
            future.result()
        except Exception as error:
            raise self._unsaved(step, error) from error

    def close(self) -> None:
        """Waits for a running save; raises UserError if it failed. Safe to call twice."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def remove_old(self) -> None:
        """Keeps the newest and the best; done after each save, and when `best` changed since."""
        if processes.is_first():
            for step in self.steps()[: -self.keep]:
                if step != self.best:
                    self._remove(step)

    def clean(self) -> None:
        """Removes what a killed process left of a save or a removal."""
        if not processes.is_first():
            return
        for folder in self.directory.glob('[0-9]*.*'):
            if _TEMPORARY in folder.name or folder.suffix == _OLD:
                shutil.rmtree(folder, ignore_errors=True)

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, int] | None:
        """Loads the newest checkpoint that can be read, and moves newer, damaged ones aside.

        Args:
            abstract: shapes, dtypes and shardings, of any mesh.

        Returns:
            State and step; None if there is no checkpoint.

        Raises:
            UserError: no checkpoint can be read, or it is another model's.
        """
        failures: dict[int, str] = {}
        steps = self.steps() if processes.is_first() else []
        for k in range(processes.decide(len(steps))):
            step = processes.decide(steps[-1 - k] if steps else 0)
            state = None
            try:
                state = self.restore(abstract, step)
            except DamagedError as error:
                failures[step] = str(error)
            if processes.agree(state is not None):
                assert state is not None
                self._move_aside(failures)
                return state, step
            failures.setdefault(step, f'checkpoint {self._folder(step)} fails in another process')
        if not failures:
            return None
        first, *others = failures.values()
        older = f', nor any of the {len(others)} older ones' if others else ''
        raise UserError(
            f'{first}{older}; put back a copy, or delete {self.directory} to train the stage again'
        )

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """Loads step `step` into the shardings of `abstract`.

        Raises:
            DamagedError: the folder lacks files or holds damaged ones.
            UserError: the checkpoint's tree or dtypes are not the model's.
        """
        folder = self._folder(step)
        damage = find_damage(pathlib.Path(folder)) if processes.is_first() else ''
        if not processes.agree(not damage):  # one reads it all, so that none waits in a load
            raise DamagedError(f'checkpoint {folder} is damaged ({damage or "see process 0"})')
        self._require_fit(folder, _metadata(folder), abstract)
        with as_damaged(folder):
            return ocp.load(folder, abstract)

    def _require_fit(self, folder: str, stored: PyTree, abstract: TrainState) -> None:
        """Compares names, shapes and dtypes: Orbax casts a leaf of another dtype without a word."""
        old, new = _leaves(stored), _leaves(abstract)
        missing = sorted(new.keys() - old.keys()) or sorted(old.keys() - new.keys())
        difference = ''
        if missing:
            where = 'model' if missing[0] in new else 'checkpoint'
            difference = f'{missing[0]} is only in the {where}'
        for name in sorted(old.keys() & new.keys()):
            if old[name] != new[name]:
                difference = (
                    f'{name} is {_text(old[name])} in the checkpoint and {_text(new[name])} in the '
                    'model'
                )
                break
        if difference:
            raise UserError(
                f'checkpoint {folder} is of another model: {difference}; use the config it was '
                'trained with, or another --workdir'
            )

    def _finish(self, response: ocp.AsyncResponse, saved: int) -> None:
        """In the background: waits until a save is complete, then removes what is too old."""
        response.result()
        if processes.is_first():
            write_checksums(pathlib.Path(self._folder(saved)))
        self.remove_old()

    def _remove(self, step: int) -> None:
        """Takes the name away first, so that a kill never leaves half of a checkpoint."""
        folder = pathlib.Path(self._folder(step))
        old = folder.with_name(f'{step}{_OLD}')
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)

    def _move_aside(self, failures: Mapping[int, str]) -> None:
        """Renames damaged checkpoints: training writes new ones of these numbers."""
        if not processes.is_first():
            return
        for step, failure in failures.items():
            print(f'warning: {failure}; renamed to {step}{_DAMAGED}', flush=True)
            folder = pathlib.Path(self._folder(step))
            aside = folder.with_name(f'{step}{_DAMAGED}')
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)

    def _folder(self, step: int) -> str:
        return str(self.directory.absolute() / str(step))

    def _unsaved(self, step: int, error: BaseException) -> UserError:
        return UserError(
            f'checkpoint {self._folder(step)} cannot be written ({reason(error)}); free disk '
            'space or mend the folder'
        )


def checkpoint_steps(directory: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints in the folder of a stage, oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def best_step(
    rows: Iterable[Mapping[str, Any]], stage: str, metric: str, steps: Collection[int]
) -> tuple[int, float] | None:
    """The best checkpoint of a stage, by the rows of `metrics.jsonl`.

    Args:
        rows: of `metrics.jsonl`.
        stage: name of the stage.
        metric: key of a validation row; larger is better.
        steps: that have a checkpoint.

    Returns:
        Step and value, the earliest of several that are equal; None if no row has a value.
    """
    best = None
    for row in rows:
        if row['stage'] != stage or row['split'] != 'val' or row['step'] not in steps:
            continue
        value = row.get(metric)
        if value is not None and (best is None or value > best[1]):
            best = row['step'], value
    return best


def load_params(
    run_dir: str | pathlib.Path, stage: str | None = None, *, best: bool = False
) -> tuple[PyTree, str, int]:
    """Reads the parameters of one of a run's checkpoints as host arrays.

    Args:
        run_dir: a run directory.
        stage: stage name; None takes the last stage that has a checkpoint.
        best: takes the best checkpoint by `config.checkpoint.best`, not the newest.

    Returns:
        Parameters, stage name and step.

    Raises:
        UserError: no such run, stage or checkpoint, or none that can be read.
    """
    run_dir = pathlib.Path(run_dir)
    config_file = run_dir / 'config.json'
    if not config_file.is_file():
        raise UserError(f'{run_dir} is not a run directory: it has no config.json')
    config = json.loads(config_file.read_text())
    stages = config['stages']
    if stage is not None and stage not in stages:
        raise UserError(f'{run_dir} has no stage {stage!r}; it has {", ".join(stages)}')
    for name in [stage] if stage else reversed(stages):
        directory = run_dir / CHECKPOINT_DIR / name
        steps = checkpoint_steps(directory)
        if best and steps:
            steps = [_find_best(run_dir, name, config.get('checkpoint', {}).get('best', ''), steps)]
        if steps:
            return _read_newest(directory, steps, name)
    raise UserError(f'{run_dir} has no finished checkpoint yet; train it first')


def _find_best(run_dir: pathlib.Path, stage: str, metric: str, steps: list[int]) -> int:
    newest = f'the newest is step {steps[-1]}'
    if not metric:
        raise UserError(
            f'{run_dir} kept no best checkpoint; train with --config.checkpoint.best=dice_mean, or '
            f'take the newest: {newest}'
        )
    found = best_step(read_rows(run_dir / METRICS), stage, metric, steps)
    if found is None:
        raise UserError(
            f'{run_dir} has no checkpoint of {stage} with a validation value of {metric} in its '
            f'{METRICS}; take the newest: {newest}'
        )
    return found[0]


def _read_newest(directory: pathlib.Path, steps: list[int], stage: str) -> tuple[PyTree, str, int]:
    """Parameters of the newest of some checkpoints that can be read, stage and step."""
    failure = None
    for step in reversed(steps):
        try:
            params = _read_params(directory / str(step))
        except DamagedError as error:
            failure = failure or error
            continue
        if failure:
            print(f'warning: {failure}; step {step} is taken', flush=True)
        return params, stage, step
    raise UserError(f'{failure}; put back a copy, or train again') from failure


def _read_params(directory: pathlib.Path) -> PyTree:
    """Parameters of one checkpoint folder as numpy arrays; optimiser state is not read."""
    folder = str(directory.absolute())
    quiet_orbax()
    damage = find_damage(directory)
    if damage:
        raise DamagedError(f'checkpoint {folder} is damaged ({damage})')
    tree = _metadata(folder)['params']
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cpu), tree
    )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, as_damaged(folder):
        loaded = ocp.load(folder, {'params': abstract})
    return jax.tree.map(np.asarray, loaded['params'])


def _metadata(folder: str) -> PyTree:
    """Shapes and dtypes of what a checkpoint holds."""
    with as_damaged(folder):
        tree = ocp.metadata(folder).metadata
        if tree is None:  # Orbax has logged why
            raise ValueError('its metadata are damaged')
    return tree


def _leaves(tree: PyTree) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each leaf by its path; of shapes or of Orbax's metadata."""
    return {
        path_name(path): (tuple(leaf.shape), np.dtype(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, 'dtype')
    }


def _text(leaf: tuple[tuple[int, ...], Any]) -> str:
    return f'{leaf[1]}{list(leaf[0])}'
