"""Batches as a pure function of (seed, step)."""

import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
from store_helper import LABELS, build_store, make_case, make_manifest

from maxquery_jax.data.pipeline import build_batches
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError

OPTIONS = {'crop_size': (8, 10, 12), 'batch_size': 4, 'seed': 7}


def write_noise(path, shape=(96, 192, 192)):
    rng = np.random.default_rng(0)
    writer = StoreWriter(path)
    image = rng.integers(-1000, 1000, (*shape, 1)).astype(np.int16)
    label = rng.integers(0, 2, shape).astype(np.uint8)
    records = {'c0': writer.write_case('c0', image, label)}
    writer.finish(make_manifest(records, {'train': ['c0']}))
    return path


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return PatchStore(build_store(tmp_path_factory.mktemp('data') / 'store', 5))


def take(stores, count, **changes):
    stores = stores if isinstance(stores, list) else [stores]
    with build_batches(stores, **{**OPTIONS, **changes}) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_shapes_dtypes_and_contents(store):
    for batch in take(store, 3):
        assert batch['image'].shape == (4, 8, 10, 12, 1) and batch['image'].dtype == np.int16
        assert batch['label'].shape == (4, 8, 10, 12) and batch['label'].dtype == np.uint8
        assert batch['case'].shape == (4,) and batch['case'].dtype == np.int32
        for crop, label, case in zip(batch['image'], batch['label'], batch['case'], strict=True):
            image, truth = make_case(int(case))
            (start,) = np.argwhere(image[:13, :15, :17, 0] == crop[0, 0, 0, 0])[:1]
            box = tuple(slice(s, s + n) for s, n in zip(start, crop.shape, strict=False))
            np.testing.assert_array_equal(crop, image[box])
            np.testing.assert_array_equal(label, truth[box])


def test_same_seed_and_step_give_the_same_batch(store):
    once = take(store, 6)
    assert_same(once, take(store, 6))
    assert_same(once[4:], take(store, 2, start_step=4))
    assert_same(once, take(store, 6, num_threads=1))
    assert_same(once, take(store, 6, num_threads=3, prefetch=5))
    assert_same(once, take(store, 6, num_threads=3, prefetch=0))
    other = take(store, 1, seed=8)[0]
    assert not np.array_equal(once[0]['image'], other['image'])


@pytest.fixture(scope='module')
def mixture(store, tmp_path_factory):
    """Two stores, the second of which does not annotate tumours."""
    path = tmp_path_factory.mktemp('data') / 'partial'
    build_store(path, 3, classes=(1,), dataset='partial', annotated=['liver'])
    return [store, PatchStore(path)]


MIXED = {'mix': (2, 1), 'deform_rate': 0.5, 'crop_size': (12, 14, 16), 'patch_size': (8, 10, 12)}


@pytest.mark.parametrize('num_workers', [1, 2, 4])
def test_workers_do_not_change_the_data(store, num_workers):
    assert_same(take(store, 5), take(store, 5, num_workers=num_workers))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('num_workers', [2, 4])
def test_workers_do_not_change_a_mixture(mixture, num_workers):
    assert_same(take(mixture, 5, **MIXED), take(mixture, 5, **MIXED, num_workers=num_workers))


@pytest.mark.parametrize('mixed', [False, True])
def test_hosts_read_rows_of_the_one_host_batch(store, mixture, mixed):
    stores, options = (mixture, MIXED) if mixed else (store, {})
    whole = take(stores, 4, **options)
    for count in (2, 4):
        hosts = np.arange(4).reshape(count, -1)
        parts = [take(stores, 4, **options, rows=rows) for rows in hosts]
        joined = [
            {key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]}
            for step in range(4)
        ]
        assert_same(whole, joined)
    resumed = take(stores, 1, start_step=3, **options, rows=(0, 3))[0]  # not neighbours
    np.testing.assert_array_equal(resumed['image'], whole[3]['image'][[0, 3]])


def test_any_step_is_there_at_once(store, mixture):
    for stores, options in ((store, {}), (mixture, MIXED)):
        started = time.perf_counter()
        late = take(stores, 1, start_step=10**6, **options)
        assert time.perf_counter() - started < 1
        assert_same(late, take(stores, 1, start_step=10**6, **options))


