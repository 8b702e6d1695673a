"""From stores to batches of raw crops: a pure function of (seed, step), through Grain.

Every random draw of global row g = step * batch_size + i is made from (seed, g), so a batch does
not depend on worker count, on where a run was resumed, or on the number of hosts: each reads the
rows of the global batch that its devices hold.
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from maxquery_jax.data.sampling import (
    OVERSAMPLED_ROLES,
    draw_foreground,
    is_forced_foreground,
    oversampled_classes,
    sample_box,
)
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError

_SHUFFLE, _CROP, _FORCED, _DEFORMED = range(4)  # names of the random streams
_ENDLESS = 2**40  # steps

# What stores trained on together must agree on, and what decides it.
_SHARED = {
    'labels': 'the same label table',
    'spacing_mm': 'the same --spacing',
    'contains': 'the same label table',
    'channels': 'the same phases in the same order',
    'intensity': 'the same --window, as statistics differ between data sets',
}


class Batches(Iterator[dict[str, np.ndarray]]):
    """Endless iterator of batches; close it, or use it as a context manager.

    Attributes:
        step: index of the batch that the next call returns.
    """

    def __init__(self, plan: '_Plan', case_names: Sequence[str], start_step: int):
        self.step = start_step
        self._plan = plan
        self._case_names = tuple(case_names)
        self._iterators = [iter(plan.iterable(start_step))]  # empty once closed
        # Also closes at interpreter exit, before Grain's own destructors fail there.
        self._finalizer = weakref.finalize(self, _close_all, self._iterators)

    def case_name(self, index: int) -> str:
        """Case id behind a value of `batch['case']`, with its data set if there are several."""
        return self._case_names[int(index)]

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterators:
            raise ValueError('these batches are closed')
        try:
            batch = next(self._iterators[0])
        except RuntimeError as error:
            if 'terminated unexpectedly' not in str(error):
                raise
            names = ', '.join(self.case_name(i) for i in self._plan.cases_of(self.step))
            reason = str(error).split('. ')[0]
            raise UserError(
                f'a data worker process died at step {self.step}, near cases {names} ({reason}); '
                'if memory or /dev/shm ran out, lower num_workers'
            ) from error
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops threads and worker processes; safe to call twice."""
        self._finalizer()

    def __enter__(self) -> 'Batches':
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def build_batches(
    stores: Sequence[PatchStore],
    *,
    split: str = 'train',
    crop_size: Sequence[int],
    patch_size: Sequence[int] | None = None,
    deform_rate: float = 1.0,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    oversample_rate: float = 1 / 3,
    oversample_roles: Sequence[str] = OVERSAMPLED_ROLES,
    mix: Sequence[float] | None = None,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
) -> Batches:
    """Builds the endless stream of training batches.

    Each store's cases come in a new random order every epoch. Several stores are interleaved in
    the proportions `mix`, evenly over time.

    Deviation: nnU-Net draws cases with replacement.

    Args:
        stores: opened stores of one label table, spacing and channel list.
        split: which split to draw from.
        crop_size: (D, H, W) to read, see `augment.policy.crop_size`.
        patch_size: (D, H, W) that augmentation keeps of a crop; the region that is kept inside the
            volume and around forced foreground. None means the crop.
        deform_rate: share of the samples that augmentation may deform. Of the others only the patch
            in the middle of the crop is read, which is several times cheaper; around it there are
            zeros. 1 reads every crop whole.
        batch_size: samples per step over all hosts.
        seed: of cases and positions.
        start_step: first step to return.
        rows: those of each global batch that this host reads, in this order; all by default.
        oversample_rate: fraction of samples forced to contain foreground.
        oversample_roles: roles of the classes that count as foreground there.
        mix: positive weight per store; None weighs stores by their number of cases.
        num_workers: processes that read; 0 reads in threads of this process.
        num_threads: reading threads per process; each reads a whole batch.
        prefetch: batches read ahead per process, at least one; bounds memory.

    Returns:
        Iterator of `{'image': int16 [b, *crop, P] HU, 'label': uint8 [b, *crop], 'case': int32
        [b]}` with b = len(rows). If any store does not annotate all of the K
        known classes there is also `'class_mask'`, bool [b, K], True for those of the row's store;
        and with a `deform_rate` below 1 `'deformed'`, bool [b].

    Raises:
        UserError: on stores that do not fit together, an empty split or impossible sizes; while
            iterating, if a case cannot be read or a worker process dies.
    """
    stores = tuple(stores)
    check_stores(stores, split)
    if batch_size < 1:
        raise UserError(f'batch_size {batch_size} must be at least 1')
    cases = [(k, case) for k, store in enumerate(stores) for case in store.case_ids(split)]
    if seed < 0:
        raise UserError(f'seed {seed} is negative; choose 0 or above')
    weights = _weights([len(store.case_ids(split)) for store in stores], mix)
    crop = tuple(crop_size)
    reader = _CropReader(
        stores=stores,
        cases=tuple(cases),
        classes=tuple(oversampled_classes(store, oversample_roles) for store in stores),
        crop_size=crop,
        patch_size=crop if patch_size is None else tuple(patch_size),
        deform_rate=deform_rate,
        masks=class_masks(stores) if is_partial(stores) else None,
        batch_size=batch_size,
        oversample_rate=oversample_rate,
        seed=seed,
    )
    plan = _Plan(
        order=_Order(tuple(len(store.case_ids(split)) for store in stores), weights, seed),
        reader=reader,
        rows=tuple(range(batch_size) if rows is None else rows),
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=max(prefetch, 1),
    )
    prefixes = [f'{store.manifest.dataset}/' if len(stores) > 1 else '' for store in stores]
    return Batches(plan, [prefixes[k] + case for k, case in cases], start_step)


