"""Writes the patch store whose layout `data.store` describes."""

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from maxquery_jax.data.store_format import (
    ATTRIBUTES,
    Location,
    brick,
    case_path,
    check_arrays,
    count_voxels,
    kvstore_spec,
    local_folder,
    open_kvstore,
    printable,
    read_key,
    sample_coordinates,
    write_array,
    write_group,
)
from maxquery_jax.data.store_manifest import Manifest
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_bytes

_PART = '.manifest.json.'  # begins the temporary name of the manifest


class StoreWriter:
    """Writes a store case by case; an interrupted run continues where it stopped.

    On a local disk a case appears by a rename when it is complete. On object storage, which has
    no rename, its group metadata is written last and vouches for the rest.
    """

    def __init__(self, location: Location):
        """Opens a new or an unfinished store.

        Raises:
            UserError: if the store is finished already, or the folder holds something else.
        """
        self.location = printable(location)
        self._spec = kvstore_spec(location)
        self._kvstore = open_kvstore(self._spec, self.location)
        if read_key(self._kvstore, 'manifest.json', self.location) is not None:
            raise UserError(
                f'store {self.location}: is complete already; choose another location or delete it'
            )
        self._folder = local_folder(self._spec)
        if self._folder is not None:
            names = {p.name for p in self._folder.iterdir()} if self._folder.is_dir() else set()
            # A kill between writing and naming the manifest leaves a part of it.
            foreign = {name for name in names if not name.startswith(_PART)} - {'cases'}
            if foreign:
                raise UserError(
                    f'store {self.location}: the folder holds {sorted(foreign)[0]!r}, which is not '
                    'part of a store; choose an empty or new folder'
                )

    def attributes(self, case_id: str) -> dict[str, Any] | None:
        """What `write_case` recorded about a complete case, None if it is not there."""
        content = read_key(self._kvstore, case_path(case_id) + 'zarr.json', self.location)
        return None if content is None else json.loads(content)['attributes'][ATTRIBUTES]

    def write_case(
        self,
        case_id: str,
        image: np.ndarray,
        label: np.ndarray | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes one case, replacing an earlier one of that name.

        Args:
            case_id: any text; it is quoted for the file system.
            image: [D, H, W, P] int16 HU.
            label: [D, H, W] uint8 store ids, or None.
            attributes: further JSON values to keep with the case, for a run that continues.

        Returns:
            The attributes as kept: `shape`, `voxels` (store id to count, `{}` without a label) and
            those given.

        Raises:
            ValueError: if shapes or dtypes are not those above.
        """
        if image.ndim != 4 or image.dtype != np.int16:
            raise ValueError(f'image must be [D, H, W, P] int16, got {image.shape} {image.dtype}')
        if label is not None and (label.shape != image.shape[:3] or label.dtype != np.uint8):
            raise ValueError(
                f'label must be {image.shape[:3]} uint8, got {label.shape} {label.dtype}'
            )
        counts = count_voxels(label) if label is not None else np.zeros(0, int)
        voxels = {str(i): int(n) for i, n in enumerate(counts) if n}
        record = {**(attributes or {}), 'shape': list(image.shape[:3]), 'voxels': voxels}
        target = case_path(case_id)
        scratch = target if self._folder is None else f'cases/.{os.getpid()}.{target[6:]}'
        self._remove(scratch)
        write_array(self._spec, scratch + 'image/', image, brick(image.shape))
        if label is not None:
            write_array(self._spec, scratch + 'label/', label, brick(label.shape))
            for class_id in range(1, len(counts)):
                if counts[class_id]:
                    coords = sample_coordinates(label, class_id, case_id)
                    path = f'{scratch}foreground/{class_id}/'
                    write_array(self._spec, path, coords, coords.shape)
            write_group(self._kvstore, scratch + 'foreground/', {})
        write_group(self._kvstore, scratch, {ATTRIBUTES: record})
        if self._folder is not None:
            self._publish(scratch, target)
        return record

    def finish(self, manifest: Manifest) -> None:
        """Checks the cases against the manifest, then writes it.

        Raises:
            UserError: if the manifest contradicts itself or the cases written.
        """
        manifest.validate(self.location)
        check_arrays(self._kvstore, manifest, self.location)
        content = json.dumps(manifest.to_json(), indent=1).encode()
        if self._folder is None:
            self._kvstore.write('manifest.json', content).result()
            return
        for stale in (self._folder / 'cases').glob('.*'):
            shutil.rmtree(stale)  # of runs that were killed
        for stale in self._folder.glob(f'{_PART}*'):
            stale.unlink()
        write_bytes(self._folder / 'manifest.json', content)

    def _publish(self, scratch: str, target: str) -> None:
        assert self._folder is not None
        if (self._folder / target).exists():
            outdated = self._folder / f'{scratch[:-1]}.old'
            os.replace(self._folder / target, outdated)
            os.replace(self._folder / scratch, self._folder / target)
            shutil.rmtree(outdated)
        else:
            os.replace(self._folder / scratch, self._folder / target)

    def _remove(self, path: str) -> None:
        # The group's metadata goes first: from then on the case counts as absent.
        self._kvstore.write(path + 'zarr.json', None).result()
        end = path[:-1] + chr(ord('/') + 1)
        self._kvstore.delete_range(ts.KvStore.KeyRange(path, end)).result()
