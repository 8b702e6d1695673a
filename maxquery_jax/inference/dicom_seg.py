"""A predicted mask as a DICOM segmentation object that refers to the series it was drawn on.

The object follows the Segmentation IOD of the public standard (PS3.3 A.51, C.8.20; functional
groups C.7.6.16): binary, one segment per class found, one frame per segment and slice that holds
any of it, in the geometry of the source slices, one bit per pixel.

Patient and study: the UIDs of study, frame of reference and source images are kept, because an
archive needs them to show the mask over its scan. Everything else of the patient and study modules
(name, identity number, birth date, sex, accession number, dates, names of physicians) is written
blank, as the standard allows. An archive that files objects by patient has to fill them in, which
its coercion of incoming objects does.
"""

import datetime
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import maxquery_jax
from maxquery_jax.data.dicom.geometry import Stack
from maxquery_jax.data.dicom.library import quiet, require
from maxquery_jax.data.dicom.reader import SeriesHeader
from maxquery_jax.data.dicom.slices import EXPLICIT, Slice
from maxquery_jax.data.nifti_header import Header
from maxquery_jax.errors import UserError
from maxquery_jax.files import replacing

SOP_CLASS = '1.2.840.10008.5.1.4.1.1.66.4'  # Segmentation Storage
_CT_STORAGE = '1.2.840.10008.5.1.4.1.1.2'
_PRODUCT = 'maxquery_jax'
_SERIES_NUMBER = 900
_BLANK = (
    'PatientName',
    'PatientID',
    'PatientBirthDate',
    'PatientSex',
    'StudyDate',
    'StudyTime',
    'StudyID',
    'AccessionNumber',
    'ReferringPhysicianName',
    'PositionReferenceIndicator',
)
# Codes of SNOMED CT and of the DICOM controlled terminology, as PS3.16 lists them.
_ORGAN = ('91723000', 'SCT', 'Anatomical Structure'), ('91772007', 'SCT', 'Organ')
_TUMOUR = (
    ('49755003', 'SCT', 'Morphologically Abnormal Structure'),
    ('108369006', 'SCT', 'Neoplasm'),
)
_SOURCE = ('121322', 'DCM', 'Source image for image processing operation')
_SEGMENTED = ('113076', 'DCM', 'Segmentation')
# (dimension, its functional group): a frame is indexed by its segment and by its place.
_DIMENSIONS = (
    ('ReferencedSegmentNumber', 'SegmentIdentificationSequence'),
    ('ImagePositionPatient', 'PlanePositionSequence'),
)


def require_series(header: Header) -> SeriesHeader:
    """The header of a scan to which a DICOM-SEG can refer.

    Raises:
        UserError: the scan is no DICOM series, or its images have no UIDs.
    """
    how = 'drop dicom_seg from --output_type'
    if not isinstance(header, SeriesHeader):
        raise UserError(
            f'{header.path}: DICOM-SEG refers to a DICOM series, and this is none; {how}'
        )
    if not all(item.sop_uid for item in header.stack.slices):
        raise UserError(
            f'{header.path}: DICOM-SEG refers to SOPInstanceUIDs, and some are blank; {how}'
        )
    return header


