"""One image slice as its DICOM file describes it, with nothing about the patient.

Only the tags listed here are parsed. Attribute names and meanings are those of the public DICOM
standard, PS3.3 (C.7.6.2 Image Plane, C.7.6.3 Image Pixel, C.7.6.16 Multi-frame Functional Groups,
C.8.2.1 CT Image) and PS3.10 (file format).
"""

import dataclasses
import math
from typing import Any, BinaryIO

from maxquery_jax.data.dicom.files import EXTENSIONS
from maxquery_jax.data.dicom.library import quiet, require
from maxquery_jax.data.findings import FileError, Findings

_TAGS = [
    'SOPClassUID',
    'SOPInstanceUID',
    'StudyInstanceUID',
    'SeriesInstanceUID',
    'FrameOfReferenceUID',
    'Modality',
    'ImageType',
    'Rows',
    'Columns',
    'SamplesPerPixel',
    'BitsAllocated',
    'BitsStored',
    'PixelRepresentation',
    'NumberOfFrames',
    'ImagePositionPatient',
    'ImageOrientationPatient',
    'PixelSpacing',
    'SliceThickness',
    'RescaleSlope',
    'RescaleIntercept',
    'ModalityLUTSequence',
    'PixelPaddingValue',
    'PixelPaddingRangeLimit',
    'SharedFunctionalGroupsSequence',
    'PerFrameFunctionalGroupsSequence',
]
_SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7'
_DIRECTORY = '1.2.840.10008.1.3.10'
_VOLUME_CLASSES = tuple(  # CT, MR and PET image storage, plain, enhanced and legacy converted
    f'1.2.840.10008.5.1.4.1.1.{kind}'
    for kind in ('2', '2.1', '2.2', '4', '4.1', '4.4', '128', '128.1', '130')
)
IMPLICIT = '1.2.840.10008.1.2'
EXPLICIT = '1.2.840.10008.1.2.1'


@dataclasses.dataclass(frozen=True, repr=False)
class Slice:
    """One frame of one file. What is absent or malformed is None or empty.

    Attributes:
        file: relative name.
        frame: index in the file, from 0.
        num_frames: of the file.
        sop_class: UID of the kind of object.
        sop_uid: UID of the object.
        study_uid: UID of its study.
        series_uid: UID of its series.
        frame_of_reference_uid: UID of its coordinate system.
        modality: such as 'CT'.
        image_type: such as ('ORIGINAL', 'PRIMARY', 'AXIAL').
        shape: (columns, rows).
        position_mm: centre of the first pixel, (L, P, S).
        orientation: cosines of a row and of a column, (L, P, S) each.
        pixel_spacing_mm: distance of rows, distance of columns.
        thickness_mm: of the slice.
        slope: HU per stored unit.
        intercept: HU of stored 0.
        bits: (allocated, stored) per pixel.
        padding: range of stored values that stand for no measurement.
        syntax: UID of the encoding.
    """

    file: str
    frame: int
    num_frames: int
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    image_type: tuple[str, ...]
    shape: tuple[int, int]
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    bits: tuple[int, int]
    padding: tuple[int, int] | None
    syntax: str

    @property
    def missing_tags(self) -> list[str]:
        """Names of the tags without which it has no place in a volume."""
        found = {
            'ImagePositionPatient': self.position_mm,
            'ImageOrientationPatient': self.orientation,
            'PixelSpacing': self.pixel_spacing_mm,
        }
        return [name for name, value in found.items() if value is None]


def looks_damaged(name: str, size: int) -> bool:
    """Whether a file that is no DICOM should have been one: by its extension, or empty."""
    return size == 0 or name.lower().endswith(EXTENSIONS)


def parse_slices(file: BinaryIO, name: str, findings: Findings) -> list[Slice] | str:
    """The frames of a file, or in a word why it belongs to no volume.

    Left out are objects without pixels (directories, reports, contours), colour images,
    localizers (ImageType) and secondary captures without a place in the patient.

    Raises:
        FileError: the file is damaged.
    """
    pydicom = require('pydicom', 'reading DICOM')
    try:
        with quiet():
            dataset = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=_TAGS
            )
            return _describe(dataset, name, findings)
    except FileError:
        raise
    except Exception as error:  # any damaged bytes may reach any line of the parser
        raise findings.fatal(
            'corrupt', f'{name}: not readable as DICOM ({type(error).__name__})', 'export it again'
        ) from None


