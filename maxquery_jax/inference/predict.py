"""Predicts scans: a mask and an anomaly map in the scan's own geometry, and a record (JSON).

For a scan X the output folder receives

    X_seg.nii.gz          uint8 classes (ids of `labels` in the record)
    X_ood.nii.gz          anomaly score, larger is more anomalous, half precision, not normalised
    X_ood-<score>.nii.gz  further scores that were asked for
    X_seg.dcm             the mask as DICOM-SEG, where it was asked for and X is a DICOM series
    X.json                volumes, lesions, case score, hashes, timings, peak memory

The record is written last and removed first, and holds a hash of each file: a scan is skipped when
record and files agree. So what a host left behind that died in the middle, or what two hosts wrote
over each other with different options, is never taken for finished.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Collection, Iterable, Sequence

import jax

from maxquery_jax.data import volumes
from maxquery_jax.data.findings import FileError
from maxquery_jax.data.raw import hash_file
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.errors import UserError
from maxquery_jax.inference import memory
from maxquery_jax.inference.boxes import BoxSource, open_boxes, with_boxes
from maxquery_jax.inference.cases import Case, PathLike, find_cases, find_split
from maxquery_jax.inference.ensemble import run_splits, trained_cases
from maxquery_jax.inference.model import LoadedModel, load_model
from maxquery_jax.inference.postprocess import POSTPROCESSES, check_labels
from maxquery_jax.inference.record import FORMAT, VERSION
from maxquery_jax.inference.run_case import Settings, output_files, predict_case
from maxquery_jax.inference.zero_shot import find_by_text
from maxquery_jax.ops.anomaly import SCORES
from maxquery_jax.parallel.parts import WHOLE, Part

# Share of the machine's memory that a prediction may take unless --max_memory_gb says otherwise.
_MEMORY_SHARE = 0.9
OUTPUT_TYPES = ('nifti', 'dicom_seg')


def default_step_size() -> float:
    """Distance between tiles as a fraction of the patch: nnU-Net's 0.5; 0.75 on a CPU.

    A CPU takes minutes where a GPU takes seconds, and 0.75 visits about a third of the tiles.
    """
    return 0.75 if jax.default_backend() == 'cpu' else 0.5


def default_batch_size() -> int:
    """Tiles per call of the network: one for each GPU or TPU of this host; one on a CPU."""
    return 1 if jax.default_backend() == 'cpu' else jax.local_device_count()


def predict(
    model: LoadedModel | PathLike,
    source: PathLike | Iterable[PathLike | Sequence[PathLike]] | None = None,
    output: PathLike | None = None,
    *,
    checkpoint: str = 'newest',
    split: str | None = None,
    scores: Sequence[str] | None = None,
    step_size: float | None = None,
    part: str = '1/1',
    batch_size: int | None = None,
    mirror: bool = False,
    overwrite: bool = False,
    max_memory_gb: float | None = None,
    min_lesion_ml: float = 0.01,
    allow: Collection[str] = (),
    nan_policy: str = 'error',
    assume_orientation: str | None = None,
    series: str | None = None,
    output_types: Collection[str] = ('nifti',),
    postprocess: str | None = None,
    classes: Sequence[str] | None = None,
    knowledge: PathLike | None = None,
    boxes: PathLike | None = None,
) -> list[pathlib.Path]:
    """Predicts scans one after the other; a bad scan does not stop the others.

    Args:
        model: a loaded model or a run directory.
        source: a NIfTI file, a DICOM folder or .zip, a folder of these, or a sequence of scans
            (`cases.find_cases`).
        output: folder for the results; with `split`, RUN/predictions/SPLIT if None.
        checkpoint: 'newest', or 'best' by the validation of its training, of a run directory.
        split: in place of `source`, a split of the store the model was trained on, or of the fold
            that it was trained as; its raw scans are predicted.
        scores: anomaly scores to write, the first is the primary one; None takes the model's
            default (MaxQuery: 'query_logit').
        step_size: distance between tiles as a fraction of the patch, in (0, 1]; None takes
            `default_step_size()`.
        part: 'i/n', i from 1 to n, to predict the i-th of n parts of the scans only. The parts may
            run on hosts that share the output folder; together they are all scans, each once.
        batch_size: tiles per call of the network, shared out to the local devices as far as it
            divides; None takes `default_batch_size()`.
        mirror: average over the 8 mirrored copies of each tile.
        overwrite: predict finished scans again.
        max_memory_gb: refuse scans whose estimate is above this; None takes 90 % of the machine.
        min_lesion_ml: smaller tumour components are not listed as lesions.
        allow: findings of `data.findings.CHECKS` to accept.
        nan_policy: 'error', or 'fill' to read NaN as air.
        assume_orientation: axis codes such as 'LPS' for files without any.
        series: which series of a DICOM folder, where there are several: its number in the list
            of the error, or the start of its UID.
        output_types: 'dicom_seg' adds the mask as DICOM-SEG; 'nifti' is always written, as
            evaluation reads it.
        postprocess: 'zept' cleans the mask by the rules of `inference.postprocess`.
        classes: tumours that a ZePT of stage II finds by their texts (Eq. 11) in place of those
            that its queries were trained for, see `inference.zero_shot`.
        knowledge: file of further texts for `classes`.
        boxes: prompts for a ZePT of stage II in place of those that it makes itself (Tab. 5): a
            JSON file, see `inference.boxes`; or, with `split`, 'truth' for the boxes of the tumours
            in its labels. They are grown by the run's `model.zept.box_margin`.

    Returns:
        The record (X.json) of every scan of the part, skipped ones included.

    Raises:
        UserError: wrong arguments; or, after all scans, the list of those that failed.
    """
    own = Part.parse(part)
    if not isinstance(model, LoadedModel):
        model = load_model(model, checkpoint=checkpoint)
    if classes or knowledge:
        model = find_by_text(model, classes or (), knowledge)
    if boxes is not None:
        model = with_boxes(model)
    settings = _check_settings(
        model,
        scores,
        step_size,
        batch_size,
        mirror,
        min_lesion_ml,
        max_memory_gb,
        overwrite,
        ReadOptions(frozenset(allow), nan_policy, assume_orientation, series=series),
        output_types,
        postprocess,
    )
    every, folder = _find(model, source, output, split)
    cases = every
    if own != WHOLE:
        cases = own.take(every, lambda case: case.name)
        print(f'part {own}: {len(cases)} of {len(every)} scans', flush=True)
    boxes_of = None
    if boxes is not None:
        place = {'store': model.store, 'is_split': split is not None}
        boxes_of = open_boxes(boxes, every, own=cases, reading=settings.reading, **place)
    _make_folder(folder)
    records, failures = [], []
    for number, case in enumerate(cases, start=1):
        title = f'[{number}/{len(cases)}] {case.name}'
        try:
            records.append(_predict_unless_done(model, case, folder, settings, boxes_of, title))
        except UserError as error:
            message = ' '.join(str(error).split())
            print(f'{title}: failed: {message}', file=sys.stderr, flush=True)
            failures.append(message)
    if failures:
        raise UserError(
            f'{len(failures)} of {len(cases)} scans could not be predicted: {"; ".join(failures)}'
        )
    return records


def _check_settings(
    model: LoadedModel,
    scores: Sequence[str] | None,
    step_size: float | None,
    batch_size: int | None,
    mirror: bool,
    min_lesion_ml: float,
    max_memory_gb: float | None,
    overwrite: bool,
    reading: ReadOptions,
    output_types: Collection[str],
    postprocess: str | None,
) -> Settings:
    """Checks the arguments of `predict` and fills in the defaults."""
    step_size = default_step_size() if step_size is None else step_size
    batch_size = default_batch_size() if batch_size is None else batch_size
    if not 0 < step_size <= 1:
        raise UserError(f'--step_size must lie in (0, 1], got {step_size}; 0.5 is usual')
    if batch_size < 1:
        raise UserError(f'--batch_size must be at least 1, got {batch_size}')
    if max_memory_gb is not None and not max_memory_gb > 0:
        raise UserError(f'--max_memory_gb must be positive, got {max_memory_gb}')
    for name in output_types:
        if name not in OUTPUT_TYPES:
            raise UserError(f'--output_type={name}: choose from {", ".join(OUTPUT_TYPES)}')
    if postprocess is not None:
        if postprocess not in POSTPROCESSES:
            raise UserError(f'--postprocess={postprocess}: choose from {", ".join(POSTPROCESSES)}')
        check_labels(model.labels)
    limit = max_memory_gb * 1e9 if max_memory_gb else (memory.physical_bytes() or 0) * _MEMORY_SHARE
    return Settings(
        scores=model.choose_scores(scores),
        step_size=step_size,
        batch_size=batch_size,
        mirror=mirror,
        min_lesion_ml=min_lesion_ml,
        max_memory_bytes=int(limit) or None,
        overwrite=overwrite,
        reading=reading,
        dicom_seg='dicom_seg' in output_types,
        postprocess=postprocess,
        texts=model.texts,
    )


def _find(
    model: LoadedModel,
    source: PathLike | Iterable[PathLike | Sequence[PathLike]] | None,
    output: PathLike | None,
    split: str | None,
) -> tuple[list[Case], pathlib.Path]:
    """Finds the scans and names the output folder."""
    if (source is None) == (split is None):
        raise UserError('give either --input (scans) or --split (of the training store)')
    if output is None and (split is None or model.run_dir is None):
        raise UserError('--output is missing: name a folder for the predictions')
    if source is not None:
        cases = find_cases(source, model.channels)
    elif not model.store:
        raise UserError(f'the model {model.description} names no store; give scans with --input')
    else:
        assert split is not None
        cases = find_split(model.store, split, run_splits(model.run_dir))
        _require_unseen(model, cases, split)
    if output is None:
        assert model.run_dir is not None and split is not None
        output = model.run_dir / 'predictions' / split
    return cases, pathlib.Path(output)


def _make_folder(folder: pathlib.Path) -> None:
    """Makes the output folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--output {folder} cannot be created: {error.strerror}') from error
    if not os.access(folder, os.W_OK):
        raise UserError(f'--output {folder} cannot be written; choose another folder')


