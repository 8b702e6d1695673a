"""One scan from its files to its outputs, in phases that do not overlap in memory."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from maxquery_jax.data.nifti import write_like
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.errors import UserError
from maxquery_jax.inference import memory
from maxquery_jax.inference.cases import Case
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.progress import Progress, duration
from maxquery_jax.inference.record import FORMAT, VERSION, describe_case
from maxquery_jax.inference.scan import Grid, read_grid, read_scan, to_file_order, to_scan_grid
from maxquery_jax.inference.sliding_window import plan_tiles, predict_volume
from maxquery_jax.train.run_dir import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to predict; see `predict.predict`."""

    scores: tuple[str, ...]
    step_size: float
    batch_size: int
    mirror: bool
    min_lesion_ml: float
    max_memory_bytes: int | None
    overwrite: bool
    reading: ReadOptions

    @property
    def decisive(self) -> dict[str, Any]:
        """Those that change the result; they stand in the record."""
        return {
            'step_size': self.step_size,
            'mirror': self.mirror,
            'min_lesion_ml': self.min_lesion_ml,
        }


def output_files(name: str, scores: Sequence[str]) -> dict[str, str]:
    """File names of a scan: 'seg', and one per score, the primary one first."""
    files = {'seg': f'{name}_seg.nii.gz', scores[0]: f'{name}_ood.nii.gz'}
    return files | {score: f'{name}_ood-{score}.nii.gz' for score in scores[1:]}


def predict_case(
    model: LoadedModel, case: Case, folder: pathlib.Path, settings: Settings, title: str
) -> None:
    """Reads, predicts and writes one scan; the record comes last.

    Args:
        model: the model.
        case: the scan.
        folder: for the outputs; it exists.
        settings: how to predict.
        title: begins the lines that are printed.

    Raises:
        UserError: the scan cannot be read, or needs more memory than allowed.
        FloatingPointError: the network returned NaN or infinity.
    """
    clock = _Clock()
    reading = case.reading or settings.reading
    grid = read_grid(case, model.spacing_mm, reading)
    estimate = _require_memory(model, grid, case, settings, title)
    clock.lap('compile_s')
    image, hashes, warnings = read_scan(case, grid, model.spacing_mm, reading)
    for line in warnings:
        print(f'{title}: note: {line}', file=sys.stderr, flush=True)
    clock.lap('read_s')

    plan = plan_tiles(grid.model_shape, model.patch_size, settings.step_size)
    program = model.program(settings.scores, mirror=settings.mirror)
    progress = Progress(title, plan.num_tiles)
    label, scores = predict_volume(
        image,
        lambda tiles: program(model.params, tiles),
        plan,
        num_classes=model.num_classes,
        score_names=settings.scores,
        lower=model.intensity['lower'],
        batch_size=settings.batch_size,
        on_tiles=progress.add,
    )
    del image
    clock.lap('network_s')

    label, scores = to_scan_grid(label, scores, grid, model.spacing_mm)
    clock.lap('resample_s')
    findings = describe_case(label, scores, grid, model, settings.min_lesion_ml)
    clock.lap('measure_s')
    files = output_files(case.name, settings.scores)
    _write(folder / files['seg'], label, grid, 'uint8')
    for name, values in scores.items():
        _write(folder / files[name], values, grid, 'float16')
    clock.lap('write_s')
    record = {
        'format': FORMAT,
        'version': VERSION,
        'case': case.name,
        'files': files,
        **findings,
        'labels': list(model.labels),
        'label_map': dict(model.label_map),
        'model': {'name': model.description, 'params_sha256': model.params_sha256},
        'input': [
            {'file': path.name, 'sha256': digest}
            for path, digest in zip(case.images, hashes, strict=True)
        ],
        'settings': settings.decisive,
        'batch_size': settings.batch_size,
        'device': jax.default_backend(),
        'tiles': plan.num_tiles,
        'timings': clock.laps | {'total_s': clock.total},
        'peak_memory_bytes': memory.peak_rss_bytes(),
        'estimated_memory_bytes': estimate.total,
    }
    write_json(folder / f'{case.name}.json', record)
    progress.close(_summary(findings, clock.total))


def _require_memory(
    model: LoadedModel, grid: Grid, case: Case, settings: Settings, title: str
) -> memory.MemoryEstimate:
    """Prints how much memory the scan will take; compiles the network to know.

    Raises:
        UserError: it is more than allowed.
    """
    program = model.program(settings.scores, mirror=settings.mirror)
    tiles = (settings.batch_size, *model.patch_size, len(model.channels))
    stored = grid.header.dtype
    is_whole = stored.kind in 'iu' and grid.header.scaling is None
    network = program.memory_bytes(model.params, tiles, np.int16)
    estimate = memory.estimate_memory(
        grid.shape,
        model_shape=grid.model_shape,
        patch_size=model.patch_size,
        num_classes=model.num_classes,
        num_scores=len(settings.scores),
        num_channels=len(model.channels),
        itemsize=stored.itemsize if is_whole else 4,
        is_int16=is_whole and stored.newbyteorder('=') == np.int16,
        network_bytes=network,
        baseline_bytes=memory.resident_bytes(),
        batch_size=settings.batch_size,
        is_sheared=grid.orientation.is_sheared,
    )
    print(f'{title}: {" x ".join(map(str, grid.shape))} voxels, {estimate.describe()}', flush=True)
    limit = settings.max_memory_bytes
    if limit is not None and estimate.total > limit:
        raise UserError(
            f'{case.images[0]}: needs {estimate.describe()}; allowed are {limit / 1e9:.2f} GB: '
            'raise --max_memory_gb or crop the scan'
        )
    return estimate


def _write(path: pathlib.Path, array: np.ndarray, grid: Grid, dtype: str) -> None:
    """Writes a canonical array in the scan's own geometry."""
    write_like(path, to_file_order(array, grid), grid.header, dtype)


def _summary(findings: dict[str, Any], seconds: float) -> str:
    """What the last line of a scan says."""
    volumes = ', '.join(f'{name} {ml:.1f} ml' for name, ml in findings['volumes_ml'].items() if ml)
    fallback = findings['case_ood_fallback']
    where = f' (over the {fallback}: no tumour predicted)' if fallback else ''
    return (
        f'{volumes or "nothing found"}; {len(findings["lesions"])} lesions; case score '
        f'{findings["case_ood_score"]:.4g}{where}; {duration(seconds)}'
    )


class _Clock:
    """Seconds per phase."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a phase."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._start, 3)
