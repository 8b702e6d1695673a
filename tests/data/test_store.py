"""Patch store: round trip, validation, atomicity, damage."""

import json
import pathlib
import pickle
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from store_helper import LABELS, build_store, make_case, make_manifest

from maxquery_jax.data.store import Manifest, PatchStore, kvstore_spec
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError


@pytest.fixture
def store_path(tmp_path):
    return build_store(tmp_path / 'store')


def edit_manifest(path, edit):
    data = json.loads((path / 'manifest.json').read_text())
    edit(data)
    (path / 'manifest.json').write_text(json.dumps(data))


def test_round_trip_of_arrays_and_manifest(tmp_path):
    writer = StoreWriter(tmp_path / 'new' / 'store')
    image, label = make_case(0, (30, 50, 70), channels=3)
    record = writer.write_case('a', image, label, {'spacing': [1, 2, 3]})
    unlabelled = writer.write_case('b', image[::2], None)
    assert unlabelled['voxels'] == {}
    assert writer.attributes('a') == record and record['spacing'] == [1, 2, 3]
    assert record['voxels'] == {str(i): int((label == i).sum()) for i in (0, 1, 2)}
    manifest = make_manifest({'a': record, 'b': unlabelled}, {'train': ['a'], 'test': ['b']}, 3)
    writer.finish(manifest)

    store = PatchStore(str(tmp_path / 'new' / 'store'))
    assert store.manifest == manifest
    assert store.case_ids('train') == ('a',) and store.case_ids('val') == ()
    assert store.shape('b') == (15, 50, 70)
    assert store.classes_present('a') == (1, 2) and store.has_label('a')
    np.testing.assert_array_equal(store.read_image('a'), image)
    np.testing.assert_array_equal(store.read_label('a'), label)
    np.testing.assert_array_equal(store.read_image('b'), image[::2])
    assert store.read_image('a').dtype == np.int16 and store.read_label('a').dtype == np.uint8
    with pytest.raises(UserError, match="'b' has no label"):
        store.read_label('b')


@pytest.mark.parametrize(
    ('start', 'size'),
    [
        ((3, 4, 5), (6, 7, 8)),
        ((-3, -2, -1), (8, 8, 8)),
        ((15, 20, 25), (10, 10, 10)),
        ((-5, -5, -5), (40, 40, 40)),
        ((100, 0, 0), (4, 4, 4)),
        ((-9, 0, 0), (9, 4, 4)),
    ],
)
def test_boxes_are_padded_outside_the_volume(store_path, start, size):
    image, label = make_case(1)
    pad = [(60, 120)] * 3
    want_image = np.pad(image, [*pad, (0, 0)], constant_values=-1024)
    want_label = np.pad(label, pad)
    box = tuple(slice(s + 60, s + 60 + n) for s, n in zip(start, size, strict=True))
    store = PatchStore(store_path)
    got_image, got_label = store.read_crop('c1', start, size)
    np.testing.assert_array_equal(got_image, want_image[box])
    np.testing.assert_array_equal(got_label, want_label[box])
    np.testing.assert_array_equal(store.read_image('c1', start, size), want_image[box])
    np.testing.assert_array_equal(store.read_label('c1', start, size), want_label[box])


def test_foreground_lists_voxels_of_the_class(store_path):
    store = PatchStore(store_path)
    _, label = make_case(0)
    for class_id in (1, 2):
        coords = store.foreground('c0', class_id)
        assert coords.dtype == np.int32
        np.testing.assert_array_equal(coords, np.argwhere(label == class_id))
        assert store.foreground('c0', class_id) is coords  # cached
        assert not coords.flags.writeable
    assert store.foreground('c0', 3).shape == (0, 3)


