"""Patches per second of reading and of augmentation, next to a peer's if there is one."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import scipy.ndimage

from maxquery_jax.augment import policy as augment_policy
from maxquery_jax.data.pipeline import build_batches
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.train.synthetic import synthetic_manifest

CASES, SHAPE = 8, (192, 256, 256)  # of the store that is generated
PARTS = ('read', 'augment', 'total', 'total_papers')
PATCHES = {'read': 200, 'augment': 60, 'total': 60}  # timed per repeat

PAPERS_POLICY = augment_policy.AugmentPolicy()
# nnU-Net's default transforms: the papers' list adds these two.
NNUNET_POLICY = augment_policy.AugmentPolicy(elastic_rate=0.0, additive_rate=0.0)


def benchmark_input(
    store: str | None,
    *,
    patch_size: Sequence[int] = (96, 96, 96),
    batch_size: int = 2,
    num_repeats: int = 5,
    num_threads: int = 2,
    num_cores: int = 2,
    parts: Sequence[str] = PARTS,
    patches: dict[str, int] = PATCHES,
    shape: Sequence[int] = SHAPE,
    peer: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures our input pipeline, and a peer's in turns with it.

    `read` is reading patches alone; `augment` is augmentation alone, of enlarged crops that are in
    memory; `total` is reading enlarged crops and augmenting them, as training does; `total_papers`
    is the same with the papers' list of transforms instead of nnU-Net's. The files are in the page
    cache.

    Args:
        store: an own store, whose training cases are used; None generates one.
        patch_size: (D, H, W).
        batch_size: samples per batch.
        num_repeats: timed repeats of every part; the median counts.
        num_threads: reading threads.
        num_cores: cores this process and the peer may use.
        parts: what to measure.
        patches: patches per repeat and part.
        shape: (D, H, W) of the volumes that are generated.
        peer: command of a program as `launch/peers/nnunet_input.py`, without its arguments.

    Returns:
        Patches per second by part, `ours` and `peer` (median, minimum, maximum over the repeats),
        `ratio` of the medians, processor time of ours, which other work on the machine disturbs
        less, and the settings.

    Raises:
        UserError: the store has no training cases, or the peer fails.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_limited_cores(num_cores))
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if store is None:
            store = write_synthetic_store(folder / 'store', shape)
        opened = PatchStore(store)
        if not opened.case_ids('train'):
            raise UserError(f'store {store} has no training cases; benchmark one that has')
        theirs = None
        if peer:
            theirs = stack.enter_context(_Peer(peer, opened, folder, patch_size, batch_size))
        available = _parts(opened, tuple(patch_size), batch_size, num_threads)
        ours = {name: stack.enter_context(available[name]) for name in parts}
        found: dict[str, dict[str, list[float]]] = {'ours': {}, 'core_ms': {}, 'peer': {}}
        for _ in range(num_repeats):
            _take_turns(found, ours, theirs, patches, batch_size)
        used_cores = len(os.sched_getaffinity(0))
    summary = {who: {k: _summary(v) for k, v in parts.items()} for who, parts in found.items()}
    return {
        'unit': 'patches per second: median, min, max',
        'patch_size': list(patch_size),
        'crop_size': list(augment_policy.crop_size(NNUNET_POLICY, patch_size)),
        'batch_size': batch_size,
        'cores': used_cores,
        'repeats': num_repeats,
        'patches_per_repeat': patches,
        'store': 'generated' if opened.manifest.dataset == 'synthetic' else opened.location,
        'load_average': os.getloadavg()[0],
        'ours': summary['ours'],
        'ours_core_ms_per_patch': {k: v['median'] for k, v in summary['core_ms'].items()},
        'peer': summary['peer'],
        'peer_settings': theirs.settings if theirs else {},
        'ratio': {
            name: summary['ours'][name]['median'] / values['median']
            for name, values in summary['peer'].items()
        },
    }


def _take_turns(found, ours, theirs, patches, batch_size: int) -> None:
    """Adds one repeat of every part, ours and then the peer's, to the rates found."""
    for name, run in ours.items():
        count = patches[name.split('_')[0]]
        rate, milliseconds = _rate(run, batch_size, count)
        found['ours'].setdefault(name, []).append(rate)
        found['core_ms'].setdefault(name, []).append(milliseconds)
        if theirs and name != 'total_papers':
            found['peer'].setdefault(name, []).append(count / theirs.measure(name, count))


def write_synthetic_store(location: pathlib.Path, shape: Sequence[int]) -> str:
    """Writes a store of CT-like volumes: smooth tissue with noise in an ellipse of air."""
    manifest = synthetic_manifest(1, (1.0, 1.0, 1.0), 1)
    writer = StoreWriter(location)
    cases: dict[str, Any] = {}
    for index in range(CASES):
        image, label = _volume(index, tuple(shape))
        name = f'case{index}'
        record = writer.write_case(name, image, label)
        cases[name] = {
            'shape': record['shape'],
            'native': {},
            'source': {},
            'sha256': {},
            'voxels': record['voxels'],
        }
    splits = {'train': tuple(cases), 'val': (), 'test': ()}
    writer.finish(dataclasses.replace(manifest, cases=cases, splits=splits))
    return str(location)


