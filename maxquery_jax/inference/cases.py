"""What to predict: files, folders and multi-phase cases; or a split of the training store."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from maxquery_jax.data import volumes
from maxquery_jax.data.dicom.files import holds_dicom
from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.raw import leaves_folder
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError

_SUFFIX = re.compile(r'^(?P<case>.+)_(?P<channel>\d{4})$')
_FIRST_CHANNEL = '_0000'

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        name: begins the names of its output files.
        images: one file, or DICOM folder or .zip, per channel, in the model's order.
        sha256: expected hashes of the files where known, else empty.
        reading: how to read them, where that is decided already.
    """

    name: str
    images: tuple[pathlib.Path, ...]
    sha256: tuple[str, ...] = ()
    reading: ReadOptions | None = None


def find_cases(
    source: PathLike | Iterable[PathLike | Sequence[PathLike]], channels: Sequence[str]
) -> list[Case]:
    """Finds the scans behind an input.

    A model with one channel takes every file as a scan. A model with several channels takes
    files named as nnU-Net names them, X_0000.nii.gz, X_0001.nii.gz, ..., in the order of the
    model's channels. The suffix _0000 is dropped from a scan's name where all files of the
    folder end in it.

    A folder that holds DICOM files is one scan, whatever lies below it, and so is a .zip. A folder
    without DICOM files of its own is a folder of scans: NIfTI files, .zip archives and folders
    that hold DICOM files at any depth. Scans are named by file or folder, never by a DICOM tag.

    Args:
        source: a NIfTI file, a DICOM folder or .zip, a folder of these, or a sequence of scans,
            each a path or a sequence with one path per channel.
        channels: names of the model's channels.

    Raises:
        UserError: nothing to predict, a wrong number of channels, or two scans of one name.
    """
    if isinstance(source, str | os.PathLike):
        cases = _from_path(pathlib.Path(source), channels)
    else:
        cases = [_from_item(item) for item in source]
    if not cases:
        raise UserError(
            'no scans to predict: the input is empty; give a .nii or .nii.gz file or a DICOM folder'
        )
    seen: dict[str, Case] = {}
    for case in cases:
        _require_file_name(case.name)
        if len(case.images) != len(channels):
            raise UserError(
                f'{case.images[0]}: case {case.name} has {len(case.images)} channels, the model '
                f'expects {len(channels)} ({", ".join(channels)}); {_how_to_name(channels)}'
            )
        other = seen.setdefault(case.name.lower(), case)
        if other is not case:
            raise UserError(
                f'{other.images[0]} and {case.images[0]} would write the same output '
                f'{case.name}; rename one of them or predict them into different folders'
            )
    return cases


def find_split(
    store: PathLike, split: str, splits: Mapping[str, Sequence[str]] | None = None
) -> list[Case]:
    """Finds the raw scans behind a split of a patch store.

    They are read as `prepare` read them: it has judged these files, and their hashes are checked.

    Args:
        store: the store a model was trained on.
        split: 'train', 'val', 'test' or another split of the store.
        splits: split name to case ids where they are others than the store's, as in a fold.

    Raises:
        UserError: the store cannot be opened, has no such split, lacks a case of it, or its raw
            scans are gone.
    """
    opened = PatchStore(store)
    manifest = opened.manifest
    names = splits[split] if splits and split in splits else opened.case_ids(split)
    lost = sorted(set(names) - manifest.cases.keys())
    if lost:
        raise UserError(f'store {store} lacks {lost[0]!r} of split {split!r}; prepare it again')
    if not names:
        raise UserError(f'split {split!r} of store {store} holds no cases; prepare it with some')
    folder = pathlib.Path(manifest.source)
    if not folder.is_dir():
        raise UserError(
            f'{folder} does not exist, but store {store} was prepared from it; put the raw scans '
            'back there, or name scans with --input'
        )
    settings = manifest.fingerprint.get('settings', {})
    reading = ReadOptions(
        frozenset(CHECKS),
        'fill',
        settings.get('assume_orientation'),
        series=settings.get('series'),
    )
    cases = []
    for name in names:
        record = manifest.cases[name]
        images = record['source']['image']
        _require_file_name(name)
        if any(leaves_folder(image) for image in images):
            raise UserError(f'store {store}: case {name!r} lies outside {folder}; prepare it again')
        hashes = tuple(record['sha256'].get(image, '') for image in images)
        cases.append(Case(name, tuple(folder / image for image in images), hashes, reading))
    return cases


