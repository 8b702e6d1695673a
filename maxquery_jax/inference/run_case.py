"""One scan from its files to its outputs, in phases that do not overlap in memory."""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from maxquery_jax.data.dicom.reader import SeriesHeader
from maxquery_jax.data.nifti import write_like
from maxquery_jax.data.raw import hash_file
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json
from maxquery_jax.inference import memory
from maxquery_jax.inference.boxes import Boxes, PromptedVolume, box_mask, hash_boxes
from maxquery_jax.inference.cases import Case
from maxquery_jax.inference.dicom_seg import require_series, write_dicom_seg
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.postprocess import postprocess_zept
from maxquery_jax.inference.record import FORMAT, VERSION, describe_case
from maxquery_jax.inference.scan import Grid, read_grid, read_scan, to_file_order, to_scan_grid
from maxquery_jax.inference.sliding_window import TilePlan, Volume, plan_tiles, predict_volume
from maxquery_jax.progress import Progress, duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to predict; see `predict.predict`.

    `boxes` are those of one scan, along its file's axes; None where boxes are no prompts.
    """

    scores: tuple[str, ...]
    step_size: float
    batch_size: int
    mirror: bool
    min_lesion_ml: float
    max_memory_bytes: int | None
    overwrite: bool
    reading: ReadOptions
    dicom_seg: bool = False
    postprocess: str | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    boxes: Boxes | None = None

    @property
    def decisive(self) -> dict[str, Any]:
        """Those that change the result; they stand in the record."""
        boxes = None if self.boxes is None else hash_boxes(self.boxes)
        asked = {'postprocess': self.postprocess, 'texts': dict(self.texts), 'boxes': boxes}
        return {
            'step_size': self.step_size,
            'mirror': self.mirror,
            'min_lesion_ml': self.min_lesion_ml,
            **{name: value for name, value in asked.items() if value},
        }


def output_files(name: str, scores: Sequence[str], *, dicom_seg: bool = False) -> dict[str, str]:
    """File names of a scan: 'seg', one per score, the primary one first, and 'dicom_seg'."""
    files = {'seg': f'{name}_seg.nii.gz', scores[0]: f'{name}_ood.nii.gz'}
    files |= {score: f'{name}_ood-{score}.nii.gz' for score in scores[1:]}
    return files | ({'dicom_seg': f'{name}_seg.dcm'} if dicom_seg else {})


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
    if settings.dicom_seg:
        require_series(grid.header)
    estimate = _require_memory(model, grid, case, settings, title)
    clock.lap('compile_s')
    image, hashes, warnings = read_scan(case, grid, model.spacing_mm, reading)
    for line in [*warnings, *_note_size(case, grid, model), *_note_boxes(case, settings)]:
        print(f'{title}: note: {line}', file=sys.stderr, flush=True)
    clock.lap('read_s')

    plan = plan_tiles(grid.model_shape, model.patch_size, settings.step_size)
    progress = Progress(
        f'{title}:', plan.num_tiles, unit='tiles', stream=sys.stdout, is_closed_by_caller=True
    )
    volume = _with_prompt(model, image, grid, settings)
    label, scores = _run_network(model, volume, plan, settings, progress)
    del image, volume
    clock.lap('network_s')
    if settings.postprocess:
        label = postprocess_zept(label, model.labels, model.spacing_mm)
        clock.lap('postprocess_s')

    label, scores = to_scan_grid(label, scores, grid, model.spacing_mm)
    clock.lap('resample_s')
    findings = describe_case(label, scores, grid, model, settings.min_lesion_ml)
    clock.lap('measure_s')
    files = output_files(case.name, settings.scores, dicom_seg=settings.dicom_seg)
    paths = {name: folder / file for name, file in files.items()}
    _export(label, scores, grid, model, paths)
    hashes_out = {name: _settle(path) for name, path in paths.items()}
    clock.lap('write_s')
    record = {
        'format': FORMAT,
        'version': VERSION,
        'case': case.name,
        'files': files,
        'files_sha256': hashes_out,
        **findings,
        'labels': list(model.labels),
        'label_map': dict(model.label_map),
        'model': {'name': model.description, 'params_sha256': model.params_sha256},
        'input': _describe_input(case, hashes, grid),
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


def _with_prompt(model: LoadedModel, image: np.ndarray, grid: Grid, settings: Settings) -> Volume:
    """The scan on the model's grid, with the mask of its boxes where they prompt the model."""
    if model.prompt_margin is None:
        return image
    assert settings.boxes is not None
    return PromptedVolume(image, box_mask(settings.boxes, grid, model.prompt_margin))


