"""NIfTI-1 and NIfTI-2 headers, judged from their raw bytes before any voxel is read.

nibabel repairs many headers in silence (zero spacing becomes 1 mm, a missing affine becomes a
centred LAS one, the sform wins over a contradicting qform). A wrong geometry flips or shifts a
mask, so here each of these is a finding with a name.
"""

import dataclasses
import functools

import nibabel as nib
import numpy as np
from nibabel.quaternions import mat2quat, quat2mat

from maxquery_jax.data.findings import Findings, Issue
from maxquery_jax.data.orientation import SHEAR_TOLERANCE, axis_codes, shear_of

HEADER_BYTES = {348: 1, 540: 2}  # sizeof_hdr to NIfTI version
AFFINE_TOLERANCE_MM = 1e-3
_QUATERNION_TOLERANCE = 5e-7  # float32 rounding of a stored quaternion, largest near 180 degrees
_SPACING_MM = (0.05, 50.0)
_SLOPES = (1e-12, 1e12)  # beyond, all voxels collapse to one value or overflow
_DTYPES = {
    2: 'u1',
    4: 'i2',
    8: 'i4',
    16: 'f4',
    64: 'f8',
    256: 'i1',
    512: 'u2',
    768: 'u4',
    1024: 'i8',
    1280: 'u8',
}
_REFUSED = {
    0: 'unknown',
    1: 'binary',
    32: 'complex64',
    128: 'RGB',
    1536: 'float128',
    1792: 'complex128',
    2048: 'complex256',
    2304: 'RGBA',
}
_AXES = 'RLAPSI'
_CONVERT = 'convert it to a 3D .nii.gz, for instance with dcm2niix or SimpleITK'


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """A checked header.

    Attributes:
        path: of the file.
        raw: nibabel's view of the bytes as stored; the source of `write_like`.
        shape: (i, j, k) voxels along the file's own axes, fastest first.
        dtype: of the stored voxels, with byte order.
        affine: [4, 4] index (i, j, k, 1) to world mm (Right, Anterior, Superior).
        offset: bytes before the first voxel.
        scaling: (slope, inter) or None when stored values are the values.
        issues: what was found on the way.
    """

    path: str
    raw: nib.Nifti1Header
    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: np.ndarray
    offset: int
    scaling: tuple[float, float] | None
    issues: tuple[Issue, ...]

    @functools.cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm along the file's own axes, from the affine's columns."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def axes(self) -> str:
        """Direction in which each index grows, such as 'LPS'."""
        return axis_codes(self.affine)

    @property
    def num_voxels(self) -> int:
        """Voxels of the volume."""
        i, j, k = self.shape
        return i * j * k


def header_size(start: bytes, findings: Findings) -> int:
    """Bytes of the header, from its first four.

    Raises:
        FileError: these bytes start no NIfTI file.
    """
    for order in ('little', 'big'):
        size = int.from_bytes(start[:4], order)
        if len(start) >= 4 and size in HEADER_BYTES:
            return size
    raise findings.fatal('format', f'not a NIfTI file (starts with {show(start)})', _CONVERT)


def show(start: bytes) -> str:
    """The first bytes of a file, printable."""
    return repr(start[:16].decode('latin-1')) if start else 'nothing: 0 bytes'


def parse_header(data: bytes, findings: Findings, assume_orientation: str | None) -> Header:
    """Reads and judges a header.

    Args:
        data: exactly the header's bytes.
        findings: collects what is wrong.
        assume_orientation: axis codes such as 'LPS' for a file without any affine.

    Raises:
        FileError: the header cannot describe a 3D volume.
    """
    size = header_size(data, findings)
    byte_order = '<' if int.from_bytes(data[:4], 'little') == size else '>'
    version = HEADER_BYTES[size]
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    raw = kind(data, byte_order, check=False)
    _check_magic(data, version, findings)
    shape = _shape(raw, findings)
    dtype = _dtype(raw, byte_order, findings)
    offset = _offset(raw, size, findings)
    scaling = _scaling(raw, findings)
    affine = _affine(raw, shape, findings, assume_orientation)
    return Header(
        str(findings.path), raw, shape, dtype, affine, offset, scaling, tuple(findings.issues)
    )


def _check_magic(data: bytes, version: int, findings: Findings) -> None:
    # Not through nibabel: numpy strips the zero that ends the name.
    magic = data[344:348] if version == 1 else data[4:12]
    if magic[:3] in (b'ni1', b'ni2'):
        raise findings.fatal('format', 'half of a .hdr/.img pair', _CONVERT)
    expected = b'n+1\0' if version == 1 else b'n+2\0\r\n\032\n'
    if magic != expected:
        raise findings.fatal(
            'format', f'NIfTI name is {show(magic)} instead of "n+{version}"', _CONVERT
        )