def write_dicom_seg(
    path: str | os.PathLike,
    mask: np.ndarray,
    header: SeriesHeader,
    labels: Sequence[Mapping[str, Any]],
    *,
    algorithm: str,
) -> None:
    """Writes a mask as DICOM-SEG; the file appears complete or not at all.

    Equal masks of one series and model get equal UIDs.

    Args:
        path: of the file.
        mask: [i, j, k] class ids in the order of the series, as `header` describes it.
        header: of the scan.
        labels: records `{id, name, role}` of the classes.
        algorithm: name of the model.

    Raises:
        UserError: pydicom is not installed, or the file cannot be written.
        ValueError: the mask has another shape.
    """
    stack = header.stack
    if mask.shape != stack.shape:
        raise ValueError(f'mask {mask.shape} is not of the shape of the series {stack.shape}')
    found = [label for label in labels if int(label['id']) > 0 and (mask == label['id']).any()]
    frames = [
        (number, k)
        for number, label in enumerate(found, start=1)
        for k in range(stack.shape[2])
        if (mask[:, :, k] == label['id']).any()
    ]
    if not found:  # the standard has no object without a segment: one empty frame of a class
        found = [label for label in labels if int(label['id']) > 0][:1]
        frames = [(1, 0)]
    with quiet():
        dataset = _new_dataset(stack, header.series_id, mask, algorithm)
        dataset.SegmentSequence = [
            _segment(number, label, algorithm) for number, label in enumerate(found, start=1)
        ]
        _add_frames(dataset, stack, frames)
        dataset.PixelData = _pack(mask, [(int(found[n - 1]['id']), k) for n, k in frames])
        with replacing(path) as file:
            dataset.save_as(file, enforce_file_format=True)


def _new_dataset(stack: Stack, series_id: str, mask: np.ndarray, algorithm: str) -> Any:
    """Everything but segments, frames and pixels."""
    pydicom = require('pydicom', 'writing DICOM-SEG')
    first, now = stack.slices[0], datetime.datetime.now()
    content = hashlib.sha256(np.ascontiguousarray(mask.T).data).hexdigest()
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    for keyword in _BLANK:
        setattr(dataset, keyword, '')
    fields = {
        'SOPClassUID': SOP_CLASS,
        'SOPInstanceUID': _uid('instance', series_id, algorithm, content),
        'StudyInstanceUID': first.study_uid or _uid('study', series_id),
        'SeriesInstanceUID': _uid('series', series_id, algorithm, content),
        'FrameOfReferenceUID': first.frame_of_reference_uid or _uid('place', series_id),
        'SpecificCharacterSet': 'ISO_IR 192',  # UTF-8: class names may be in any language
        'Modality': 'SEG',
        'SeriesNumber': _SERIES_NUMBER,
        'InstanceNumber': 1,
        'SeriesDescription': 'Segmentation',
        'Manufacturer': _PRODUCT,
        'ManufacturerModelName': _PRODUCT,
        'DeviceSerialNumber': '0',
        'SoftwareVersions': maxquery_jax.__version__,
        'ContentDate': now.strftime('%Y%m%d'),
        'ContentTime': now.strftime('%H%M%S'),
        'ContentLabel': 'SEGMENTATION',
        'ContentDescription': 'Predicted classes',
        'ContentCreatorName': '',
        'ImageType': ['DERIVED', 'PRIMARY'],
        'SamplesPerPixel': 1,
        'PhotometricInterpretation': 'MONOCHROME2',
        'PixelRepresentation': 0,
        'Rows': stack.shape[1],
        'Columns': stack.shape[0],
        'BitsAllocated': 1,
        'BitsStored': 1,
        'HighBit': 0,
        'LossyImageCompression': '00',
        'SegmentationType': 'BINARY',
        'SegmentsOverlap': 'NO',
        'BurnedInAnnotation': 'NO',
    }
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    files = {item.sop_uid: item for item in stack.slices}
    dataset.ReferencedSeriesSequence = [
        _item(
            SeriesInstanceUID=first.series_uid or _uid('source', series_id),
            ReferencedInstanceSequence=[_reference(item) for item in files.values()],
        )
    ]
    return dataset


def _segment(number: int, label: Mapping[str, Any], algorithm: str) -> Any:
    category, kind = _ORGAN if label['role'] == 'organ' else _TUMOUR
    return _item(
        SegmentNumber=number,
        SegmentLabel=str(label['name'])[:64],
        SegmentAlgorithmType='AUTOMATIC',
        SegmentAlgorithmName=algorithm[:64],
        SegmentedPropertyCategoryCodeSequence=[_code(category)],
        SegmentedPropertyTypeCodeSequence=[_code(kind)],
    )