def class_masks(stores: Sequence[PatchStore]) -> tuple[np.ndarray, ...]:
    """Per store a bool [K]: which known classes it annotates; background always counts as such."""
    masks = []
    for store in stores:
        annotated = {*store.manifest.annotated, store.manifest.class_names[0]}
        masks.append(np.array([name in annotated for name in store.manifest.class_names]))
    return tuple(masks)


def is_partial(stores: Sequence[PatchStore]) -> bool:
    """Whether some store does not annotate every known class, so that batches need a mask."""
    return not all(mask.all() for mask in class_masks(stores))


def check_stores(stores: Sequence[PatchStore], split: str) -> None:
    """Raises UserError unless the stores have cases of a split and fit together."""
    if not stores:
        raise UserError('no patch store given; set at least one')
    first = stores[0]
    for store in stores:
        if not store.case_ids(split):
            raise UserError(
                f'store {store.location}: split {split!r} is empty; prepare it with other splits'
            )
        for name, fix in _SHARED.items():
            if getattr(store.manifest, name) != getattr(first.manifest, name):
                raise UserError(
                    f'store {store.location}: its {name} differ from those of {first.location}; '
                    f'prepare both alike to train on them together ({fix})'
                )


def _weights(sizes: Sequence[int], mix: Sequence[float] | None) -> tuple[float, ...]:
    weights = [float(size) for size in sizes] if mix is None else [float(w) for w in mix]
    if len(weights) != len(sizes) or not all(w > 0 for w in weights):
        raise UserError(
            f'mix {list(mix or ())} must hold one positive weight for each of {len(sizes)} stores'
        )
    return tuple(w / sum(weights) for w in weights)


@functools.lru_cache(maxsize=64)
def _shuffled(seed: int, store: int, epoch: int, count: int) -> np.ndarray:
    """Order of a store's cases in an epoch."""
    return np.random.default_rng([seed, _SHUFFLE, store, epoch]).permutation(count)


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which case each global row shows.

    Not Grain's own shuffle, which needs milliseconds per row in a store of a few cases.

    Attributes:
        counts: cases per store; they are numbered store after store.
        weights: share of the rows per store.
        seed: of the order.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def cases(self, rows: Iterable[int]) -> list[int]:
        """Index of the case of each row; any row at once."""
        mixture = self._mixture
        found = []
        for row in rows:
            store, visit = (0, row) if mixture is None else mixture[row]
            epoch, position = divmod(visit, self.counts[store])
            order = _shuffled(self.seed, store, epoch, self.counts[store])
            found.append(sum(self.counts[:store]) + int(order[position]))
        return found

    @functools.cached_property
    def _mixture(self) -> Any:
        """Row to (store, how many rows of that store came before), evenly over time."""
        if len(self.counts) == 1:
            return None
        parts = [
            grain.MapDataset.range(_ENDLESS).map(functools.partial(_pair, k))
            for k in range(len(self.counts))
        ]
        return grain.MapDataset.mix(parts, self.weights)


