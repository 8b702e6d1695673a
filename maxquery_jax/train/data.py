"""Resolves what an experiment trains on: a prepared store or the built-in phantom cohort."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from maxquery_jax.data import pipeline
from maxquery_jax.data.datasets.phantom.subtypes import add_subtypes
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.splits import SplitOptions, make_splits
from maxquery_jax.data.store import Manifest, PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.parallel import processes
from maxquery_jax.typing import Config

WINDOW = 'window_hu'  # of data.phantom, the one field that is not the cohort's
COHORT_S = 3 * 3600.0  # that other processes wait while process 0 generates patients


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

    def count_smaller(self, patch_size: tuple[int, int, int]) -> int:
        """Training cases into which a patch does not fit along some axis."""
        shapes = (store.shape(case) for store in self.stores for case in store.case_ids('train'))
        return sum(any(n < p for n, p in zip(s, patch_size, strict=True)) for s in shapes)

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

    With `data.fold` in 0..num_folds-1 the manifests' splits are those of that fold, see
    `fold_splits`; the stores themselves stay as they are.

    Raises:
        UserError: none or both are given, a store has no training cases or too few for the folds,
            the stores do not fit together, or there is not one weight per store.
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
        if config.data.fold >= 0:
            splits = fold_splits(store.manifest, config.data.fold, config.data.num_folds)
            store.manifest = dataclasses.replace(store.manifest, splits=splits)
        if not store.case_ids('train'):
            raise UserError(
                f'store {store.location} has no training cases; prepare it again with a train split'
            )
    pipeline.check_stores(stores, 'train')
    return TrainingData(stores, weights)


def fold_splits(manifest: Manifest, fold: int, num_folds: int) -> dict[str, tuple[str, ...]]:
    """Splits of one fold of a cross-validation over the cases of train and val.

    The parts depend on the case ids alone: neither on their order nor on the store, so that a
    case is in the same fold at every spacing. Each case validates in exactly one fold, and test
    cases never move.

    Args:
        manifest: of the store.
        fold: which part validates, from 0.
        num_folds: number of parts.

    Raises:
        UserError: there are fewer cases than folds.
    """
    cases = (*manifest.splits['train'], *manifest.splits['val'])
    if len(cases) < num_folds:
        raise UserError(
            f'data.num_folds={num_folds}: {manifest.dataset} has {len(cases)} cases in train and '
            'val; use fewer folds'
        )
    options = SplitOptions(test_fraction=0.0, folds=num_folds, fold=fold)
    parts, _ = make_splits(cases, (), options)
    return {**manifest.splits, 'train': parts['train'], 'val': parts['val']}


def cohort_fields(phantom: Mapping[str, Any]) -> dict[str, Any]:
    """`data.phantom` without what is of the store, not of the cohort."""
    return {name: value for name, value in phantom.items() if name != WINDOW}


def _phantom_store(spec: dict, workdir: pathlib.Path) -> pathlib.Path:
    """The cohort below `workdir`, generated by process 0 unless it is there.

    Raises:
        UserError: another cohort is there.
    """
    folder = workdir / 'phantom'
    if processes.is_first():
        _generate(spec, folder)
    processes.barrier('the phantom cohort', COHORT_S)
    return folder / 'store'


def _generate(spec: dict, folder: pathlib.Path) -> None:
    store, raw, kept = folder / 'store', folder / 'raw', folder / 'cohort.json'
    with _locked(folder / '.lock'):  # by whom comes first; the others find it written
        if not (store / 'manifest.json').is_file():
            print('writing the phantom cohort', flush=True)
            prepare(
                dataset='phantom',
                source=str(raw),
                store=str(store),
                phantom=cohort_fields(spec),
                spacing_mm=tuple(spec['spacing_mm']),
                window_hu=spec.get(WINDOW),
            )
            write_json(kept, spec)
        else:
            if kept.is_file() and json.loads(kept.read_text()) != json.loads(json.dumps(spec)):
                raise UserError(
                    f'{folder} holds a cohort of another data.phantom (see {kept}); choose another '
                    '--workdir'
                )
            _follow_move(store / 'manifest.json', raw)
            add_subtypes(raw)  # a cohort of an older program


def _follow_move(manifest: pathlib.Path, raw: pathlib.Path) -> None:
    """Says where the raw cohort is now, if its folder was moved to another place or machine."""
    content = json.loads(manifest.read_text())
    if raw.is_dir() and not pathlib.Path(content['source']).is_dir():
        write_json(manifest, {**content, 'source': str(raw)})


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process holds the lock; it ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