def _require_unseen(model: LoadedModel, cases: Sequence[Case], split: str) -> None:
    """Raises UserError if a split other than train holds cases that the model was trained on."""
    seen = {case.name for case in cases} & trained_cases(model)
    if split != 'train' and seen:
        raise UserError(
            f'{len(seen)} of {len(cases)} cases of split {split!r}, such as {min(seen)}, trained '
            f'{model.description}; predict the test split, or the runs one by one'
        )


def _predict_unless_done(
    model: LoadedModel,
    case: Case,
    folder: pathlib.Path,
    settings: Settings,
    boxes_of: BoxSource | None,
    title: str,
) -> pathlib.Path:
    """Predicts one scan and returns its record; what the scan is to blame for is a UserError."""
    record = folder / f'{case.name}.json'
    where = case.images[0]
    try:
        if boxes_of is not None:
            settings = dataclasses.replace(settings, boxes=boxes_of(case))
        if not settings.overwrite and _is_finished(record, model, case, settings):
            print(f'{title}: finished before, skipped', flush=True)
            return record
        # The record goes first: from then on the scan is unfinished, also if this host dies here.
        # No score of an earlier prediction stays.
        scores = (f'_ood-{name}.nii.gz' for name in {*model.score_names, *SCORES})
        for ending in ('.json', '_seg.nii.gz', '_ood.nii.gz', '_seg.dcm', *scores):
            (folder / f'{case.name}{ending}').unlink(missing_ok=True)
        predict_case(model, case, folder, settings, title)
    except FloatingPointError as error:
        raise UserError(
            f'{where}: {error}; check that the scan is CT in HU, and that the model was trained '
            'without diverging'
        ) from error
    except MemoryError as error:
        raise UserError(f'{where}: not enough memory; crop the scan') from error
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise UserError(f'{where}: the device has not enough memory; lower --batch_size') from error
    except OSError as error:
        raise UserError(f'{where}: {error.filename or folder}: {error.strerror}') from error
    return record


