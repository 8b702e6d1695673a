"""Resolves what an experiment trains on: a prepared store or the built-in phantom cohort."""

import pathlib

from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.typing import Config


def open_store(config: Config, workdir: pathlib.Path) -> PatchStore:
    """Opens `data.store`, or generates the phantom cohort of `data.phantom` into the run.

    Raises:
        UserError: neither is given, or the store has no training cases.
    """
    path = config.data.store
    if not path:
        if not config.data.phantom:
            raise UserError(
                f'{config.name}:{config.variant} needs data: name a store made by launch.prepare '
                'with --config.data.store=STORE (the variant :demo needs none)'
            )
        path = str(_phantom_store(config.data.phantom.to_dict(), workdir))
    store = PatchStore(path)
    if not store.case_ids('train'):
        raise UserError(f'store {path} has no training cases; prepare it again with a train split')
    return store


def _phantom_store(spec: dict, workdir: pathlib.Path) -> pathlib.Path:
    store = workdir / 'phantom' / 'store'
    if not (store / 'manifest.json').is_file():
        print('writing the phantom cohort', flush=True)
        prepare(
            dataset='phantom',
            source=str(workdir / 'phantom' / 'raw'),
            store=str(store),
            phantom=spec,
            spacing_mm=tuple(spec['spacing_mm']),
        )
    return store