def _run_network(
    model: LoadedModel, volume: Volume, plan: TilePlan, settings: Settings, progress: Progress
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Label and scores on the model's grid."""
    program = model.program(settings.scores, mirror=settings.mirror)
    return predict_volume(
        volume,
        lambda tiles: program(model.params, tiles),
        plan,
        num_classes=model.num_logits,
        score_names=settings.scores,
        lower=model.tile_lower,
        decide=model.decide,
        batch_size=settings.batch_size,
        on_tiles=lambda tiles: progress.step(count=tiles),
    )


def _note_size(case: Case, grid: Grid, model: LoadedModel) -> list[str]:
    """A line if the scan does not fill one patch."""
    if all(size >= patch for size, patch in zip(grid.model_shape, model.patch_size, strict=True)):
        return []
    shape = ' x '.join(map(str, grid.model_shape))
    path = case.images[0]
    return [f"{path}: {shape} voxels at the model's spacing, smaller than its patch; padded"]


def _note_boxes(case: Case, settings: Settings) -> list[str]:
    """A line if boxes prompt the model and this scan has none."""
    if settings.boxes is None or settings.boxes:
        return []
    return [f'{case.images[0]}: no boxes; the queries of tumours attend to the whole scan']


def _export(
    label: np.ndarray,
    scores: Mapping[str, np.ndarray],
    grid: Grid,
    model: LoadedModel,
    paths: Mapping[str, pathlib.Path],
) -> None:
    """Writes mask and scores, in canonical order, in the scan's own geometry."""
    _write(paths['seg'], label, grid, 'uint8')
    for name, values in scores.items():
        _write(paths[name], values, grid, 'float16')
    if 'dicom_seg' in paths:
        mask, series = to_file_order(label, grid), require_series(grid.header)
        target = paths['dicom_seg']
        write_dicom_seg(target, mask, series, model.labels, algorithm=model.description)


def _settle(path: pathlib.Path) -> str:
    """Puts a file on the disk, before the record that vouches for it; returns its hash."""
    with path.open('rb') as file:
        os.fsync(file.fileno())
    return hash_file(path)


def _describe_input(case: Case, hashes: Sequence[str], grid: Grid) -> list[dict[str, str]]:
    """Name and hash of each file; of a DICOM scan also the hashed UID of its first series."""
    names = [path.name or path.resolve().name for path in case.images]
    entries = [{'file': n, 'sha256': digest} for n, digest in zip(names, hashes, strict=True)]
    if isinstance(grid.header, SeriesHeader):
        entries[0]['series'] = grid.header.series_id
    return entries


def _require_memory(
    model: LoadedModel, grid: Grid, case: Case, settings: Settings, title: str
) -> memory.MemoryEstimate:
    """Prints how much memory the scan will take; compiles the network to know.

    Raises:
        UserError: it is more than allowed.
    """
    program = model.program(settings.scores, mirror=settings.mirror)
    tiles = (settings.batch_size, *model.patch_size, len(model.tile_lower))
    stored = grid.header.dtype
    is_whole = stored.kind in 'iu' and grid.header.scaling is None
    network = program.memory_bytes(model.params, tiles, np.int16)
    estimate = memory.estimate_memory(
        grid.shape,
        model_shape=grid.model_shape,
        patch_size=model.patch_size,
        num_classes=model.num_logits,
        num_scores=len(settings.scores),
        num_channels=len(model.tile_lower),
        itemsize=stored.itemsize if is_whole else 4,
        is_int16=is_whole and stored.newbyteorder('=') == np.int16,
        network_bytes=network,
        baseline_bytes=memory.resident_bytes(),
        batch_size=settings.batch_size,
        is_sheared=grid.orientation.is_sheared,
        is_postprocessed=bool(settings.postprocess),
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