def test_partial_stores_bring_a_mask(store, mixture):
    assert 'class_mask' not in take(store, 1)[0]
    for batch in take(mixture, 6, **MIXED):
        of_partial = batch['case'] >= 5
        assert batch['class_mask'].dtype == bool and batch['class_mask'].shape == (4, 3)
        np.testing.assert_array_equal(batch['class_mask'], ~of_partial[:, None] | [[1, 1, 0]])


def test_crops_that_are_not_deformed_hold_the_patch_only(store):
    options = {'crop_size': (16, 18, 20), 'patch_size': (8, 10, 12)}
    whole = take(store, 40, **options)
    some = take(store, 40, **options, deform_rate=0.3)
    inner = (slice(None), slice(4, 12), slice(4, 14), slice(4, 16))
    for full, batch in zip(whole, some, strict=True):
        for i, deformed in enumerate(batch['deformed']):
            if deformed:
                np.testing.assert_array_equal(batch['image'][i], full['image'][i])
                np.testing.assert_array_equal(batch['label'][i], full['label'][i])
            rest = batch['image'][i].copy()
            rest[inner[1:]] = 0
            assert rest.any() == deformed
        np.testing.assert_array_equal(batch['image'][inner], full['image'][inner])
        np.testing.assert_array_equal(batch['label'][inner], full['label'][inner])
    share = np.mean([batch['deformed'] for batch in some])
    assert abs(share - 0.3) < 0.12  # of 160


def test_memory_stays_flat(tmp_path):
    # Noise: its chunks are large, and kept in memory they would fragment it.
    stores = [PatchStore(write_noise(tmp_path / name)) for name in ('a', 'b')]
    process = psutil.Process()
    with build_batches(stores, **{**OPTIONS, 'batch_size': 2}, num_threads=2) as batches:
        sizes = []
        for _ in range(5):
            for _ in range(150):
                next(batches)
            sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[1] < 12 * 2**20, sizes