def _volume(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU [*shape, 1] and uint8 label: an organ where tissue is dense, tumours in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=[-(-n // 8) for n in shape]).astype(np.float32)
    zoomed = np.asarray(scipy.ndimage.zoom(coarse, 8, order=1), np.float32)
    tissue = zoomed[tuple(slice(n) for n in shape)]
    noise = rng.normal(scale=20, size=shape).astype(np.float32)
    label = np.digitize(tissue, [1.0, 1.8]).astype(np.uint8)
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    air = y**2 + x**2 > 0.9
    image = np.where(air, -1000, 100 * tissue + noise).round().astype(np.int16)
    return image[..., None], np.where(air, 0, label).astype(np.uint8)


Run = Callable[[], Any]
"""Makes one batch and returns when it is there."""


def _parts(
    store: PatchStore, patch_size: tuple[int, ...], batch_size: int, num_threads: int
) -> dict[str, contextlib.AbstractContextManager[Run]]:
    crop = augment_policy.crop_size(NNUNET_POLICY, patch_size)
    compiled = {  # at their first call
        policy: jax.jit(augment_policy.make_augment(policy, patch_size, store.manifest.intensity))
        for policy in (NNUNET_POLICY, PAPERS_POLICY)
    }

    def batches(crop_size, policy):
        return build_batches(
            [store],
            crop_size=crop_size,
            patch_size=patch_size,
            deform_rate=augment_policy.deform_rate(policy) if policy else 1.0,
            batch_size=batch_size,
            seed=0,
            num_threads=num_threads,
        )

    @contextlib.contextmanager
    def read() -> Iterator[Run]:
        with batches(patch_size, None) as stream:
            yield lambda: next(stream)

    @contextlib.contextmanager
    def augment() -> Iterator[Run]:
        with batches(crop, None) as stream:
            host = next(stream)
        yield _augmented(compiled[NNUNET_POLICY], lambda: host)

    @contextlib.contextmanager
    def total(policy) -> Iterator[Run]:
        with batches(crop, policy) as stream:
            yield _augmented(compiled[policy], lambda: next(stream))

    return {
        'read': read(),
        'augment': augment(),
        'total': total(NNUNET_POLICY),
        'total_papers': total(PAPERS_POLICY),
    }


def _augmented(augment: Callable, next_batch: Callable[[], Any]) -> Run:
    """Augments the batch after the one that is returned, as the training loop does."""
    keys = iter(range(2**31))

    def dispatch():
        return augment(next_batch(), jax.random.fold_in(jax.random.key(0), next(keys)))

    pending = [dispatch()]

    def run():
        pending.append(dispatch())
        return jax.block_until_ready(pending.pop(0))

    return run


def _rate(run: Run, batch_size: int, num_patches: int) -> tuple[float, float]:
    """Patches per second at the pace of full queues, and core milliseconds per patch."""
    for _ in range(6):  # what was read ahead while other parts ran does not count
        run()
    count = max(1, num_patches // batch_size)
    started, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        run()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return count * batch_size / seconds, 1e3 * busy / (count * batch_size)


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


@contextlib.contextmanager
def _limited_cores(num_cores: int) -> Iterator[None]:
    """Binds this process and those it starts to some cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class _Peer:
    """A peer's pipeline in a process of its own, on the same volumes and cores."""

    def __init__(
        self,
        command: Sequence[str],
        store: PatchStore,
        folder: pathlib.Path,
        patch_size: Sequence[int],
        batch_size: int,
    ):
        self._name = command[-1]
        data = folder / 'peer'
        data.mkdir()
        _export(store, data)
        patch = ','.join(str(n) for n in patch_size)
        cores = str(len(os.sched_getaffinity(0)))
        self._log = open(folder / 'peer.log', 'w+')  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*command, str(data), patch, str(batch_size), cores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.settings = self._answer()

    def measure(self, part: str, num_patches: int) -> float:
        """Seconds for a number of patches."""
        assert self._process.stdin is not None
        self._process.stdin.write(f'{part} {num_patches}\n')
        self._process.stdin.flush()
        return float(self._answer()['seconds'])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            lines = [text for text in self._log.read().splitlines() if text.strip()]
            raise UserError(
                f'the peer {self._name} ended ({lines[-1] if lines else "no output"}); run it '
                'with an interpreter that has its packages'
            )
        return json.loads(line)

    def __enter__(self) -> '_Peer':
        return self

    def __exit__(self, *exc_info) -> None:
        if self._process.poll() is None:
            try:
                self._process.communicate('\n', timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
        self._log.close()


def _export(store: PatchStore, folder: pathlib.Path) -> None:
    """Writes up to CASES volumes as plain arrays."""
    for case_id in store.case_ids('train')[:CASES]:
        name = case_id.replace('/', '_')
        np.save(folder / f'{name}.npy', store.read_image(case_id))
        np.save(folder / f'{name}_label.npy', store.read_label(case_id))
    write_json(folder / 'intensity.json', dict(store.manifest.intensity))