def _is_finished(record: pathlib.Path, model: LoadedModel, case: Case, settings: Settings) -> bool:
    """Whether these files were predicted by this model with these settings.

    Raises:
        UserError: the record is another model's or another program's, or a file is not the one that
            it was written for.
    """
    if not record.exists():
        return False
    try:
        content = json.loads(record.read_text())
        known = content['format'] == FORMAT and content['version'] == VERSION
        digest, files = content['model']['params_sha256'], content['files']
        same_settings = content['settings'] == settings.decisive
        before = [entry['sha256'] for entry in content['input']]
        hashes = dict(content.get('files_sha256', {}))
    except (OSError, ValueError, KeyError, TypeError):
        known, digest, files, same_settings, before, hashes = False, '', {}, False, [], {}
    if not known or digest != model.params_sha256:
        what = 'comes from another model' if known else 'is not a record of this program'
        raise UserError(f'{record} {what}; give --overwrite to replace it, or another --output')
    wanted = output_files(case.name, settings.scores, dicom_seg=settings.dicom_seg)
    if not (
        files == wanted
        and same_settings
        and all((record.parent / name).exists() for name in wanted.values())
        and before == _hash_images(case, settings)
    ):
        return False
    for kind, name in wanted.items():
        path = record.parent / name
        if hashes.get(kind) not in (None, hash_file(path)):
            raise UserError(
                f'{path} is not the file that {record.name} was written for (edited, cut off, or '
                'of two hosts with different options); give --overwrite to predict the scan again'
            )
    return True


def _hash_images(case: Case, settings: Settings) -> list[str] | None:
    """Hashes of the scan's files as they are now; None if one cannot be read."""
    series = (case.reading or settings.reading).series
    try:
        return [volumes.hash_input(path, series=series) for path in case.images]
    except (OSError, FileError):
        return None
