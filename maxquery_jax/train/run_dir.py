"""The run directory: resolved config, manifest, metric rows, one writer at a time."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json, write_json, write_text

CONFIG, MANIFEST, METRICS = 'config.json', 'manifest.json', 'metrics.jsonl'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorstore', 'numpy')
# Fields that may change between a start and its restart: they do not change what is trained.
_FREE_FIELDS = (
    'log',
    'checkpoint',
    'validation',
    'mesh',
    'data.num_workers',
    'data.num_threads',
    'data.prefetch',
    'data.store',
    'data.stores',
    'model.conv_form',
    'model.remat',
)


class RunDir:
    """Owns `RUN/` while a training runs.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_writer: bool = True) -> None:
        """Creates and locks the directory.

        Args:
            path: the directory.
            is_writer: False in all but one process of a run: they write nothing here.

        Raises:
            UserError: it cannot be created or another training runs in it.
        """
        self.path = pathlib.Path(path)
        self._is_writer = is_writer
        self._lock = None
        if not is_writer:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / '.lock', 'w')  # noqa: SIM115 - held for the whole run
        except OSError as error:
            raise UserError(f'--workdir {self.path} cannot be written: {error.strerror}') from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f'{self.path} is in use by another training; wait for it or use another --workdir'
            ) from error

    def write_config(
        self, config: dict[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Stores the resolved config, or checks that a restart still means the same experiment.

        As all that writes here, it does nothing in a process that is not the writer.

        A newer version of the program may have fields that the run's first start did not know. They
        are no difference while they have their default, and the file stays as it was written.

        Args:
            config: resolved config.
            defaults: what its fields are unless an experiment says otherwise.

        Raises:
            UserError: a field differs from the run's first start.
        """
        if not self._is_writer:
            return
        file = self.path / CONFIG
        if not file.is_file():
            write_json(file, config)
            return
        stored = read_json(file, fix='restore it, or choose another --workdir')
        now = json.loads(json.dumps(config))
        difference = _first_difference(stored, now, json.loads(json.dumps(dict(defaults or {}))))
        if difference:
            raise UserError(f'{self.path} was started {difference}')
        if _take_over_free(stored, now):
            write_json(file, stored)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Stores versions, data and mesh of this start."""
        if self._is_writer:
            write_json(self.path / MANIFEST, manifest)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row to `metrics.jsonl`."""
        if self._is_writer:
            with open(self.path / METRICS, 'a') as file:
                file.write(json.dumps(row) + '\n')

    def rows(self) -> list[dict[str, Any]]:
        """Rows written so far; a line cut off by a kill is dropped."""
        return read_rows(self.path / METRICS)

    def drop_rows_after(self, stages: tuple[str, ...], stage: str, step: int) -> None:
        """Removes rows that the restart at `step` of `stage` will write again."""
        file = self.path / METRICS
        if not self._is_writer or not file.is_file():
            return
        later = stages[stages.index(stage) + 1 :]
        kept = [
            row
            for row in self.rows()
            if row['stage'] not in later and not (row['stage'] == stage and row['step'] > step)
        ]
        write_text(file, ''.join(json.dumps(row) + '\n' for row in kept))

    def close(self) -> None:
        """Releases the lock."""
        if self._lock:
            self._lock.close()


def read_rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, none if it is not there; a line cut off by a kill is dropped."""
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _is_free(key: str) -> bool:
    return any(key == field or key.startswith(field + '.') for field in _FREE_FIELDS)


def _first_difference(before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> str:
    """What keeps a run from going on, to stand behind 'was started'; '' for nothing."""
    old, new, usual = (dict(_flatten(tree)) for tree in (before, now, defaults))
    for key in sorted({*old, *new}):
        if _is_free(key) or (key not in old and _is_of_unused_stage(key, now)):
            continue
        if key not in new:
            return (
                f'with {key}={old[key]}, a field that is not there any more; choose another '
                '--workdir or the version of the program that it was started with'
            )
        if key not in old and (key not in usual or new[key] != usual[key]):
            was = f' ({usual[key]})' if key in usual else ''
            return f'without {key}{was}, now it is {new[key]}; choose another --workdir or drop it'
        if key in old and old[key] != new[key]:
            return (
                f'with {key}={old[key]}, now it is {new[key]}; choose another --workdir or the old '
                'value'
            )
    return ''


def _is_of_unused_stage(key: str, config: dict[str, Any]) -> bool:
    """Whether a field belongs to a stage that the experiment describes but does not train."""
    name = key.split('.')[0]
    section = config.get(name)
    is_stage = isinstance(section, dict) and 'objective' in section
    return is_stage and name not in config.get('stages', ())


def _take_over_free(before: dict[str, Any], now: dict[str, Any], prefix: str = '') -> bool:
    """Gives the free fields of `before` the values they have now; whether any differed."""
    is_changed = False
    for name in before.keys() & now.keys():
        key, old, new = f'{prefix}{name}', before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            is_changed |= _take_over_free(old, new, f'{key}.')
        elif _is_free(key) and old != new:
            before[name], is_changed = new, True
    return is_changed


def _flatten(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flatten(value, f'{prefix}.{key}' if prefix else key)
    else:
        yield prefix, tree


def versions() -> dict[str, str]:
    """Versions of the packages that decide numerical results, and the git revision if any."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    revision = subprocess.run(
        ['git', 'describe', '--always', '--dirty'],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parent,
    ).stdout.strip()
    return found | {'git': revision or 'unknown'}