def test_large_foreground_is_a_deterministic_sample(tmp_path):
    label = np.zeros((40, 40, 40), np.uint8)
    label[5:35] = 1
    image = np.zeros((40, 40, 40, 1), np.int16)
    found = []
    for name in ('x', 'y'):
        writer = StoreWriter(tmp_path / name)
        records = {'a': writer.write_case('a', image, label)}
        writer.finish(make_manifest(records, {'train': ['a']}))
        found.append(PatchStore(tmp_path / name).foreground('a', 1))
    np.testing.assert_array_equal(*found)
    assert found[0].shape == (10_000, 3)
    assert len(np.unique(found[0], axis=0)) == 10_000
    assert (label[tuple(found[0].T)] == 1).all()
    assert abs(found[0].mean(axis=0) - (19.5, 19.5, 19.5)).max() < 0.5  # not a corner of the class


def test_many_shards_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.setattr('maxquery_jax.data.store_format._MAX_SHARD_BYTES', 40_000)
    image, label = make_case(0, (60, 20, 20))
    names = ['ü x', '..', '../up', 'a/b', '.hidden', 'CON']
    writer = StoreWriter(tmp_path / 'store')
    records = {name: writer.write_case(name, image, label) for name in names}
    writer.finish(make_manifest(records, {'train': names}))
    store = PatchStore(tmp_path / 'store')
    for name in names:
        np.testing.assert_array_equal(store.read_image(name), image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['store']
    shards = list((tmp_path / 'store/cases/CON/image').rglob('*'))
    assert sum(p.is_file() for p in shards) > 2  # zarr.json and at least two shards
    with pytest.raises(UserError, match='empty'):
        writer.write_case('', image, label)


def test_memory_location_and_specs():
    location = build_store('memory://test_store/one')
    image, _ = make_case(2)
    np.testing.assert_array_equal(PatchStore(location).read_image('c2'), image)
    same = PatchStore({'driver': 'memory', 'path': 'test_store/one'})
    assert same.manifest == PatchStore(location).manifest
    assert kvstore_spec('gs://bucket/a')['bucket'] == 'bucket'
    assert kvstore_spec('s3://bucket/a')['path'] == 'a/'
    with pytest.raises(UserError, match='nonsense://x'):
        kvstore_spec('nonsense://x')


def test_remote_writer_replaces_a_case():
    writer = StoreWriter('memory://test_store/two')
    writer.write_case('a', *make_case(0))
    image, label = make_case(1, (10, 12, 14), classes=(1,))
    records = {'a': writer.write_case('a', image, label)}
    writer.finish(make_manifest(records, {'train': ['a']}))
    np.testing.assert_array_equal(PatchStore('memory://test_store/two').read_label('a'), label)


def test_missing_and_unfinished_stores_do_not_open(tmp_path):
    with pytest.raises(UserError, match='no patch store there'):
        PatchStore(tmp_path / 'nothing')
    writer = StoreWriter(tmp_path / 'half')
    writer.write_case('a', *make_case(0))
    with pytest.raises(UserError, match='not finished.*continues'):
        PatchStore(tmp_path / 'half')


def test_interrupted_case_leaves_nothing_and_is_cleaned(tmp_path, monkeypatch):
    path = tmp_path / 'store'
    writer = StoreWriter(path)
    first = writer.write_case('a', *make_case(0))

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('maxquery_jax.data.store_write.write_group', die)
        with pytest.raises(KeyboardInterrupt):
            writer.write_case('b', *make_case(1))
    again = StoreWriter(path)
    assert again.attributes('b') is None and again.attributes('a') == first
    with pytest.raises(UserError, match="case 'b' has no group"):
        again.finish(make_manifest({'a': first, 'b': first}, {'train': ['a', 'b']}))
    with pytest.raises(UserError, match='not finished'):
        PatchStore(path)
    second = again.write_case('b', *make_case(1))
    again.finish(make_manifest({'a': first, 'b': second}, {'train': ['a', 'b']}))
    assert sorted(p.name for p in path.iterdir()) == ['cases', 'manifest.json']
    assert sorted(p.name for p in (path / 'cases').iterdir()) == ['a', 'b']
    PatchStore(path)


def test_rewriting_a_case_replaces_it(tmp_path):
    writer = StoreWriter(tmp_path / 'store')
    writer.write_case('a', *make_case(0))
    image, label = make_case(1, (10, 11, 12), classes=(1,))
    records = {'a': writer.write_case('a', image, label)}
    writer.finish(make_manifest(records, {'train': ['a']}))
    np.testing.assert_array_equal(PatchStore(tmp_path / 'store').read_image('a'), image)
    assert not (tmp_path / 'store/cases/a/foreground/2').exists()


def test_writer_refuses_finished_stores_and_other_folders(store_path, tmp_path):
    with pytest.raises(UserError, match='complete already'):
        StoreWriter(store_path)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('x')
    with pytest.raises(UserError, match='thesis.tex'):
        StoreWriter(tmp_path / 'mine')


def test_writer_rejects_wrong_arrays(tmp_path):
    writer = StoreWriter(tmp_path / 'store')
    image, label = make_case(0)
    with pytest.raises(ValueError, match='int16'):
        writer.write_case('a', image.astype(np.float32), label)
    with pytest.raises(ValueError, match='uint8'):
        writer.write_case('a', image, label[1:])


def test_damaged_cases_are_named(store_path):
    cases = store_path / 'cases'
    (cases / 'c2/image/zarr.json').unlink()
    with pytest.raises(UserError, match="case 'c2' has no image.*again"):
        PatchStore(store_path)
    shutil.rmtree(cases / 'c1')
    with pytest.raises(UserError, match=r"case 'c1' has no group \(and 1 more"):
        PatchStore(store_path)


def test_wrong_shape_dtype_and_counts_are_named(store_path):
    metadata = store_path / 'cases/c3/label/zarr.json'
    metadata.write_text(metadata.read_text().replace('"uint8"', '"int16"'))
    with pytest.raises(UserError, match=r"case 'c3' has label \[20, 24, 28\] int16"):
        PatchStore(store_path)
    metadata.write_text(metadata.read_text().replace('"int16"', '"uint8"'))
    edit_manifest(store_path, lambda d: d['cases']['c0']['voxels'].update({'1': 5}))
    with pytest.raises(UserError, match="case 'c0' has other voxel counts"):
        PatchStore(store_path)


def test_corrupt_and_missing_chunks_are_errors_not_zeros(store_path):
    shards = [p for p in (store_path / 'cases/c1/image').rglob('*') if p.is_file()]
    (shard,) = [p for p in shards if p.name != 'zarr.json']
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x10
    shard.write_bytes(content)
    store = PatchStore(store_path)
    with pytest.raises(UserError, match="case 'c1' cannot be read.*again"):
        store.read_image('c1')
    shard.unlink()
    with pytest.raises(UserError, match="case 'c1' cannot be read"):
        PatchStore(store_path).read_image('c1')
    store.read_label('c1')


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda d: d.update(format='other'), 'not that of a patch store'),
        (lambda d: d.update(version=99), 'format version 99'),
        (lambda d: d.pop('labels'), 'lacks labels'),
        (lambda d: d.update(labels=3), 'malformed'),
        (lambda d: d['labels'][1].update(role='organs'), "role 'organs'"),
        (lambda d: d['labels'][2].update(id=5), 'count up'),
        (lambda d: d['labels'].reverse(), 'count up'),
        (lambda d: d['labels'][1].update(role='ood'), 'one background, then'),
        (lambda d: d['labels'][1].update(name='cyst'), 'share a name'),
        (lambda d: d['label_map'].update({'9': 9}), 'label_map'),
        (lambda d: d['annotated'].append('spleen'), "'spleen'"),
        (lambda d: d.update(spacing_mm=[1, 0, 1]), 'spacing_mm'),
        (lambda d: d['intensity'].update(scale=[0]), 'scale must be positive'),
        (lambda d: d['intensity'].update(lower=[400.0]), 'below'),
        (lambda d: d['intensity'].update(shift=[]), 'intensity.shift'),
        (lambda d: d['cases']['c0'].pop('native'), "'c0' lacks native"),
        (lambda d: d['cases']['c0'].update(shape=[1, 2]), "'c0' has shape"),
        (lambda d: d['splits']['val'].append('c1'), "'c1' is in split 'train' and in 'val'"),
        (lambda d: d['splits']['val'].append('zz'), "unknown case 'zz'"),
        (lambda d: d['splits'].pop('test'), "'test' is missing"),
        (lambda d: d['cases']['c0']['voxels'].update({'3': 4}), 'contains an OOD class'),
        (lambda d: d['cases']['c0']['voxels'].clear(), 'has no label'),
        (lambda d: d['splits']['train'].pop(), 'does not match its hash'),
        (lambda d: d['cases']['c0']['sha256'].update(x='y'), 'does not match its hash'),
    ],
)
def test_bad_manifests_are_explained(store_path, edit, message):
    edit_manifest(store_path, edit)
    with pytest.raises(UserError, match=message) as caught:
        PatchStore(store_path)
    text = str(caught.value)
    assert str(store_path) in text and '\n' not in text


