"""Measurements of a part of the cases in a file, so that hosts can share out an evaluation.

What is stored of a case is what `summarise` takes, without loss: counts, sparse histograms and
64-bit numbers. Whatever the number of parts, their summary is therefore equal, bit for bit, to that
of one process. A part also says what it was measured from; the merge refuses one that is not of the
cases, files and options of today.
"""

import dataclasses
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import maxquery_jax
from maxquery_jax.data import volumes
from maxquery_jax.data.raw import hash_file
from maxquery_jax.errors import UserError
from maxquery_jax.files import replacing
from maxquery_jax.metrics.dice import DiceCounts
from maxquery_jax.metrics.lesions import LesionCounts
from maxquery_jax.metrics.ood import ScoreHistogram
from maxquery_jax.metrics.surface import SurfaceMetrics
from maxquery_jax.parallel.parts import Part
from maxquery_jax.report.case_files import CaseFiles, PredictionSet
from maxquery_jax.report.measure import CaseMeasurement, Settings

FORMAT = 'maxquery_jax/evaluation_part'
VERSION = 1

_SHOWN = 6  # problems named in a message
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def part_file(folder: pathlib.Path, part: Part) -> pathlib.Path:
    """Where a part of an evaluation whose summary goes to `folder` is kept."""
    return folder / f'summary.{part.index}_of_{part.count}.npz'


def case_hashes(case: CaseFiles) -> dict[str, str]:
    """What the measurement of a case depends on: hashes of its files, and how the truth is read.

    Paths are left out: hosts may see the same files elsewhere.
    """
    record = case.segmentation.parent / f'{case.case}.json'
    paths = {'record': record, 'segmentation': case.segmentation, **case.scores}
    hashes = {name: hash_file(path) for name, path in paths.items()}
    is_there = case.label is not None and case.label.exists()
    hashes['label'] = volumes.hash_input(case.label) if is_there and case.label else ''
    rules = case.rules and dataclasses.replace(case.rules, like=None)
    hashes['label rules'] = repr(rules)
    return hashes


def write_part(
    path: pathlib.Path,
    measurements: Sequence[CaseMeasurement],
    hashes: Mapping[str, Mapping[str, str]],
    found: PredictionSet | None,
    settings: Settings,
) -> None:
    """Writes the measurements of a part, whole or not at all.

    Args:
        path: of the file.
        measurements: of the part's cases, perhaps none.
        hashes: case to its `case_hashes`.
        found: what was measured; None for a part without cases.
        settings: that it was measured with.

    Raises:
        UserError: the file cannot be written.
    """
    histograms: list[ScoreHistogram] = []
    numbers: dict[int, int] = {}  # of the histograms, by identity: a case may hold one twice

    def number(histogram: ScoreHistogram) -> int:
        if id(histogram) not in numbers:
            numbers[id(histogram)] = len(histograms)
            histograms.append(histogram)
        return numbers[id(histogram)]

    header = {
        'format': FORMAT,
        'version': VERSION,
        'basis': _basis(found, settings),
        'hashes': hashes,
        'cases': [_to_json(case, number) for case in measurements],
    }
    text = json.dumps(header).encode()
    with replacing(path) as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(text, np.uint8),
            lengths=np.array([len(h.bins) for h in histograms], np.int64),
            rounded=np.array([h.rounded for h in histograms], np.int64),
            bins=_join([h.bins for h in histograms], np.int32),
            positive=_join([h.positive for h in histograms], np.int64),
            negative=_join([h.negative for h in histograms], np.int64),
        )


def read_parts(
    folder: pathlib.Path,
    count: int,
    found: PredictionSet,
    settings: Settings,
    *,
    on_case: Callable[[str], object] = lambda case: None,
) -> list[CaseMeasurement]:
    """Reads all parts of an evaluation.

    Args:
        folder: of the summary.
        count: number of parts.
        found: everything that is evaluated.
        settings: of today.
        on_case: called with the id of each case whose files were compared.

    Returns:
        The measurement of every case of `found`.

    Raises:
        UserError: one line that names the parts that are missing, damaged, or were measured from
            other cases, files or options.
    """
    measurements: list[CaseMeasurement] = []
    problems: dict[Part, str] = {}
    for part in (Part(index, count) for index in range(1, count + 1)):
        own = part.take(found.cases, lambda case: case.case)
        path = part_file(folder, part)
        try:
            header, cases = _read(path)
        except FileNotFoundError:
            problems[part] = 'is missing'
            continue
        except _DAMAGED:
            problems[part] = 'is damaged'
            continue
        reason = _stale(header, own, found, settings, on_case)
        if reason:
            problems[part] = f'is stale ({reason})'
        measurements += cases
    if problems:
        named = [f'part {part} {reason}' for part, reason in problems.items()]
        again = ', '.join(f'--part={part}' for part in list(problems)[:_SHOWN])
        more = len(named) - _SHOWN
        rest = f' and {more} more parts' if more > 0 else ''
        raise UserError(
            f'{folder}: {"; ".join(named[:_SHOWN])}{rest}; run launch.evaluate with {again}'
            f'{rest and " ..."} and the flags of this command'
        )
    return measurements