def _add_frames(dataset: Any, stack: Stack, frames: Sequence[tuple[int, int]]) -> None:
    """Describes each frame: its segment, its place, the slice it was drawn on."""
    tag = require('pydicom.datadict', 'writing DICOM-SEG').tag_for_keyword
    organisation = _uid('dimensions', dataset.SOPInstanceUID)
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organisation)]
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=tag(name),
            FunctionalGroupPointer=tag(group),
            DimensionDescriptionLabel=name,
        )
        for name, group in _DIMENSIONS
    ]
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(stack)]
    rank = {k: n for n, k in enumerate(sorted({k for _, k in frames}), start=1)}
    dataset.NumberOfFrames = len(frames)
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            FrameContentSequence=[_item(DimensionIndexValues=[number, rank[k]])],
            PlanePositionSequence=[_item(ImagePositionPatient=_numbers(_position(stack, k)))],
            SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=number)],
            DerivationImageSequence=[
                _item(
                    DerivationCodeSequence=[_code(_SEGMENTED)],
                    SourceImageSequence=[
                        _reference(
                            stack.slices[k],
                            PurposeOfReferenceCodeSequence=[_code(_SOURCE)],
                            SpatialLocationsPreserved='YES',
                        )
                    ],
                )
            ],
        )
        for number, k in frames
    ]


def _shared_groups(stack: Stack) -> Any:
    first = stack.slices[0]
    turn = np.array(first.orientation, float)
    normal = np.cross(turn[:3], turn[3:])
    between = abs(float(normal @ (stack.affine[:3, 2] * [-1, -1, 1])))
    return _item(
        PixelMeasuresSequence=[
            _item(
                SliceThickness=_numbers([first.thickness_mm or between])[0],
                SpacingBetweenSlices=_numbers([between])[0],
                PixelSpacing=_numbers(first.pixel_spacing_mm or ()),
            )
        ],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=_numbers(first.orientation or ()))],
    )


def _position(stack: Stack, k: int) -> Sequence[float]:
    """The source's own position: regular stacks may be rounded in their headers."""
    return stack.slices[k].position_mm or ()


def _reference(item: Slice, **extra: Any) -> Any:
    frame = {'ReferencedFrameNumber': item.frame + 1} if item.num_frames > 1 and extra else {}
    return _item(
        ReferencedSOPClassUID=item.sop_class or _CT_STORAGE,
        ReferencedSOPInstanceUID=item.sop_uid,
        **frame,
        **extra,
    )


def _pack(mask: np.ndarray, frames: Sequence[tuple[int, int]]) -> bytes:
    """Frames (class id, slice) as bits, the first pixel lowest, without gaps between frames."""
    packed, rest = bytearray(), np.zeros(0, bool)
    for class_id, k in frames:
        bits = np.concatenate([rest, np.equal(mask[:, :, k].T, class_id).ravel()])
        whole = len(bits) // 8 * 8
        packed += np.packbits(bits[:whole], bitorder='little').tobytes()
        rest = bits[whole:]
    packed += np.packbits(rest, bitorder='little').tobytes()
    return bytes(packed) + b'\0' * (len(packed) % 2)


def _item(**fields: Any) -> Any:
    dataset = require('pydicom', 'writing DICOM-SEG').Dataset()
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    return dataset


def _code(code: tuple[str, str, str]) -> Any:
    value, scheme, meaning = code
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _numbers(values: Sequence[float]) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [format_number(float(value)) for value in values]


def format_number(value: float) -> str:
    """The most exact decimal string that fits into the 16 characters of DICOM's type DS."""
    for digits in range(17, 0, -1):
        text = f'{value:.{digits}g}'
        if len(text) <= 16:
            return text
    raise ValueError(f'{value!r} does not fit into 16 characters')


def _uid(*parts: str) -> str:
    """A UID under the public root 2.25, derived from what it names."""
    digest = hashlib.sha256('\0'.join((_PRODUCT, *parts)).encode()).digest()
    return f'2.25.{int.from_bytes(digest[:16])}'