def _describe(dataset: Any, name: str, findings: Findings) -> list[Slice] | str:
    shape = _integer(dataset, 'Columns'), _integer(dataset, 'Rows')
    sop_class = _text(dataset, 'SOPClassUID') or _meta(dataset, 'MediaStorageSOPClassUID')
    image_type = _texts(dataset, 'ImageType')
    if not (shape[0] and shape[1]):
        return _reject_blank(dataset, name, sop_class, findings)
    if (_integer(dataset, 'SamplesPerPixel') or 1) != 1:
        return 'colour'
    if 'LOCALIZER' in image_type:
        return 'localizer'
    frames = _frames(dataset, name, findings)
    common = {
        'file': name,
        'num_frames': len(frames),
        'sop_class': sop_class,
        'sop_uid': _text(dataset, 'SOPInstanceUID') or _meta(dataset, 'MediaStorageSOPInstanceUID'),
        'study_uid': _text(dataset, 'StudyInstanceUID'),
        'series_uid': _text(dataset, 'SeriesInstanceUID'),
        'frame_of_reference_uid': _text(dataset, 'FrameOfReferenceUID'),
        'modality': _text(dataset, 'Modality'),
        'image_type': image_type,
        'shape': shape,
        'bits': (_integer(dataset, 'BitsAllocated') or 16, _integer(dataset, 'BitsStored') or 16),
        'padding': _padding(dataset),
        'syntax': _meta(dataset, 'TransferSyntaxUID') or _bare_syntax(dataset),
    }
    slices = [Slice(frame=i, **common, **geometry) for i, geometry in enumerate(frames)]
    if sop_class.startswith(_SECONDARY_CAPTURE) and slices[0].missing_tags:
        return 'secondary capture'
    if 'ModalityLUTSequence' in dataset:
        raise findings.fatal(
            'scaling', f'{name}: HU by a lookup table', 'export it with a rescale slope'
        )
    return slices


def _reject_blank(dataset: Any, name: str, sop_class: str, findings: Findings) -> str:
    """An object without rows and columns: another kind of object, or a file cut short."""
    # Tags are in ascending order: where the series is named, the kind of object was read whole.
    is_whole = sop_class == _DIRECTORY or 'SeriesInstanceUID' in dataset
    if not is_whole or sop_class in ('', *_VOLUME_CLASSES) or _text(dataset, 'Modality') == 'CT':
        raise findings.fatal(
            'truncated', f'{name}: ends before the size of its image', 'copy or export it again'
        )
    return 'no image'


def _frames(dataset: Any, name: str, findings: Findings) -> list[dict[str, Any]]:
    """Geometry and scaling of each frame."""
    count = _integer(dataset, 'NumberOfFrames') or 1
    per_frame = dataset.get('PerFrameFunctionalGroupsSequence')
    if not per_frame:
        if count > 1:
            raise findings.fatal(
                'dicom_geometry',
                f'{name}: {count:,} frames without a place of their own',
                'export it as Enhanced CT, or one file per slice',
            )
        return [_plane(dataset, dataset, dataset, dataset, dataset)]
    if len(per_frame) != count:
        raise findings.fatal(
            'truncated', f'{name}: {len(per_frame)} of {count} frames described', 'export it again'
        )
    shared = next(iter(dataset.get('SharedFunctionalGroupsSequence') or []), {})

    def macro(frame: Any, keyword: str) -> Any:
        for group in (frame, shared):
            if items := group.get(keyword):
                return items[0]
        return {}

    macros = (
        'PlanePositionSequence',
        'PlaneOrientationSequence',
        'PixelMeasuresSequence',
        'PixelMeasuresSequence',
        'PixelValueTransformationSequence',
    )
    return [_plane(*(macro(frame, keyword) for keyword in macros)) for frame in per_frame]


def _plane(place: Any, turn: Any, measure: Any, thick: Any, value: Any) -> dict[str, Any]:
    slope, intercept = _floats(value, 'RescaleSlope', 1), _floats(value, 'RescaleIntercept', 1)
    thickness = _floats(thick, 'SliceThickness', 1)
    return {
        'position_mm': _floats(place, 'ImagePositionPatient', 3),
        'orientation': _floats(turn, 'ImageOrientationPatient', 6),
        'pixel_spacing_mm': _floats(measure, 'PixelSpacing', 2),
        'thickness_mm': thickness and thickness[0],
        'slope': slope and slope[0],
        'intercept': intercept and intercept[0],
    }


def _padding(dataset: Any) -> tuple[int, int] | None:
    value = _integer(dataset, 'PixelPaddingValue')
    if value is None:
        return None
    limit = _integer(dataset, 'PixelPaddingRangeLimit')
    low, high = sorted((value, value if limit is None else limit))
    return low, high


def _bare_syntax(dataset: Any) -> str:
    """A file without a header of its own is uncompressed; its encoding was seen on reading."""
    return IMPLICIT if dataset.original_encoding[0] else EXPLICIT


def _meta(dataset: Any, keyword: str) -> str:
    return _text(getattr(dataset, 'file_meta', {}), keyword)


def _get(dataset: Any, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # a value that cannot be converted counts as absent
        return None


def _text(dataset: Any, keyword: str) -> str:
    value = _get(dataset, keyword)
    return '' if value is None else str(value).strip('\0 ')


def _texts(dataset: Any, keyword: str) -> tuple[str, ...]:
    value = _get(dataset, keyword)
    values = [value] if isinstance(value, str) else (value or [])
    return tuple(str(item).strip().upper() for item in values)


def _integer(dataset: Any, keyword: str) -> int | None:
    value = _get(dataset, keyword)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _floats(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    value = _get(dataset, keyword)
    try:
        numbers = (float(value),) if count == 1 else tuple(float(item) for item in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
