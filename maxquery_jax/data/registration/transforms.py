"""Transforms from and to files: ITK transform files, and displacement fields in NIfTI.

Every transform maps points of the reference to points of the phase, as ITK's resampling does, in
mm. A displacement field is a 5D NIfTI file [i, j, k, 1, 3]. Its intent says what its vectors mean:
1006 (displacement vector) has components towards Right, Anterior, Superior, as the NIfTI standard
has it and as ITK reads and writes since 5.3 (pull request 3884); 1007 (vector), which ANTs writes,
has ITK's Left, Posterior, Superior.

SimpleITK reads a transform file that was cut off without a word, so text files are checked here
before it sees them.
"""

import gzip
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from maxquery_jax.data.findings import Findings
from maxquery_jax.data.nifti_header import HEADER_BYTES, header_size, parse_header
from maxquery_jax.data.nifti_stream import COPY_AGAIN, open_stream
from maxquery_jax.data.orientation import find_orientation
from maxquery_jax.data.registration.grids import RAS_TO_LPS, Grid, field_transform, simpleitk
from maxquery_jax.errors import UserError
from maxquery_jax.files import replacing

DISPLACEMENT, VECTOR = 1006, 1007  # intent codes
_PARAMETERS = {  # name of an ITK transform: parameters, fixed parameters; None for any number
    'Euler3DTransform': (6, (3, 4)),
    'VersorRigid3DTransform': (6, (3,)),
    'VersorTransform': (3, (3,)),
    'Similarity3DTransform': (7, (3,)),
    'ScaleVersor3DTransform': (9, (3,)),
    'ScaleSkewVersor3DTransform': (15, (3,)),
    'ScaleTransform': (3, (3,)),
    'AffineTransform': (12, (3,)),
    'MatrixOffsetTransformBase': (12, (3,)),
    'TranslationTransform': (3, (0,)),
    'IdentityTransform': (0, (0,)),
    'BSplineTransform': (None, (18,)),
}
_MAX_TEXT_BYTES = 2**28


def read_transforms(paths: Sequence[str | os.PathLike]) -> Any:
    """Chains transforms from files; the first file acts first on points of the reference.

    Raises:
        UserError: a file is absent, damaged or no 3D transform.
    """
    sitk = simpleitk()
    chain = sitk.CompositeTransform(3)
    for path in reversed(paths):  # ITK applies the one that was added last first
        chain.AddTransform(_read(pathlib.Path(path)))
    chain.FlattenTransform()
    return chain


def _read(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise UserError(f'{path}: no such file; check --transforms')
    name = path.name.lower()
    if name.endswith(('.nii', '.nii.gz')):
        return field_transform(*read_field(path))
    if name.endswith(('.tfm', '.txt')):
        _check_text(path)
    try:
        transform = simpleitk().ReadTransform(str(path))
        found = transform.GetDimension(), np.asarray(transform.GetParameters())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f'{path}: is no transform ITK reads ({reason}); {COPY_AGAIN}') from error
    if found[0] != 3 or not np.isfinite(found[1]).all():
        raise UserError(f'{path}: is no finite 3D transform; write it again')
    return transform


def _check_text(path: pathlib.Path) -> None:
    """Every transform of an ITK text file must have all of its numbers."""
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise UserError(f'{path}: too large for a text transform; use .h5 or a displacement field')
    text = path.read_bytes().decode('latin-1')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith('#Insight Transform File'):
        raise UserError(f'{path}: is no ITK transform file; its first line names one')
    blocks: list[dict[str, str]] = []
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(':'))
        if key == 'Transform':
            blocks.append({'Transform': value})
        elif blocks and not line.startswith('#'):
            blocks[-1][key] = value
    if not text.endswith('\n') or not blocks:
        raise UserError(f'{path}: ends in the middle; {COPY_AGAIN}')
    for block in blocks:
        _check_block(block, path)
    if all(block['Transform'].startswith('CompositeTransform') for block in blocks):
        raise UserError(f'{path}: holds no transform; {COPY_AGAIN}')


def _check_block(block: dict[str, str], path: pathlib.Path) -> None:
    name = block['Transform'].partition('_')[0]
    if name == 'CompositeTransform':
        return
    counts = {key: len(block.get(key, '').split()) for key in ('Parameters', 'FixedParameters')}
    parameters, fixed = _PARAMETERS.get(name, (None, None))
    if name == 'BSplineTransform' and counts['FixedParameters'] == 18:
        parameters = 3 * int(np.prod([float(n) for n in block['FixedParameters'].split()[:3]]))
    is_whole = {'Parameters', 'FixedParameters'} <= set(block)
    is_whole &= parameters is None or counts['Parameters'] == parameters
    is_whole &= fixed is None or counts['FixedParameters'] in fixed
    if not is_whole:
        raise UserError(
            f'{path}: {name} has {counts["Parameters"]} parameters and '
            f'{counts["FixedParameters"]} fixed ones, which is not all of them; {COPY_AGAIN}'
        )


