"""The run directory: resolved config, manifest, metric rows, one writer at a time."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json, write_text

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
)


class RunDir:
    """Owns `RUN/` while a training runs.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Creates and locks the directory.

        Raises:
            UserError: it cannot be created or another process trains in it.
        """
        self.path = pathlib.Path(path)
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

    def write_config(self, config: dict[str, Any]) -> None:
        """Stores the resolved config, or checks that a restart still means the same experiment.

        Raises:
            UserError: a field differs from the run's first start.
        """
        file = self.path / CONFIG
        if file.is_file():
            before = dict(_flatten(json.loads(file.read_text())))
            now = dict(_flatten(json.loads(json.dumps(config))))
            changed = [
                key
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key) and not _is_free(key)
            ]
            if changed:
                key = changed[0]
                raise UserError(
                    f'{self.path} was started with {key}={before.get(key)}, now it is '
                    f'{now.get(key)}; choose another --workdir or the old value'
                )
        write_json(file, config)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Stores versions, data and mesh of this start."""
        write_json(self.path / MANIFEST, manifest)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row to `metrics.jsonl`."""
        with open(self.path / METRICS, 'a') as file:
            file.write(json.dumps(row) + '\n')

    def rows(self) -> list[dict[str, Any]]:
        """Rows written so far; a line cut off by a kill is dropped."""
        file = self.path / METRICS
        return list(_parse_rows(file)) if file.is_file() else []

    def drop_rows_after(self, stages: tuple[str, ...], stage: str, step: int) -> None:
        """Removes rows that the restart at `step` of `stage` will write again."""
        file = self.path / METRICS
        if not file.is_file():
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
        self._lock.close()


def _parse_rows(file: pathlib.Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _is_free(key: str) -> bool:
    return any(key == field or key.startswith(field + '.') for field in _FREE_FIELDS)


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