def _shape(raw: nib.Nifti1Header, findings: Findings) -> tuple[int, int, int]:
    dim = [int(n) for n in raw['dim']]
    rank = dim[0]
    sizes = dim[1 : rank + 1]
    if not 1 <= rank <= 7 or min(sizes) < 1:
        raise findings.fatal('dimensions', f'dim is {dim}', 'the header is damaged: export again')
    if rank < 3:
        raise findings.fatal('dimensions', f'{rank}D: {sizes}', 'give a 3D volume')
    for axis, size in enumerate(sizes[3:], start=3):
        if size > 1:
            raise findings.fatal(
                'dimensions',
                f'{rank}D: {sizes}, axis {axis} has length {size}',
                f'split axis {axis} into 3D files, one per time or channel',
            )
    if rank > 3:
        findings.warn('squeezed', f'shape {sizes}', 'read as 3D; nothing to do')
    return sizes[0], sizes[1], sizes[2]


def _dtype(raw: nib.Nifti1Header, byte_order: str, findings: Findings) -> np.dtype:
    code, bits = int(raw['datatype']), int(raw['bitpix'])
    if code not in _DTYPES:
        name = _REFUSED.get(code, 'unknown')
        raise findings.fatal(
            'dtype',
            f'voxel type {code} ({name})',
            'store one real number per voxel, as int16 for CT',
        )
    dtype = np.dtype(byte_order + _DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise findings.fatal(
            'dtype',
            f'type {dtype.name} with {bits} bits per voxel',
            'the header is damaged: export again',
        )
    return dtype


def _offset(raw: nib.Nifti1Header, size: int, findings: Findings) -> int:
    offset = float(raw['vox_offset'])
    if not (size + 4 <= offset < 2**40 and offset == int(offset)):
        raise findings.fatal(
            'format',
            f'vox_offset is {offset:g}, below the header size {size + 4} or not a byte count',
            'the header is damaged: export again',
        )
    return int(offset)


def _scaling(raw: nib.Nifti1Header, findings: Findings) -> tuple[float, float] | None:
    slope, inter = float(raw['scl_slope']), float(raw['scl_inter'])
    if slope == 0 or np.isnan(slope):  # the standard's "no scaling", and nibabel's
        return None
    low, high = _SLOPES
    if not (low < abs(slope) < high and np.isfinite(inter)):
        raise findings.fatal(
            'scaling',
            f'scl_slope {slope:g}, scl_inter {inter:g}',
            'the header is damaged: export again',
        )
    return None if (slope, inter) == (1.0, 0.0) else (slope, inter)


def _affine(
    raw: nib.Nifti1Header,
    shape: tuple[int, int, int],
    findings: Findings,
    assume_orientation: str | None,
) -> np.ndarray:
    pixdim = np.asarray(raw['pixdim'], np.float64)
    spacing = pixdim[1:4]
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise findings.fatal(
            'spacing', f'pixdim is {_show_mm(spacing)}', 'write the true voxel size into the header'
        )
    has_sform, has_qform = int(raw['sform_code']) > 0, int(raw['qform_code']) > 0
    sform = _sform(raw, findings) if has_sform else None
    qform = _qform(raw, findings) if has_qform else None
    if sform is not None and qform is not None:
        _compare(sform, qform, shape, findings)
    affine = sform if sform is not None else qform
    if affine is None:
        affine = _assumed(spacing, findings, assume_orientation)
    elif sform is not None and not np.allclose(
        np.linalg.norm(sform[:3, :3], axis=0), spacing, rtol=1e-3
    ):
        findings.warn(
            'spacing_units',
            f'pixdim {_show_mm(spacing)} but sform '
            f'{_show_mm(np.linalg.norm(sform[:3, :3], axis=0))}',
            'the sform is used',
        )
    _check_units(raw, affine, findings)
    return affine


def _sform(raw: nib.Nifti1Header, findings: Findings) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.stack([raw['srow_x'], raw['srow_y'], raw['srow_z']]).astype(np.float64)
    norms = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    if norms.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-3:
        raise findings.fatal(
            'affine_singular',
            f'sform {np.round(affine[:3], 4).tolist()}',
            'write the affine of the scan into the header',
        )
    shear = shear_of(affine)
    if shear > SHEAR_TOLERANCE:
        findings.warn(
            'affine_sheared',
            f'axes off by {np.degrees(np.arcsin(shear)):.2f} degrees',
            'resampled through the affine; prefer a scan without gantry tilt',
        )
    return affine


def _qform(raw: nib.Nifti1Header, findings: Findings) -> np.ndarray:
    pixdim = np.asarray(raw['pixdim'], np.float64)
    quaternion = _quaternion(_imaginary(raw))
    offset = np.array([raw['qoffset_x'], raw['qoffset_y'], raw['qoffset_z']], np.float64)
    if not np.isfinite([*quaternion, *offset]).all() or pixdim[0] not in (-1, 0, 1):
        raise findings.fatal(
            'affine_singular',
            f'qform quaternion {_imaginary(raw).tolist()}, offset '
            f'{offset.tolist()}, qfac {pixdim[0]:g}',
            'write the affine of the scan into the header',
        )
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(quaternion) * pixdim[1:4]
    affine[:3, 2] *= -1 if pixdim[0] < 0 else 1
    affine[:3, 3] = offset
    return affine


def _quaternion(imaginary: np.ndarray) -> np.ndarray:
    """[w, x, y, z] of unit length, by the reference implementation's rule; NaN if impossible."""
    square = 1 - imaginary @ imaginary
    if not square > -1e-5:
        return np.full(4, np.nan)
    if square < 1e-7:  # below float32 rounding: 180 degrees
        return np.array([0, *(imaginary / np.linalg.norm(imaginary))])
    return np.array([np.sqrt(square), *imaginary])


def _imaginary(raw: nib.Nifti1Header) -> np.ndarray:
    return np.array([raw['quatern_b'], raw['quatern_c'], raw['quatern_d']], np.float64)


def _compare(
    sform: np.ndarray, qform: np.ndarray, shape: tuple[int, int, int], findings: Findings
) -> None:
    # A qform cannot hold shear, and its float32 quaternion is coarse near 180 degrees: the sform
    # is first expressed as a qform, and quaternions equal to rounding count as equal.
    norms = np.linalg.norm(sform[:3, :3], axis=0)
    u, _, v = np.linalg.svd(sform[:3, :3] / norms)
    rotation = u @ v
    as_qform = sform.copy()
    as_qform[:3, :3] = rotation * norms
    if _same_rotation(rotation, qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0)):
        as_qform[:3, :3] = qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0) * norms
    distance = corner_distance(as_qform, qform, shape)
    if distance > AFFINE_TOLERANCE_MM:
        findings.error(
            'qform_sform',
            f'sform ({axis_codes(sform)}) and qform ({axis_codes(qform)}) are up to '
            f'{distance:.4g} mm apart',
            'decide which is right and write it into both, or accept the sform with '
            '--allow=qform_sform',
        )