def test_every_case_once_per_epoch_in_changing_order(store):
    cases = np.concatenate([batch['case'] for batch in take(store, 15)])
    epochs = cases[: 12 * 5].reshape(12, 5)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(5), (12, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_positions_differ_between_visits_of_a_case(store):
    batches = take(store, 20, oversample_rate=0.0)
    corners = {
        (int(c), int(i[0, 0, 0, 0]))
        for b in batches
        for c, i in zip(b['case'], b['image'], strict=True)
    }
    assert len(corners) > 70  # of 80


@pytest.mark.parametrize(('rate', 'forced'), [(1 / 3, [3]), (1.0, [0, 1, 2, 3])])
def test_forced_rows_contain_foreground(tmp_path, rate, forced):
    # Foreground fills 0.2 % of these volumes, so an unforced crop of 8^3 rarely sees it.
    store = PatchStore(build_store(tmp_path / 'store', 3, shapes=[(64, 64, 64)] * 3))
    seen = np.zeros(4)
    batches = take(store, 25, crop_size=(8, 8, 8), oversample_rate=rate)
    for batch in batches:
        seen += (batch['label'] > 0).any(axis=(1, 2, 3))
    for row in range(4):
        if row in forced:
            assert seen[row] == 25
        else:
            assert seen[row] < 8


def test_roles_choose_the_oversampled_classes(tmp_path):
    store = PatchStore(build_store(tmp_path / 'store', 2, shapes=[(40, 64, 64)] * 2))
    small = {'crop_size': (1, 1, 1), 'oversample_rate': 1.0}
    tumours = take(store, 8, oversample_roles=('tumour',), **small)
    assert {int(v) for b in tumours for v in b['label'].ravel()} == {2}
    both = np.array([b['label'].ravel() for b in take(store, 25, **small)])
    assert 20 < (both == 2).sum() < 80 and (both > 0).all()


def test_small_volumes_are_padded(tmp_path):
    shapes = [(5, 24, 28), (20, 24, 9)]
    store = PatchStore(build_store(tmp_path / 'store', 2, shapes=shapes, classes=(1,)))
    for batch in take(store, 4, crop_size=(8, 8, 12)):
        for crop, label, case in zip(batch['image'], batch['label'], batch['case'], strict=True):
            inside = crop[..., 0] > -1024
            extent = tuple(np.ptp(np.argwhere(inside), axis=0) + 1)
            assert extent == ((5, 8, 12), (8, 8, 9))[int(case)]
            assert not label[~inside].any()


def test_the_patch_inside_an_enlarged_crop_reaches_every_border(store):
    crops = take(store, 30, crop_size=(16, 20, 24), patch_size=(8, 10, 12), oversample_rate=0.0)
    outside = np.array([(b['image'] == -1024).all(axis=(2, 3, 4)).sum(axis=1) for b in crops])
    assert outside.max() == 4 and (outside == 0).any()
    for batch in crops:
        assert (batch['image'][:, 4:12, 5:15, 6:18] > -1024).all()


def test_several_stores_mix_in_proportion(store, tmp_path):
    other = PatchStore(build_store(tmp_path / 'other', 2, dataset='more'))
    with build_batches([store, other], **OPTIONS, mix=(1, 3)) as batches:
        cases = np.array([next(batches)['case'] for _ in range(40)])
        assert batches.case_name(0) == 'test/c0' and batches.case_name(6) == 'more/c1'
    assert abs((cases >= 5).mean() - 0.75) < 0.02
    by_size = np.array([b['case'] for b in take([store, other], 40)])
    assert abs((by_size >= 5).mean() - 2 / 7) < 0.02
    whole = take([store, other], 2, mix=(1, 3))
    halves = ((0, 1), (2, 3))
    parts = [take([store, other], 2, mix=(1, 3), rows=rows) for rows in halves]
    np.testing.assert_array_equal(
        np.concatenate([parts[0][1]['image'], parts[1][1]['image']]), whole[1]['image']
    )


def test_mixing_forces_foreground_in_every_store(tmp_path):
    shapes = [(64, 64, 64)] * 2
    stores = [PatchStore(build_store(tmp_path / n, 2, shapes=shapes)) for n in ('a', 'b')]
    batches = take(stores, 60, crop_size=(8, 8, 8), batch_size=2, mix=(1, 1))
    seen = np.array([(b['label'] > 0).any(axis=(1, 2, 3)) for b in batches])
    assert (seen.sum(axis=1) >= 1).all()
    of_first = np.array([b['case'] < 2 for b in batches])
    assert of_first.mean() == 0.5
    assert 15 < seen[of_first].sum() < 50 and 15 < seen[~of_first].sum() < 50


def test_faults_of_the_arguments(store, tmp_path):
    with pytest.raises(UserError, match='batch_size 0'):
        take(store, 1, batch_size=0)
    with pytest.raises(UserError, match='seed -1'):
        take(store, 1, seed=-1)
    with pytest.raises(UserError, match="split 'val' is empty"):
        take(store, 1, split='val')
    with pytest.raises(UserError, match='positive weight'):
        take(store, 1, mix=(0,))
    with pytest.raises(UserError, match='positive weight'):
        take(store, 1, mix=(1, 1))
    with pytest.raises(UserError, match='no patch store'):
        build_batches([], **OPTIONS)
    labels = [dict(label) for label in LABELS]
    labels[1]['name'] = 'spleen'
    path = build_store(tmp_path / 'other', 1, labels=labels, annotated=[])
    with pytest.raises(UserError, match='labels differ'):
        take([store, PatchStore(path)], 1)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_an_unreadable_case_is_named(tmp_path, num_workers):
    path = build_store(tmp_path / 'store', 1)
    for shard in (path / 'cases/c0/image/c').rglob('*'):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:-100])
    with (
        pytest.raises(UserError, match="case 'c0' cannot be read"),
        build_batches([PatchStore(path)], **OPTIONS, num_workers=num_workers) as batches,
    ):
        next(batches)


@pytest.mark.filterwarnings('ignore:resource_tracker')
def test_a_killed_worker_is_reported_with_its_cases(store):
    with build_batches([store], **OPTIONS, num_workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r'worker process died at step \d+, near cases c\d'):
            for _ in range(20):
                next(batches)


def test_closing_twice_and_reading_after(store):
    batches = build_batches([store], **OPTIONS, start_step=3)
    assert batches.step == 3
    next(batches)
    assert batches.step == 4
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match='closed'):
        next(batches)
