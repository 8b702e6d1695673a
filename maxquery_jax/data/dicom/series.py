"""Finds the image series among DICOM files and decides which one is the scan.

The choice, in this order:

1. `series` given: the listed number, or the one whose SeriesInstanceUID or listed id begins so.
2. The only CT series.
3. The only one that is both original (ImageType starts with ORIGINAL) and axial (normal within 45
   degrees of the body axis): reformatted and derived series then stand back, with a warning.
4. Otherwise an error that lists them, without any free text of the scanner or the hospital.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from maxquery_jax.data.dicom.files import PREAMBLE, ArchiveFiles, FolderFiles, is_dicom
from maxquery_jax.data.dicom.slices import (
    Slice,
    looks_damaged,
    parse_slices,
)
from maxquery_jax.data.findings import Findings
from maxquery_jax.data.orientation import axis_codes

_DEFLATED = b'1.2.840.10008.1.2.1.99'
_START_BYTES = 1024  # holds the meta header, and with it the encoding
_LISTED = 8
_INDEX_DIGITS = 4  # longer numbers are the start of a UID
_OBLIQUE = 0.5**0.5
_CHOOSE = 'name one with --series=NUMBER, or give the folder of one series'


@dataclasses.dataclass(frozen=True, repr=False)
class Series:
    """Slices of one SeriesInstanceUID.

    Attributes:
        uid: SeriesInstanceUID, '' if blank.
        slices: in the order of the file names.
    """

    uid: str
    slices: tuple[Slice, ...]

    @property
    def id(self) -> str:
        """Twelve hex digits of a hash of the UID: the only name of a series that is shown."""
        source = self.uid or min(item.sop_uid or item.file for item in self.slices)
        return hashlib.sha256(source.encode()).hexdigest()[:12]

    @property
    def modality(self) -> str:
        """Such as 'CT'."""
        return self.slices[0].modality

    @property
    def has_place(self) -> bool:
        """Whether any slice knows where it lies."""
        return any(not item.missing_tags for item in self.slices)

    @property
    def is_original(self) -> bool:
        """Whether these are measurements and not a result computed from other images."""
        return all(item.image_type[:1] == ('ORIGINAL',) for item in self.slices)

    @property
    def is_axial(self) -> bool:
        """Whether the slices are rather axial than coronal or sagittal."""
        turn = self.slices[0].orientation
        return turn is not None and abs(np.cross(turn[:3], turn[3:])[2]) > _OBLIQUE

    def describe(self) -> str:
        """Number, size, spacing, orientation and id; no text from the files."""
        first = self.slices[0]
        columns, rows = first.shape
        parts = [f'{len(self.slices)} slices of {columns} x {rows}']
        if first.orientation is not None and first.pixel_spacing_mm is not None:
            turn = np.array(first.orientation)
            normal = np.cross(turn[:3], turn[3:])
            places = sorted(normal @ s.position_mm for s in self.slices if s.position_mm)
            gap = f' x {np.median(np.diff(places)):.4g}' if len(places) > 1 else ''
            spacing = first.pixel_spacing_mm
            parts.append(f'{spacing[1]:.4g} x {spacing[0]:.4g}{gap} mm')
            affine = np.eye(4)
            affine[:3, :3] = np.stack([turn[:3], turn[3:], normal], 1)
            affine[:2] *= -1
            if abs(np.linalg.det(affine)) > 0.5:
                parts.append(axis_codes(affine))
        parts.append('original' if self.is_original else 'derived')
        if self.modality != 'CT':
            parts.append(f'modality {self.modality[:16]!a}')
        return ', '.join([*parts, f'id {self.id}'])


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the files of a folder or archive hold.

    Attributes:
        series: most slices first.
        left_out: word for a kind of file that is no slice, to how many there are.
    """

    series: tuple[Series, ...]
    left_out: collections.Counter


