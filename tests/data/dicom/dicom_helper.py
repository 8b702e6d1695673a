"""Writes small CT series with pydicom, good and bad, without the code under test."""

import io
import pathlib
import zipfile

import numpy as np
import pytest

pydicom = pytest.importorskip('pydicom', reason='the extra dicom is not installed')
Dataset = pydicom.Dataset

CT, ENHANCED_CT = '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.5.1.4.1.1.2.1'
# None of these may ever be seen again.
PRIVATE = {
    'PatientName': 'Geheim^Gerda',
    'PatientID': 'PID-4711-X',
    'PatientBirthDate': '19010203',
    'AccessionNumber': 'ACC-0815-Q',
    'InstitutionName': 'Hidden Hospital',
    'StudyDescription': 'Confidential study',
    'SeriesDescription': 'Private words',
    'ReferringPhysicianName': 'Dr^Secret',
    'StudyID': 'STUDY-99-Z',
}
SECRETS = [*PRIVATE.values(), 'Gerda', 'Geheim']
AXIAL = np.eye(3)


class Place:
    """Where voxel (i, j, k) lies: origin + i row + j column + k step, mm (L, P, S)."""

    def __init__(self, turn=AXIAL, spacing=(0.8, 0.9, 2.5), origin=(-31.5, 12.25, 700.0), tilt=0.0):
        turn = np.asarray(turn, float)
        self.row, self.column = turn[:, 0], turn[:, 1]
        self.spacing = spacing
        self.step = turn[:, 2] * spacing[2] + self.column * tilt
        self.origin = np.asarray(origin, float)

    def of(self, k):
        """Position of slice k."""
        return self.origin + k * self.step

    @property
    def ras(self):
        """[4, 4] affine to Right, Anterior, Superior."""
        affine = np.eye(4)
        columns = self.row * self.spacing[0], self.column * self.spacing[1], self.step, self.origin
        affine[:3] = np.stack(columns, 1)
        affine[:2] *= -1
        return affine


def hu_volume(shape=(7, 6, 5), seed=0):
    """[i, j, k] int16."""
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def slice_dataset(
    hu, k, place, *, uid='1.2.3', syntax=pydicom.uid.ExplicitVRLittleEndian, **changes
):
    """Slice k of [i, j, k] HU as a CT image; `changes` set tags, None removes them."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPInstanceUID = f'{uid}.{k + 1}'
    plane = hu[:, :, k].T.astype(np.int32) + 1024
    fields = {
        **PRIVATE,
        'SOPClassUID': CT,
        'SOPInstanceUID': f'{uid}.{k + 1}',
        'StudyInstanceUID': '1.2.3.77',
        'SeriesInstanceUID': uid,
        'FrameOfReferenceUID': '1.2.3.88',
        'Modality': 'CT',
        'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL'],
        'InstanceNumber': k + 1,
        'Rows': plane.shape[0],
        'Columns': plane.shape[1],
        'PixelSpacing': [place.spacing[1], place.spacing[0]],
        'SliceThickness': place.spacing[2],
        'ImagePositionPatient': [round(float(v), 6) for v in place.of(k)],
        'ImageOrientationPatient': [round(float(v), 9) for v in (*place.row, *place.column)],
        'SamplesPerPixel': 1,
        'PhotometricInterpretation': 'MONOCHROME2',
        'BitsAllocated': 16,
        'BitsStored': 16,
        'HighBit': 15,
        'PixelRepresentation': 0,
        'RescaleSlope': 1,
        'RescaleIntercept': -1024,
        'PixelData': plane.astype('<u2').tobytes(),
        **changes,
    }
    with pydicom.config.disable_value_validation():
        for keyword, value in fields.items():
            if value is not None:
                setattr(dataset, keyword, value)
    return dataset


def to_bytes(dataset):
    """The file of a data set."""
    buffer = io.BytesIO()
    with pydicom.config.disable_value_validation():
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series_bytes(hu, place=None, *, name='{:03d}.dcm', per_slice=None, **kwargs):
    """File name to bytes; `per_slice[k]` are changes of one slice."""
    place = place or Place()
    return {
        name.format(k): to_bytes(
            slice_dataset(hu, k, place, **{**kwargs, **(per_slice or {}).get(k, {})})
        )
        for k in range(hu.shape[2])
    }


def write_files(folder, files):
    """Writes names to bytes below a folder."""
    folder = pathlib.Path(folder)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_series(folder, hu, place=None, **kwargs):
    """Writes a series, one file per slice."""
    return write_files(folder, series_bytes(hu, place, **kwargs))


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    """Packs names to bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def bare_bytes(dataset):
    """A file without preamble and meta header, as old archives hold it."""
    buffer = io.BytesIO()
    del dataset.file_meta
    pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def enhanced_bytes(hu, place, order, **changes):
    """One multi-frame file with the slices in the given order."""
    first = slice_dataset(hu, 0, place, syntax=pydicom.uid.ImplicitVRLittleEndian)
    dataset = first
    for keyword in (
        'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'SliceThickness',
        'RescaleSlope', 'RescaleIntercept',
    ):  # fmt: skip
        delattr(dataset, keyword)
    dataset.SOPClassUID = ENHANCED_CT
    dataset.NumberOfFrames = len(order)
    measures, turn, value = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [place.spacing[1], place.spacing[0]]
    measures.SliceThickness = place.spacing[2]
    turn.ImageOrientationPatient = [round(float(v), 9) for v in (*place.row, *place.column)]
    value.RescaleSlope, value.RescaleIntercept = 1, -1024
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [turn]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [round(float(v), 6) for v in place.of(k)]
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [value]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    stored = np.stack([hu[:, :, k].T.astype(np.int32) + 1024 for k in order]).astype('<u2')
    dataset.PixelData = stored.tobytes()
    for keyword, item in changes.items():
        setattr(dataset, keyword, item)
    return to_bytes(dataset)


def assert_same_place(volume, hu, place):
    """Every voxel of a volume must hold the HU that was written at its place in the patient."""
    array, affine = volume.array, volume.header.affine
    assert sorted(array.shape) == sorted(hu.shape)
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing='ij'), -1).reshape(-1, 3)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(place.ras)
    source = world @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(source, np.rint(source), atol=2e-3)
    source = np.rint(source).astype(int)
    assert (source >= 0).all() and (source < hu.shape).all()
    np.testing.assert_array_equal(array[tuple(index.T)], hu[tuple(source.T)])