def _pair(store: int, visit: int) -> tuple[int, int]:
    return store, visit


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """How steps become this host's batches."""

    order: _Order
    reader: '_CropReader'
    rows: tuple[int, ...]
    num_workers: int
    num_threads: int
    prefetch: int

    def iterable(self, start_step: int) -> grain.IterDataset:
        # An element is a whole batch, so that workers only share out batches. It is read in one go:
        # its reads overlap, straight into the arrays that are handed on.
        batches = grain.MapDataset.range(start_step, _ENDLESS).map(self)
        dataset = batches.to_iter_dataset(
            grain.ReadOptions(
                num_threads=min(self.num_threads, self.prefetch),  # more could never run at once
                prefetch_buffer_size=self.prefetch,
            )
        )
        if self.num_workers:
            options = grain.MultiprocessingOptions(num_workers=self.num_workers)
            dataset = dataset.mp_prefetch(options)
        return dataset

    def __call__(self, step: int) -> Mapping[str, np.ndarray]:
        """This host's batch of a step."""
        return self.reader.read_batch(self._global_rows(step), self.cases_of(step))

    def cases_of(self, step: int) -> list[int]:
        """Indices of the cases of this host's batch, without reading them."""
        return self.order.cases(self._global_rows(step))

    def _global_rows(self, step: int) -> list[int]:
        """This host's rows of a step, counted from the first step on."""
        return [step * self.reader.batch_size + row for row in self.rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CropReader:
    """Reads the crops of global rows; see `build_batches` for the fields."""

    stores: tuple[PatchStore, ...]
    cases: tuple[tuple[int, str], ...]
    classes: tuple[tuple[int, ...], ...]
    crop_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    deform_rate: float
    masks: tuple[np.ndarray, ...] | None
    batch_size: int
    oversample_rate: float
    seed: int

    def read_batch(self, rows: Sequence[int], indices: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Batch of global rows, which show the cases `indices`."""
        channels = len(self.stores[0].manifest.channels)
        shape = (len(indices), *self.crop_size)
        batch = {
            'image': np.zeros((*shape, channels), np.int16),
            'label': np.zeros(shape, np.uint8),
            'case': np.array(indices, np.int32),
        }
        if self.masks is not None:
            batch['class_mask'] = np.stack([self.masks[self.cases[i][0]] for i in indices])
        if self.deform_rate < 1:
            batch['deformed'] = np.array([self._is_deformed(row) for row in rows])
        crop, patch = np.array(self.crop_size), np.array(self.patch_size)
        waits = []
        for i, (row, index) in enumerate(zip(rows, indices, strict=True)):
            k, case_id = self.cases[index]
            whole = 'deformed' not in batch or batch['deformed'][i]
            offset, size = (0 * crop, crop) if whole else ((crop - patch) // 2, patch)
            start = self._draw_start(row, self.stores[k], case_id, self.classes[k]) + offset
            box = (i, *(slice(a, a + n) for a, n in zip(offset, size, strict=True)))
            arrays = batch['image'][box], batch['label'][box]
            waits.append(self.stores[k].start_crop(case_id, start.tolist(), *arrays))
        for wait in waits:
            wait()
        return batch

    def _draw_start(self, row: int, store: PatchStore, case_id: str, classes) -> np.ndarray:
        """First voxel of a row's crop."""
        rng = np.random.default_rng([self.seed, _CROP, row])
        coords = None
        position = self._position_in_batch(row)
        if is_forced_foreground(position, self.batch_size, self.oversample_rate, rng):
            coords = draw_foreground(store, case_id, classes, rng)
        shape = store.shape(case_id)
        return np.array(sample_box(shape, self.crop_size, rng, coords, patch_size=self.patch_size))

    def _is_deformed(self, row: int) -> bool:
        rng = np.random.default_rng([self.seed, _DEFORMED, row])
        return bool(rng.random() < self.deform_rate)

    def _position_in_batch(self, row: int) -> int:
        step, position = divmod(row, self.batch_size)
        if len(self.stores) == 1:
            return position
        # Mixing puts the stores in a regular pattern. Without this, one store could always be
        # the one in the forced rows.
        rng = np.random.default_rng([self.seed, _FORCED, step])
        return int(rng.permutation(self.batch_size)[position])