def _from_path(path: pathlib.Path, channels: Sequence[str]) -> list[Case]:
    """Cases of a file or of a folder."""
    if not path.exists():
        raise UserError(f'{path} does not exist; check --input')
    is_series = path.is_dir() and holds_dicom(path)
    is_scan = is_series or not path.is_dir()
    if is_series and _nifti_files(path):
        raise UserError(f'{path} holds NIfTI and DICOM files; put them into folders of their own')
    scans = [path] if is_scan else _scans(path)
    if not scans:
        raise UserError(
            f'{path} holds no .nii or .nii.gz file and no DICOM series; give the folder of the '
            'scans'
        )
    if len(channels) == 1:
        is_file = is_scan and not volumes.is_dicom(path)
        neighbours = _nifti_files(path.parent) if is_file else scans
        drop = all(_stem(scan).endswith(_FIRST_CHANNEL) for scan in neighbours or scans)
        length = len(_FIRST_CHANNEL) if drop else 0
        return [Case(_stem(s)[: len(_stem(s)) - length] or _stem(s), (s,)) for s in scans]
    groups = _group_channels(_siblings(path) if is_scan else scans, channels)
    return [Case(name, tuple(images)) for name, images in groups.items()]


def _from_item(item: PathLike | Sequence[PathLike]) -> Case:
    """A case given from Python: a file, or a sequence with one file per channel."""
    if isinstance(item, str | os.PathLike):
        return Case(_stem(pathlib.Path(item)), (pathlib.Path(item),))
    images = tuple(pathlib.Path(path) for path in item)
    if not images:
        raise UserError('a case without any file was given; name one file per channel')
    stem = _stem(images[0])
    is_numbered = len(images) > 1 and stem.endswith(_FIRST_CHANNEL)
    return Case(stem.removesuffix(_FIRST_CHANNEL) if is_numbered else stem, images)


def _require_file_name(name: str) -> None:
    if name in ('', '.', '..') or pathlib.PurePath(name).name != name:
        raise UserError(f'case name {name!r} cannot begin the name of a file; rename the scan')


def _stem(path: pathlib.Path) -> str:
    return volumes.stem(path)


def _scans(folder: pathlib.Path) -> list[pathlib.Path]:
    """NIfTI files, .zip archives and folders with DICOM files, directly in a folder, by name."""
    archives = [p for p in folder.iterdir() if p.suffix.lower() == '.zip' and p.is_file()]
    series = [p for p in folder.iterdir() if p.is_dir() and holds_dicom(p, at_any_depth=True)]
    visible = [path for path in (*archives, *series) if not path.name.startswith('.')]
    return sorted([*_nifti_files(folder), *visible])


def _nifti_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """NIfTI files directly in a folder, by name; hidden files are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(('.nii', '.nii.gz')) and not path.name.startswith('.')
    )


def _siblings(path: pathlib.Path) -> list[pathlib.Path]:
    """All channels of the case that a file belongs to."""
    match = _SUFFIX.match(_stem(path))
    if match is None:
        return [path]
    case = match['case']
    names = [(file, _SUFFIX.match(_stem(file))) for file in _scans(path.parent)]
    return [file for file, found in names if found is not None and found['case'] == case]


def _group_channels(
    files: Sequence[pathlib.Path], channels: Sequence[str]
) -> dict[str, list[pathlib.Path]]:
    """Groups X_0000, X_0001, ... by X, in the order of the numbers."""
    groups: dict[str, list[pathlib.Path]] = {}
    for file in files:
        match = _SUFFIX.match(_stem(file))
        if match is None:
            raise UserError(
                f'{file}: the model expects {len(channels)} channels ({", ".join(channels)}) per '
                f'case; {_how_to_name(channels)}'
            )
        group = groups.setdefault(match['case'], [])
        if int(match['channel']) != len(group):
            raise UserError(
                f'{file}: case {match["case"]} has no channel {len(group):04d} '
                f'({channels[min(len(group), len(channels) - 1)]}); {_how_to_name(channels)}'
            )
        group.append(file)
    return groups


def _how_to_name(channels: Sequence[str]) -> str:
    if len(channels) == 1:
        return 'give one file per case'
    names = ', '.join(f'X_{i:04d}.nii.gz = {name}' for i, name in enumerate(channels))
    return f'name the files of a case X {names}'