def write_transform(path: pathlib.Path, transform: Any) -> None:
    """Writes an ITK text file, whole or not at all."""
    part = path.with_name(f'.part{os.getpid()}.{path.name}')
    try:
        simpleitk().WriteTransform(transform, str(part))
        content = part.read_bytes()
    finally:
        part.unlink(missing_ok=True)
    with replacing(path) as file:
        file.write(content)


def read_field(path: str | os.PathLike) -> tuple[np.ndarray, Grid]:
    """Reads a displacement field.

    Returns:
        [D, H, W, 3] float32 mm (R, A, S) in canonical order, and its grid.

    Raises:
        UserError: another kind of file, or a damaged one; one line.
    """
    findings = Findings(path)
    with open_stream(path, findings) as stream:
        start = stream.read(4)
        data = start + stream.read(header_size(start, findings) - 4)
        if len(data) not in HEADER_BYTES:
            raise findings.fatal('truncated', f'{len(data)} header bytes', COPY_AGAIN)
        kind = nib.Nifti1Header if HEADER_BYTES[len(data)] == 1 else nib.Nifti2Header
        little = int.from_bytes(data[:4], 'little') == len(data)
        raw = kind(data, '<' if little else '>', check=False)
        sign = _vector_sign(raw, findings)
        flat = raw.copy()
        flat['dim'] = [3, *raw['dim'][1:4], 1, 1, 1, 1]
        header = parse_header(flat.binaryblock, findings, None)
        if header.dtype.kind != 'f' or header.scaling is not None:
            raise findings.fatal('dtype', f'{header.dtype.name}, scaled or not', 'store float32')
        stream.read(header.offset - len(data))
        size = 3 * header.num_voxels * header.dtype.itemsize
        if size > stream.size_limit:
            raise findings.fatal('truncated', f'needs {size:,} bytes', COPY_AGAIN)
        content = stream.read(size)
        stream.drain()
    findings.raise_first_error()
    if len(content) < size:
        raise findings.fatal('truncated', f'{len(content):,} of {size:,} voxel bytes', COPY_AGAIN)
    vectors = np.frombuffer(content, header.dtype).reshape(3, *header.shape[::-1]).T
    if not np.isfinite(vectors).all():
        raise findings.fatal('nonfinite', 'NaN or Inf displacements', 'write the field again')
    place = find_orientation(header.affine, header.shape)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in place.flips)
    field = vectors.transpose(*place.axes, 3)[steps].astype(np.float32)
    return field * sign.astype(np.float32), Grid.of(place)


def _vector_sign(raw: nib.Nifti1Header, findings: Findings) -> np.ndarray:
    dim = [int(n) for n in raw['dim']]
    if dim[0] != 5 or dim[4:6] != [1, 3]:
        raise findings.fatal(
            'dimensions', f'dim {dim}', 'a displacement field is stored as [i, j, k, 1, 3]'
        )
    intent = int(raw['intent_code'])
    if intent not in (DISPLACEMENT, VECTOR):
        raise findings.fatal(
            'format',
            f'intent {intent}',
            'set intent 1006 for mm towards right, anterior and superior, or 1007 for mm towards '
            'left, posterior and superior (ITK, ANTs)',
        )
    return np.ones(3) if intent == DISPLACEMENT else RAS_TO_LPS


def write_field(path: str | os.PathLike, field: np.ndarray, grid: Grid) -> None:
    """Writes [D, H, W, 3] mm (R, A, S) as float32 with intent 1006; equal input, equal bytes."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = grid.affine[:3, 2::-1], grid.affine[:3, 3]
    array = field.transpose(2, 1, 0, 3)[:, :, :, None].astype(np.float32)
    image = nib.Nifti1Image(array, affine)
    image.header.set_intent('displacement vector')
    image.header.set_xyzt_units('mm')
    image.set_sform(affine, code='scanner')
    image.set_qform(affine, code='scanner', strip_shears=True)
    content = io.BytesIO()
    with gzip.GzipFile('', 'wb', 4, content, mtime=0) as stream:
        stream.write(image.to_bytes())
    with replacing(path) as file:
        file.write(content.getvalue())
