"""The patch store: one Zarr v3 group per case, read through TensorStore.

Layout below the store's location (a folder, or a URL such as `gs://bucket/store/`):

    manifest.json                 written last; a store without it does not open
    cases/<case>/zarr.json        group; written last of its case, holds shape and voxel counts
    cases/<case>/image            [D, H, W, P] int16, HU at the manifest's spacing
    cases/<case>/label            [D, H, W] uint8 store ids; absent for unlabelled cases
    cases/<case>/foreground/<id>  [M, 3] int32 (z, y, x) of voxels of class <id> > 0

Arrays are sharded (few files) with small inner chunks (cheap random crops) and a checksum per
chunk, so that a damaged or half-copied case fails instead of reading as zeros.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from maxquery_jax.data.store_format import (
    MAX_FOREGROUND,
    Location,
    case_path,
    check_arrays,
    first_line,
    join,
    kvstore_spec,
    local_folder,
    open_kvstore,
    printable,
    process_context,
    read_key,
)
from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError

__all__ = ['AIR_HU', 'MAX_FOREGROUND', 'Manifest', 'PatchStore', 'kvstore_spec']

AIR_HU = -1024  # what a read outside the volume returns

_REMOTE_CACHE_BYTES = 2**27
_CACHED_FOREGROUNDS = 512  # times at most 120 kB


class PatchStore:
    """Read access to a finished store; thread-safe, and small to pickle.

    Attributes:
        location: where it was opened, for messages.
        manifest: its description.
    """

    def __init__(self, location: Location, *, cache_bytes: int | None = None):
        """Opens and checks a store: manifest, and shape and dtype of every array of every case.

        Args:
            location: see `kvstore_spec`.
            cache_bytes: upper bound of the decoded chunks kept in memory by this object. None is
                128 MiB for object storage, and nothing for a local disk: the system caches its
                files, random crops gain nothing and memory would be fragmented.

        Raises:
            UserError: naming the store, what is wrong and how to fix it.
        """
        self.location = printable(location)
        self._spec = kvstore_spec(location)
        is_local = local_folder(self._spec) is not None
        self._cache_bytes = (
            (0 if is_local else _REMOTE_CACHE_BYTES) if cache_bytes is None else cache_bytes
        )
        kvstore = open_kvstore(self._spec, self.location)
        content = read_key(kvstore, 'manifest.json', self.location)
        if content is None:
            self._explain_missing_manifest(kvstore)
        self.manifest = Manifest.from_json(content or '', self.location)
        check_arrays(kvstore, self.manifest, self.location)
        self._reset()

    def _explain_missing_manifest(self, kvstore: ts.KvStore) -> None:
        if kvstore.list(ts.KvStore.KeyRange('cases/', 'cases0')).result():
            raise UserError(
                f'store {self.location}: was not finished (no manifest.json); run launch.prepare '
                'again with the same arguments, it continues'
            )
        raise UserError(
            f'store {self.location}: no patch store there (no manifest.json); write one with '
            'launch.prepare'
        )

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[tuple[str, str], ts.TensorStore] = {}
        self._foregrounds: collections.OrderedDict[tuple[str, int], np.ndarray] = (
            collections.OrderedDict()
        )
        cache = {'cache_pool': {'total_bytes_limit': self._cache_bytes}}
        self._context = ts.Context(cache, parent=process_context())

    def __getstate__(self) -> dict[str, Any]:
        kept = ('location', 'manifest', '_spec', '_cache_bytes')
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # checked when it was opened, not again in every worker
        self._reset()

    def case_ids(self, split: str) -> tuple[str, ...]:
        """Cases of a split.

        Raises:
            UserError: if the store has no such split.
        """
        if split not in self.manifest.splits:
            known = ', '.join(self.manifest.splits)
            raise UserError(f'store {self.location}: no split {split!r}; it has {known}')
        return self.manifest.splits[split]

    def shape(self, case_id: str) -> tuple[int, int, int]:
        """(D, H, W) of a case in voxels."""
        depth, height, width = self._case(case_id)['shape']
        return depth, height, width

    def has_label(self, case_id: str) -> bool:
        """Whether the case is annotated."""
        return bool(self._case(case_id)['voxels'])

    def classes_present(self, case_id: str) -> tuple[int, ...]:
        """Store ids > 0 that occur in a case, ascending."""
        voxels = self._case(case_id)['voxels']
        return tuple(sorted(int(i) for i, n in voxels.items() if n and int(i) > 0))

    def foreground(self, case_id: str, class_id: int) -> np.ndarray:
        """[M, 3] int32 (z, y, x) of up to 10,000 voxels of a class; M is 0 if it is absent."""
        if class_id not in self.classes_present(case_id):
            return np.zeros((0, 3), np.int32)
        key = case_id, class_id
        with self._lock:
            if key in self._foregrounds:
                self._foregrounds.move_to_end(key)
                return self._foregrounds[key]
        coords = self._finish(case_id, self._array(case_id, f'foreground/{class_id}').read())
        coords.setflags(write=False)
        with self._lock:
            self._foregrounds[key] = coords
            while len(self._foregrounds) > _CACHED_FOREGROUNDS:
                self._foregrounds.popitem(last=False)
        return coords

    def read_image(
        self, case_id: str, start: Sequence[int] | None = None, size: Sequence[int] | None = None
    ) -> np.ndarray:
        """[*size, P] int16 HU of a box; -1024 outside the volume.

        Args:
            case_id: the case.
            start: (z, y, x) of the box's first voxel, may be negative; None is (0, 0, 0).
            size: (D, H, W) of the box; None reaches to the end of the volume.

        Raises:
            UserError: if the data cannot be read, naming the case.
        """
        return self._read_box(case_id, 'image', start, size, AIR_HU)()

    def read_label(
        self, case_id: str, start: Sequence[int] | None = None, size: Sequence[int] | None = None
    ) -> np.ndarray:
        """[*size] uint8 store ids of a box, 0 outside the volume; see `read_image`."""
        return self._read_box(case_id, 'label', start, size, 0)()

    def read_crop(
        self, case_id: str, start: Sequence[int], size: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`read_image` and `read_label` of one box, overlapped."""
        image = self._read_box(case_id, 'image', start, size, AIR_HU)
        label = self._read_box(case_id, 'label', start, size, 0)
        return image(), label()

    def start_crop(
        self, case_id: str, start: Sequence[int], image: np.ndarray, label: np.ndarray
    ) -> Callable[[], None]:
        """Starts `read_crop` into given arrays, without a copy; the result waits for it.

        Args:
            case_id: the case.
            start: (z, y, x) of the box's first voxel, may be negative.
            image: [*size, P] int16, any strides; its shape is the size of the box.
            label: [*size] uint8.

        Returns:
            A function that returns when the arrays are filled; raises as `read_crop`.
        """
        reads = (
            self._start_box(case_id, 'image', start, image, AIR_HU),
            self._start_box(case_id, 'label', start, label, 0),
        )

        def wait() -> None:
            for future in reads:
                if future is not None:
                    self._finish(case_id, future)

        return wait

    def _case(self, case_id: str) -> Mapping[str, Any]:
        if case_id not in self.manifest.cases:
            raise UserError(f'store {self.location}: no case {case_id!r}; see its manifest.json')
        return self.manifest.cases[case_id]

    def _read_box(self, case_id, name, start, size, fill):
        """Starts a read; the returned function waits for it."""
        shape = np.array(self.shape(case_id))
        begin = np.zeros(3, int) if start is None else np.asarray(start)
        extent = shape - begin if size is None else np.asarray(size)
        array = self._array(case_id, name)
        out = np.empty((*extent, *array.shape[3:]), array.dtype.numpy_dtype)
        future = self._start_box(case_id, name, begin, out, fill)

        def wait() -> np.ndarray:
            if future is not None:
                self._finish(case_id, future)
            return out

        return wait

    def _start_box(self, case_id, name, start, out, fill) -> ts.WriteFutures | None:
        """Starts a read into `out`; None if the box lies outside the volume."""
        shape, begin = np.array(self.shape(case_id)), np.asarray(start)
        low, high = np.clip(begin, 0, shape), np.clip(begin + out.shape[:3], 0, shape)
        if (high - low != out.shape[:3]).any():
            out[...] = fill
        if (low >= high).any():
            return None
        source = self._array(case_id, name)[_box(low, high)]
        target = ts.array(out[_box(low - begin, high - begin)], copy=False)
        return target.write(source)

    def _array(self, case_id: str, name: str) -> ts.TensorStore:
        if name == 'label' and not self.has_label(case_id):
            raise UserError(
                f'store {self.location}: case {case_id!r} has no label; use a labelled split'
            )
        key = case_id, name
        with self._lock:
            if key in self._arrays:
                return self._arrays[key]
        spec = {
            'driver': 'zarr3',
            'kvstore': join(self._spec, f'{case_path(case_id)}{name}/'),
            'fill_missing_data_reads': False,  # a missing shard is an error, not zeros
            'recheck_cached_data': False,  # a finished store does not change
        }
        array = self._finish(case_id, ts.open(spec, read=True, open=True, context=self._context))
        with self._lock:
            return self._arrays.setdefault(key, array)

    def _finish(self, case_id: str, future: ts.Future | ts.WriteFutures) -> Any:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            raise UserError(
                f'store {self.location}: case {case_id!r} cannot be read ({first_line(error)}); '
                'copy or prepare the store again'
            ) from error


def _box(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
