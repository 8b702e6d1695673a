"""nnU-Net's own input pipeline, to compare with: run by an interpreter that has nnU-Net.

    python launch/peers/nnunet_input.py FOLDER 96,96,96 2 2

FOLDER holds CASE.npy (int16 HU [D, H, W, P]), CASE_label.npy (uint8 [D, H, W]) and intensity.json,
PATCH_SIZE, BATCH_SIZE and PROCESSES follow. The volumes are normalised and saved as nnU-Net's
preprocessing does, then read and augmented by its data loader in its background processes, with
its default training transforms.

It prints {"ready": ...}; for every line `PART NUM_PATCHES` on standard input, PART one of read,
augment and total, it prints one line of JSON with the seconds. An empty line ends it. This file
is not part of the package: nothing imports it.
"""

# pyright: reportMissingImports=false
import json
import os
import pathlib
import sys
import time
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '1')

import nnunetv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (  # noqa: E402
    NonDetMultiThreadedAugmenter,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # noqa: E402
    DefaultPreprocessor,
)
from nnunetv2.training.data_augmentation.compute_initial_patch_size import (  # noqa: E402
    get_patch_size,
)
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # noqa: E402
from nnunetv2.training.dataloading.nnunet_dataset import (  # noqa: E402
    comp_blosc2_params,
    nnUNetDatasetBlosc2,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

CACHED = 6  # batches that nnU-Net's trainer keeps ahead


class InMemory:
    """A data set whose volumes are arrays in memory, so that reading costs next to nothing."""

    def __init__(self, dataset: nnUNetDatasetBlosc2, num_cases: int):
        self.identifiers = dataset.identifiers[:num_cases]
        self._cases = {}
        for name in self.identifiers:
            data, seg, previous, properties = dataset.load_case(name)
            self._cases[name] = np.asarray(data[:]), np.asarray(seg[:]), previous, properties

    def load_case(self, name: str):
        """As the data set's, with NumPy arrays."""
        return self._cases[name]


def save_cases(folder: pathlib.Path, patch_size: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Writes blosc2 files with DefaultPreprocessor's block sizes; returns folder and class ids."""
    intensity = json.loads((folder / 'intensity.json').read_text())
    lower, upper, shift, scale = (
        np.array(intensity[key], np.float32) for key in ('lower', 'upper', 'shift', 'scale')
    )
    target = folder / 'nnunet'
    target.mkdir()
    found = set()
    for file in sorted(folder.glob('*_label.npy')):
        name = file.name.removesuffix('_label.npy')
        seg = np.load(file).astype(np.int16)[None]
        image = np.load(folder / f'{name}.npy').astype(np.float32)
        image = (np.clip(image, lower, upper) - shift) / scale
        data = np.ascontiguousarray(np.moveaxis(image, -1, 0))
        classes = [int(c) for c in np.unique(seg) if c > 0]
        found |= set(classes)
        locations = DefaultPreprocessor._sample_foreground_locations(seg, classes)
        blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            {'class_locations': locations},
            str(target / name),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )
    return str(target), tuple(sorted(found))


def make_loaders(folder: str, classes: tuple[int, ...], patch_size, batch_size: int):
    """One data loader per part."""
    # As nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size for 3D.
    dummy_2d = max(patch_size) / patch_size[0] > 3
    angle = float(np.radians(180.0 if dummy_2d else 30.0))
    rotation = (-angle, angle)
    initial = get_patch_size(patch_size, rotation, rotation, rotation, (0.85, 1.25))
    if dummy_2d:
        initial[0] = patch_size[0]
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size, rotation, None, (0, 1, 2), dummy_2d
    )
    labels = SimpleNamespace(all_labels=list(classes), has_ignore_label=False)
    dataset = nnUNetDatasetBlosc2(folder)

    def loader(data, size, transforms):
        return nnUNetDataLoader(
            data, batch_size, size, patch_size, labels, 0.33, transforms=transforms
        )

    return initial, {
        'read': loader(dataset, np.array(patch_size), None),
        'augment': loader(InMemory(dataset, 2), initial, transforms),
        'total': loader(dataset, initial, transforms),
    }


def measure(loader, processes: int, num_patches: int) -> float:
    """Seconds for a number of patches, at the pace of full queues."""
    batches = NonDetMultiThreadedAugmenter(
        loader, None, processes, CACHED, seeds=list(range(processes)), wait_time=0.002
    )
    try:
        # What was produced ahead while starting does not count: it is taken out first.
        for _ in range(2 * CACHED + 2):
            next(batches)
        num_batches = max(1, num_patches // loader.batch_size)
        started = time.perf_counter()
        for _ in range(num_batches):
            next(batches)
        return (time.perf_counter() - started) / num_batches * num_patches
    finally:
        batches._finish()


def main() -> None:
    """Serves measurements until an empty line."""
    folder, patch, batch, processes = sys.argv[1:]
    patch_size = tuple(int(n) for n in patch.split(','))
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), 'w')  # nnU-Net prints to standard output
    os.dup2(2, 1)
    cases, classes = save_cases(pathlib.Path(folder), patch_size)
    initial, loaders = make_loaders(cases, classes, patch_size, int(batch))
    ready = {
        'ready': True,
        'crop_size': [int(n) for n in initial],
        'versions': {'nnunetv2': getattr(nnunetv2, '__version__', ''), 'torch': torch.__version__},
    }
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        part, num_patches = line.split()
        seconds = measure(loaders[part], int(processes), int(num_patches))
        print(json.dumps({'part': part, 'seconds': seconds}), file=answers, flush=True)


if __name__ == '__main__':
    main()
