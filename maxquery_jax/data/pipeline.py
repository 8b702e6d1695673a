"""From stores to batches of raw crops: a pure function of (seed, step), through Grain.

Every random draw of global row g = step * batch_size + i is made from (seed, g), so a batch does
not depend on worker count, on where a run was resumed, or on the number of hosts: host h of n reads
rows h * b to (h + 1) * b of each global batch, b = batch_size / n, in that order.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence

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

_SHUFFLE, _CROP, _FORCED = range(3)  # names of the random streams


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
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
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
        batch_size: samples per step over all hosts.
        seed: of cases and positions.
        start_step: first step to return.
        shard_index: this host.
        shard_count: number of hosts.
        oversample_rate: fraction of samples forced to contain foreground.
        oversample_roles: roles of the classes that count as foreground there.
        mix: positive weight per store; None weighs stores by their number of cases.
        num_workers: processes that read; 0 reads in threads of this process.
        num_threads: reading threads per process; each reads a whole batch.
        prefetch: batches read ahead per process, at least one; bounds memory.

    Returns:
        Iterator of `{'image': int16 [b, *crop, P] HU, 'label': uint8 [b, *crop], 'case': int32
        [b]}` with b = batch_size / shard_count rows.

    Raises:
        UserError: on stores that do not fit together, an empty split or impossible sizes; while
            iterating, if a case cannot be read or a worker process dies.
    """
    stores = tuple(stores)
    _check_stores(stores, split)
    if batch_size < 1 or batch_size % shard_count:
        raise UserError(
            f'batch_size {batch_size} does not divide over {shard_count} hosts; make it a multiple'
        )
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
        batch_size=batch_size,
        oversample_rate=oversample_rate,
        seed=seed,
    )
    plan = _Plan(
        rows=_draw_cases(stores, split, weights, seed),
        reader=reader,
        shard=(shard_index, shard_count),
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=max(prefetch, 1),
    )
    prefixes = [f'{store.manifest.dataset}/' if len(stores) > 1 else '' for store in stores]
    return Batches(plan, [prefixes[k] + case for k, case in cases], start_step)


def _check_stores(stores: Sequence[PatchStore], split: str) -> None:
    if not stores:
        raise UserError('no patch store given; set at least one')
    first = stores[0]
    for store in stores:
        if not store.case_ids(split):
            raise UserError(
                f'store {store.location}: split {split!r} is empty; prepare it with other splits'
            )
        for name in ('labels', 'spacing_mm', 'channels'):
            if getattr(store.manifest, name) != getattr(first.manifest, name):
                raise UserError(
                    f'store {store.location}: its {name} differ from those of {first.location}; '
                    'prepare both alike to train on them together'
                )


def _weights(sizes: Sequence[int], mix: Sequence[float] | None) -> list[float]:
    weights = [float(size) for size in sizes] if mix is None else [float(w) for w in mix]
    if len(weights) != len(sizes) or not all(w > 0 for w in weights):
        raise UserError(
            f'mix {list(mix or ())} must hold one positive weight for each of {len(sizes)} stores'
        )
    return [w / sum(weights) for w in weights]


def _draw_cases(stores, split, weights, seed) -> grain.MapDataset:
    """Endless dataset: global row to index of a case."""
    parts, offset = [], 0
    for k, store in enumerate(stores):
        count = len(store.case_ids(split))
        state = np.random.SeedSequence([seed, _SHUFFLE, k]).generate_state(1)
        part = grain.MapDataset.range(offset, offset + count).shuffle(seed=int(state[0]))
        parts.append(part.repeat(None))
        offset += count
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """How rows become this host's batches."""

    rows: grain.MapDataset
    reader: '_CropReader'
    shard: tuple[int, int]
    num_workers: int
    num_threads: int
    prefetch: int

    @property
    def local_rows(self) -> int:
        return self.reader.batch_size // self.shard[1]

    def iterable(self, start_step: int) -> grain.IterDataset:
        # Batching comes before the shard slice, so that a host gets neighbouring rows, and both
        # come before any worker exists, so that workers only share out whole batches.
        index, count = self.shard
        batches = self.rows.map_with_index(self.reader).batch(self.local_rows, drop_remainder=True)
        dataset = batches[index::count][start_step:].to_iter_dataset(
            grain.ReadOptions(
                num_threads=min(self.num_threads, self.prefetch),  # more could never run at once
                prefetch_buffer_size=self.prefetch,
            )
        )
        if self.num_workers:
            options = grain.MultiprocessingOptions(num_workers=self.num_workers)
            dataset = dataset.mp_prefetch(options)
        return dataset

    def cases_of(self, step: int) -> list[int]:
        """Indices of the cases of this host's batch, without reading them."""
        first = step * self.reader.batch_size + self.shard[0] * self.local_rows
        return [int(self.rows[row]) for row in range(first, first + self.local_rows)]  # type: ignore


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CropReader:
    """Reads the crop of a global row; see `build_batches` for the fields."""

    stores: tuple[PatchStore, ...]
    cases: tuple[tuple[int, str], ...]
    classes: tuple[tuple[int, ...], ...]
    crop_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    oversample_rate: float
    seed: int

    def __call__(self, row: int, index: int) -> Mapping[str, np.ndarray]:
        k, case_id = self.cases[index]
        store = self.stores[k]
        rng = np.random.default_rng([self.seed, _CROP, row])
        coords = None
        position = self._position_in_batch(row)
        if is_forced_foreground(position, self.batch_size, self.oversample_rate, rng):
            coords = draw_foreground(store, case_id, self.classes[k], rng)
        shape = store.shape(case_id)
        start = sample_box(shape, self.crop_size, rng, coords, patch_size=self.patch_size)
        image, label = store.read_crop(case_id, start, self.crop_size)
        return {'image': image, 'label': label, 'case': np.asarray(index, np.int32)}

    def _position_in_batch(self, row: int) -> int:
        step, position = divmod(row, self.batch_size)
        if len(self.stores) == 1:
            return position
        # Mixing puts the stores in a regular pattern. Without this, one store could always be
        # the one in the forced rows.
        rng = np.random.default_rng([self.seed, _FORCED, step])
        return int(rng.permutation(self.batch_size)[position])