def _stale(
    header: Mapping[str, Any],
    own: Sequence[CaseFiles],
    found: PredictionSet,
    settings: Settings,
    on_case: Callable[[str], object],
) -> str:
    """Why a part is not one of this evaluation; empty if it is."""
    if (header.get('format'), header.get('version')) != (FORMAT, VERSION):
        return 'of another version of this program'
    then, now = header['basis'], _basis(found if own else None, settings)
    for name, value in now.items():
        if then.get(name) != value:
            return f'{name}: {_short(then.get(name))}, now {_short(value)}'
    names = sorted(case.case for case in own)
    if sorted(header['hashes']) != names:
        odd = sorted(set(header['hashes']) ^ set(names))
        return f'of other cases, such as {odd[0]}'
    for case in own:
        changed = _changed(header['hashes'][case.case], case_hashes(case))
        if changed:
            return f'{changed} of case {case.case} changed since'
        on_case(case.case)
    return ''


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Name of the first difference; empty if there is none."""
    return next((name for name in {**now, **then} if then.get(name) != now.get(name)), '')


def _basis(found: PredictionSet | None, settings: Settings) -> dict[str, Any]:
    """What all cases share that a measurement depends on."""
    basis: dict[str, Any] = {
        'program': maxquery_jax.__version__,
        **dataclasses.asdict(settings),
    }
    if found is not None:
        basis |= {
            'scores': list(found.scores),
            'labels': found.table.to_json(),
            'label_map': sorted([raw, i] for raw, i in found.label_map.items()),
        }
    return basis


def _read(path: pathlib.Path) -> tuple[dict[str, Any], list[CaseMeasurement]]:
    """Header and measurements of a file; one of `_DAMAGED` if it cannot be read."""
    with np.load(path, allow_pickle=False) as data:
        header = json.loads(data['header'].tobytes())
        if (header.get('format'), header.get('version')) != (FORMAT, VERSION):
            return header, []
        ends = np.cumsum(data['lengths'])[:-1] if len(data['lengths']) else []
        columns = [np.split(data[name], ends) for name in ('bins', 'positive', 'negative')]
        rounded = data['rounded'].tolist()
    rows = zip(*columns, rounded, strict=False)  # without histograms a split still has one piece
    histograms = [ScoreHistogram(*row[:3], rounded=row[3]) for row in rows]
    return header, [_from_json(case, histograms) for case in header['cases']]


def _to_json(case: CaseMeasurement, number: Callable[[ScoreHistogram], int]) -> dict[str, Any]:
    return {
        'case': case.case,
        'dice': case.dice.to_json(),
        'tumour_dice': case.tumour_dice.to_json(),
        # NaN and infinity are kept: Python's JSON has words for them.
        'nsd': np.asarray(case.surfaces.nsd, np.float64).tolist(),
        'hd95_mm': np.asarray(case.surfaces.hd95_mm, np.float64).tolist(),
        'lesions': case.lesions.to_json(),
        'pooled_lesions': case.pooled_lesions.to_json(),
        'ood_class_voxels': list(case.ood_class_voxels.items()),
        'histograms': [[*key, number(h)] for key, h in case.histograms.items()],
        'class_histograms': [[*key, number(h)] for key, h in case.class_histograms.items()],
        'case_scores': {name: float(score) for name, score in case.case_scores.items()},
        'fallback': case.fallback,
    }


def _from_json(data: Mapping[str, Any], histograms: Sequence[ScoreHistogram]) -> CaseMeasurement:
    surfaces = (np.array(data[name], np.float64) for name in ('nsd', 'hd95_mm'))
    return CaseMeasurement(
        case=data['case'],
        dice=DiceCounts.from_json(data['dice']),
        tumour_dice=DiceCounts.from_json(data['tumour_dice']),
        surfaces=SurfaceMetrics(*surfaces),
        lesions=LesionCounts.from_json(data['lesions']),
        pooled_lesions=LesionCounts.from_json(data['pooled_lesions']),
        ood_class_voxels=dict(data['ood_class_voxels']),
        histograms={(score, region): histograms[i] for score, region, i in data['histograms']},
        class_histograms={
            (label, score, region): histograms[i]
            for label, score, region, i in data['class_histograms']
        },
        case_scores=data['case_scores'],
        fallback=data['fallback'],
    )


def _join(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f'{text[:37]}...'