def list_series(files: FolderFiles | ArchiveFiles, findings: Findings) -> Contents:
    """Reads the headers of all files.

    Raises:
        FileError: a DICOM file is damaged, or a file with a DICOM extension is none.
    """
    groups: dict[str, list[Slice]] = collections.defaultdict(list)
    left_out: collections.Counter = collections.Counter()
    for slices in _parse_all(files, findings):
        if isinstance(slices, str):
            left_out[slices] += 1
            continue
        for item in slices:
            # Anonymisers may blank UIDs; the coordinate system still keeps examinations apart.
            groups[item.series_uid or f'?{item.frame_of_reference_uid}'].append(item)
    found = [Series('' if key[:1] == '?' else key, tuple(group)) for key, group in groups.items()]
    return Contents(tuple(sorted(found, key=lambda s: (-len(s.slices), s.id))), left_out)


def _parse_all(
    files: FolderFiles | ArchiveFiles, findings: Findings
) -> Iterator[list[Slice] | str]:
    for name in files.names:
        start = files.start(name, _START_BYTES)
        if not is_dicom(start[:PREAMBLE]):
            if looks_damaged(name, files.size(name)):
                raise findings.fatal(
                    'format', f'{name} is not a DICOM file', 'copy it again, or take it away'
                )
            yield 'other file'
            continue
        if _DEFLATED in start:  # unpacked as a whole, to any size
            raise findings.fatal(
                'dicom_syntax', f'{name}: deflated as a whole', 'convert it, as with dcmconv +te'
            )
        with files.open(name) as file:
            yield parse_slices(file, name, findings)


def choose_series(contents: Contents, wanted: str | None, findings: Findings) -> Series:
    """The series that is the scan; see the module's rule.

    Args:
        contents: of the folder or archive.
        wanted: number in the list, from 1, or the start of a UID or id; None for the rule.
        findings: receives a warning where series stand back.

    Raises:
        FileError: there is none, several, or none that was wanted.
    """
    every = contents.series
    if not every:
        kinds = ', '.join(f'{count} x {kind}' for kind, count in contents.left_out.items())
        raise findings.fatal(
            'dicom_series',
            f'no image series ({kinds or "no files"})',
            'give the folder or .zip of a CT series',
        )
    if wanted:
        return _pick(every, wanted, findings)
    ct = [series for series in every if series.modality == 'CT']
    if not ct and 'dicom_modality' not in findings.allow:
        raise findings.fatal(
            'dicom_modality',
            f'no CT: {_list(every)}',
            'give a CT series, or accept it with --allow=dicom_modality',
        )
    candidates = ct or list(every)
    candidates = [series for series in candidates if series.has_place] or candidates
    if len(candidates) > 1:
        main = [series for series in candidates if series.is_original and series.is_axial]
        if len(main) != 1:
            raise findings.fatal(
                'dicom_series', f'{len(candidates)} series: {_list(every)}', _CHOOSE
            )
        findings.warn(
            'dicom_series',
            f'the only original axial series of {len(candidates)} is taken: {main[0].describe()}',
            'choose another with --series=NUMBER',
        )
        candidates = main
    return candidates[0]


def _pick(every: tuple[Series, ...], wanted: str, findings: Findings) -> Series:
    if wanted.isdecimal() and len(wanted) <= _INDEX_DIGITS:
        found = [s for i, s in enumerate(every, start=1) if i == int(wanted)]
    else:
        found = [s for s in every if s.uid.startswith(wanted) or s.id.startswith(wanted)]
    if len(found) != 1:
        raise findings.fatal(
            'dicom_series',
            f'--series={wanted} fits {len(found)} of {len(every)} series: {_list(every)}',
            'give a number of the list',
        )
    if found[0].modality != 'CT':
        findings.error(
            'dicom_modality',
            f'modality {found[0].modality[:16]!a}',
            'give a CT series, or accept it with --allow=dicom_modality',
        )
    return found[0]


def _list(every: tuple[Series, ...]) -> str:
    lines = [f'[{i}] {series.describe()}' for i, series in enumerate(every[:_LISTED], start=1)]
    more = f'; and {len(every) - _LISTED} more' if len(every) > _LISTED else ''
    return '; '.join(lines) + more
