"""Resolves what an experiment trains on: a prepared store or the built-in phantom cohort."""

import dataclasses
import pathlib

from maxquery_jax.data import pipeline
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.store import Manifest, PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.typing import Config


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The stores of an experiment.

    Attributes:
        stores: one or several that share labels, spacing, channels and intensity.
        weights: share of the samples per store; None for its share of the cases.
    """

    stores: tuple[PatchStore, ...]
    weights: tuple[float, ...] | None = None

    @property
    def manifest(self) -> Manifest:
        """Of the first store: what all stores share, but the cases of this one only."""
        return self.stores[0].manifest

    @property
    def is_partial(self) -> bool:
        """Whether some store does not annotate every known class."""
        return pipeline.is_partial(self.stores)

    def num_cases(self, split: str) -> int:
        """Cases of a split over all stores."""
        return sum(len(store.case_ids(split)) for store in self.stores)

    def batches(self, config: Config, split: str, **options) -> pipeline.Batches:
        """Batches of those stores that have cases of a split; see `pipeline.build_batches`."""
        chosen = [k for k, store in enumerate(self.stores) if store.case_ids(split)]
        return pipeline.build_batches(
            [self.stores[k] for k in chosen],
            split=split,
            mix=None if self.weights is None else [self.weights[k] for k in chosen],
            batch_size=config.data.batch_size,
            seed=config.seed,
            oversample_roles=tuple(config.data.oversample_roles),
            num_threads=config.data.num_threads,
            **options,
        )


def open_data(config: Config, workdir: pathlib.Path) -> TrainingData:
    """Opens `data.store` or all of `data.stores`, or generates the cohort of `data.phantom`.

    Raises:
        UserError: none or both are given, a store has no training cases, the stores do not fit
            together, or there is not one weight per store.
    """
    paths = tuple(config.data.stores) or ((config.data.store,) if config.data.store else ())
    weights = tuple(config.data.weights) or None
    if config.data.store and config.data.stores:
        raise UserError(
            'data.store and data.stores are both set; keep data.stores for a mixture, data.store '
            'for one'
        )
    if weights and len(weights) != len(paths):
        raise UserError(
            f'data.weights {weights} must hold one number for each of the {len(paths)} stores'
        )
    if not paths:
        if not config.data.phantom:
            raise UserError(
                f'{config.name}:{config.variant} needs data: name a store made by launch.prepare '
                'with --config.data.store=STORE (the variant :demo needs none)'
            )
        paths = (str(_phantom_store(config.data.phantom.to_dict(), workdir)),)
    stores = tuple(PatchStore(path) for path in paths)
    for store in stores:
        if not store.case_ids('train'):
            raise UserError(
                f'store {store.location} has no training cases; prepare it again with a train split'
            )
    pipeline.check_stores(stores, 'train')
    return TrainingData(stores, weights)


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
