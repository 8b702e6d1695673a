"""How much memory a prediction needs, known before the first voxel is read."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence

# While 32 output slices are resampled, about six float32 maps of them live together: the input
# slices, the results along each axis, the joined input of the next slab, the largest share so far.
_RESAMPLED_SLICES, _RESAMPLING_COPIES = 32, 6
MEASURED_VOXELS = 2**19  # volumes and lesions are counted in slabs of about this many voxels
_PIECE_BYTES = 96 * 10**6  # what counting (80 bytes a voxel of a slab) and writing work on
# Components and their numbers, and a few masks, of all voxels at worst.
_POSTPROCESS_BYTES = 20
# glibc returns freed blocks above 32 MiB at once; of smaller ones it keeps some per thread. At most
# 9 results of the network were seen kept.
_KEPT_BLOCKS, _LARGEST_KEPT = 12, 2**25


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes needed; see `estimate_memory`.

    Attributes:
        baseline: the process as it is: program, libraries, parameters.
        read: file and model-grid image together.
        window: image, outputs, one slab of accumulators, the network.
        slab: part of `window`, the accumulators.
        network: part of `window`, as XLA reports it.
        export: outputs on the model's and on the scan's grid.
    """

    baseline: int
    read: int
    window: int
    slab: int
    network: int
    export: int

    @property
    def total(self) -> int:
        """Peak: the baseline and the largest of the three phases, which do not overlap."""
        return self.baseline + max(self.read, self.window, self.export)

    def describe(self) -> str:
        """One line with the numbers."""
        return (
            f'{_gb(self.total)} peak = process {_gb(self.baseline)} + the largest of reading '
            f'{_gb(self.read)}, sliding window {_gb(self.window)} (accumulators '
            f'{_gb(self.slab)}, network {_gb(self.network)}) and export {_gb(self.export)}'
        )


def estimate_memory(
    shape: Sequence[int],
    *,
    model_shape: Sequence[int],
    patch_size: Sequence[int],
    num_classes: int,
    num_scores: int = 1,
    num_channels: int = 1,
    itemsize: int = 2,
    is_int16: bool = True,
    network_bytes: int = 0,
    baseline_bytes: int = 0,
    batch_size: int = 1,
    is_sheared: bool = False,
    is_postprocessed: bool = False,
) -> MemoryEstimate:
    """Bounds the memory of one case.

    With V = voxels of the scan, v = voxels on the model's grid, P channels, K logits, S scores,
    i = bytes per stored voxel and (d, H, W) = patch depth, height and width of the model's grid:

        read    i V + 2 V + 2 P v + t                    file, int16 HU, model's grid: as needed
        window  2 P v + (1 + 2 S) v                      int16 image, uint8 mask, float16 scores
                + 4 d H W (K + S + 1)                    one slab of accumulators
                + network + (2 b + 1) tiles + a          b tiles per call
        export  (1 + 2 S) v + (1 + 2 S) V + t + m        (one of the two if the grids agree)
        total   baseline + max(read, window, export)

    t = 24 bytes x 32 slices (of the finer grid) x the larger plane, for resampling. A sheared scan
    adds copies. Post-processing comes before the export and takes (1 + 2 S + 20) v.
    m = 96 MB for the pieces on which counting and writing work.
    a = 12 x the result of a call if that is below 34 MB, else 0: freed blocks that the C library
    keeps.
    Nothing in it is classes x volume. For a 512 x 512 x 1000 int16 scan predicted at its own
    spacing with P = S = 1, K = 8 and a patch of 28 x 192 x 320: read 0.52 GB, window
    0.52 + 0.79 + 0.29 + 0.20 GB + network, export 0.88 GB.

    Args:
        shape: (D, H, W) of the scan.
        model_shape: (D, H, W) of the scan on the model's grid.
        patch_size: (D, H, W) of a tile.
        num_classes: K, classes or, where masks are nested, labels.
        num_scores: S.
        num_channels: P.
        itemsize: bytes per voxel of the array that reading a file gives.
        is_int16: whether these are int16 already.
        network_bytes: what one call of the network needs.
        baseline_bytes: resident memory of the process before the case.
        batch_size: b.
        is_sheared: whether the scan's axes are not at right angles.
        is_postprocessed: whether the mask is cleaned (`inference.postprocess`).
    """
    voxels, model_voxels = math.prod(shape), math.prod(model_shape)
    outputs = 1 + 2 * num_scores
    is_same = tuple(shape) == tuple(model_shape)
    image = 2 * num_channels * model_voxels
    height, width = (max(m, p) for m, p in zip(model_shape[1:], patch_size[1:], strict=True))
    slab = 4 * patch_size[0] * height * width * (num_classes + num_scores + 1)
    # Results of a batch and of the one before it on the host, and a kept tile of air.
    tile = math.prod(patch_size) * (4 * (num_classes + num_scores) + 2 * num_channels)
    kept = _KEPT_BLOCKS * batch_size * tile if batch_size * tile < _LARGEST_KEPT else 0
    window = image + outputs * model_voxels + slab + network_bytes
    window += (2 * batch_size + 1) * tile + kept
    temporaries = 0 if is_same else _resampling_bytes(shape, model_shape)
    copies = (is_sheared * itemsize + (not is_int16) * 2) * voxels
    read = itemsize * voxels + copies + temporaries
    if not is_same or num_channels > 1:
        read += image
    export = outputs * (model_voxels + (0 if is_same else voxels)) + temporaries
    export += _PIECE_BYTES
    if is_sheared:
        export += (outputs + 8) * voxels
    if is_postprocessed:
        export = max(export, (outputs + _POSTPROCESS_BYTES) * model_voxels)
    return MemoryEstimate(baseline_bytes, read, window, slab, network_bytes, export)


def _resampling_bytes(shape: Sequence[int], model_shape: Sequence[int]) -> int:
    """Temporaries of `data.preprocess.resample_*` between two grids, either way."""
    stretch = max(shape[0], model_shape[0]) / min(shape[0], model_shape[0])
    plane = max(shape[1], model_shape[1]) * max(shape[2], model_shape[2])
    slices = min(_RESAMPLED_SLICES * stretch, max(shape[0], model_shape[0]))
    return int(_RESAMPLING_COPIES * 4 * slices * plane)


def physical_bytes() -> int | None:
    """Memory of this machine, None where the system does not tell."""
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, OSError, ValueError):
        return None


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far, None where the system does not tell."""
    try:
        # Not getrusage where this exists: its peak includes the parent's, from before exec.
        with open('/proc/self/status') as file:
            lines = dict(line.split(':', 1) for line in file)
        return int(lines['VmHWM'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now; its peak, or 0, where the system does not tell."""
    try:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, ValueError, IndexError):
        return peak_rss_bytes() or 0


def _gb(size: int) -> str:
    return f'{size / 1e9:.2f} GB'