def test_manifest_that_is_not_json(store_path):
    (store_path / 'manifest.json').write_text('<html>')
    with pytest.raises(UserError, match='not JSON'):
        PatchStore(store_path)


def test_manifest_properties(store_path):
    manifest = PatchStore(store_path).manifest
    assert manifest.num_classes == 3
    assert manifest.class_groups == (0, 1, 2)
    assert manifest.class_names == ('background', 'liver', 'cyst')
    assert [label['id'] for label in manifest.known_labels] == [0, 1, 2]
    assert manifest.ood_ids == (3,)
    assert manifest.ids_with_roles(['tumour', 'ood']) == (2, 3)
    assert Manifest.from_json(json.dumps(manifest.to_json())) == manifest
    other = Manifest.from_json({**manifest.to_json(), 'labels': list(LABELS)})
    assert other.split_sha256 == manifest.split_sha256


def test_unknown_split_and_case(store_path):
    store = PatchStore(store_path)
    with pytest.raises(UserError, match='train, val, test'):
        store.case_ids('validation')
    with pytest.raises(UserError, match="no case 'zz'"):
        store.shape('zz')


def test_threads_and_pickle_read_the_same(store_path):
    store = PatchStore(store_path, cache_bytes=0)
    clone = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 20_000
    results = {}

    def work(index):
        results[index] = clone.read_image(f'c{index % 4}', (2, 2, 2), (9, 9, 9))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for index in range(16):
        want = make_case(index % 4)[0][2:11, 2:11, 2:11]
        np.testing.assert_array_equal(results[index], want)


def test_a_crop_does_not_load_the_volume(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (96, 192, 192, 1), dtype=np.int16)  # 7 MB, incompressible
    writer = StoreWriter(tmp_path / 'store')
    records = {'a': writer.write_case('a', image, np.zeros(image.shape[:3], np.uint8))}
    writer.finish(make_manifest(records, {'train': ['a']}))
    store = PatchStore(tmp_path / 'store')
    shard = max((tmp_path / 'store').rglob('*'), key=lambda p: p.stat().st_size)
    before = read_bytes()
    tracemalloc.start()
    crop = store.read_image('a', (10, 10, 10), (24, 48, 48))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(crop, image[10:34, 10:58, 10:58])
    assert peak < 10 * crop.nbytes
    assert read_bytes() - before < shard.stat().st_size / 4


def read_bytes() -> int:
    """Bytes this process asked the kernel to read so far."""
    lines = pathlib.Path('/proc/self/io').read_text().splitlines()
    return int(dict(line.split(': ') for line in lines)['rchar'])