def _same_rotation(a: np.ndarray, b: np.ndarray) -> bool:
    if np.linalg.det(a) * np.linalg.det(b) < 0:
        return False
    flip = np.array([1, 1, np.sign(np.linalg.det(a))])
    p, q = mat2quat(a * flip), mat2quat(b * flip)
    return min(np.abs(p[1:] - q[1:]).max(), np.abs(p[1:] + q[1:]).max()) < _QUATERNION_TOLERANCE


def corner_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between a volume's corners under two affines [4, 4]."""
    ends = np.meshgrid(*([0, size - 1] for size in shape), indexing='ij')
    corners = np.stack([*ends, np.ones_like(ends[0])]).reshape(4, -1)
    return float(np.linalg.norm((a - b)[:3] @ corners, axis=0).max())


def _assumed(spacing: np.ndarray, findings: Findings, assume_orientation: str | None) -> np.ndarray:
    codes = assume_orientation
    if codes is None:
        findings.error(
            'orientation_unknown',
            'sform_code and qform_code are both 0',
            'state what you know with --assume_orientation=LPS (or another code)',
        )
        codes = 'RAS'
    else:
        findings.warn('orientation_unknown', f'taken as {codes}', 'check a picture of the result')
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(codes):
        world, negative = divmod(_AXES.index(code), 2)
        affine[world, axis] = -spacing[axis] if negative else spacing[axis]
    return affine


def is_axis_code(codes: str) -> bool:
    """Whether `codes` names three axes, such as 'LPS'."""
    return len(codes) == 3 and {_AXES.find(code) // 2 for code in codes} == {0, 1, 2}


def _check_units(raw: nib.Nifti1Header, affine: np.ndarray, findings: Findings) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    unit = {1: 'metres', 3: 'micrometres'}.get(int(raw['xyzt_units']) & 7)
    if unit:
        findings.warn(
            'spacing_units',
            f'the header says {unit}, voxel {_show_mm(spacing)}',
            'read as mm; correct xyzt_units or the affine',
        )
    elif spacing.min() < _SPACING_MM[0] or spacing.max() > _SPACING_MM[1]:
        findings.warn('spacing_units', f'voxel {_show_mm(spacing)} mm', 'check the units')


def _show_mm(spacing: np.ndarray) -> str:
    return ' x '.join(f'{edge:.4g}' for edge in spacing)
