"""One case: reads its phases, registers each to the reference, judges and writes them."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxquery_jax.data import nifti, volumes
from maxquery_jax.data.findings import FileError, Issue
from maxquery_jax.data.nifti_header import Header, corner_distance
from maxquery_jax.data.orientation import Orientation, find_orientation
from maxquery_jax.data.raw import hash_file
from maxquery_jax.data.registration import builtin, transforms
from maxquery_jax.data.registration.choice import Candidate, choose
from maxquery_jax.data.registration.command import SAME_PLACE, Job, run_command
from maxquery_jax.data.registration.grids import (
    Grid,
    Pyramid,
    block_mean,
    displacement_of,
    resample,
    to_image,
)
from maxquery_jax.data.registration.options import RegisterOptions, fill
from maxquery_jax.data.registration.quality import body_mask, measure_folding
from maxquery_jax.data.scan import INT16, ReadOptions, to_hu
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_json

AIR_HU = builtin.AIR_HU
QUALITY_MM = 4.0
_NARROW_HU = 64  # a fractional range below this is no CT, as in `data.scan`


@dataclasses.dataclass(frozen=True)
class CaseTask:
    """What a process needs to register one case.

    Attributes:
        case_id: of the case.
        images: one path per phase, relative to `source`; None for a missing phase.
        label: path or None.
        phases: names.
        reference: index of the reference phase.
        source: folder of the raw data.
        output: folder to write.
        masks: name of a mask to id, where the label is a folder of masks.
        read: how files are judged.
        options: what to do.
        key: hash of everything that decides the result.
    """

    case_id: str
    images: tuple[str | None, ...]
    label: str | None
    phases: tuple[str, ...]
    reference: int
    source: pathlib.Path
    output: pathlib.Path
    masks: Mapping[str, int] | None
    read: ReadOptions
    options: RegisterOptions
    key: str

    @property
    def record_path(self) -> pathlib.Path:
        """Where the case's record is, written when everything else is."""
        return self.output / 'records' / f'{self.case_id}.json'

    def image_name(self, channel: int) -> str:
        """Path of a phase in the output."""
        folder = 'imagesTr' if self.label else 'imagesTs'
        return f'{folder}/{self.case_id}_{channel:04d}.nii.gz'

    def names(self, channel: int) -> dict[str, str]:
        """Values of the fields of patterns and commands."""
        return {
            'case': self.case_id,
            'phase': self.phases[channel],
            'channel': f'{channel:04d}',
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _Scan:
    """A phase that was read: canonical int16 HU."""

    path: str
    hu: np.ndarray
    place: Orientation
    header: Header
    sha256: str

    @property
    def native(self) -> np.ndarray:
        return nifti.from_canonical(self.hu, self.place)


def register_case(task: CaseTask) -> dict[str, Any]:
    """Registers and writes one case.

    Returns:
        Its record, or `{'error': {file, check, severity, value, fix}}` if its input is at fault.
    """
    try:
        record = _Case(task).run()
    except FileError as error:
        return {'error': {'file': error.path, **dataclasses.asdict(error.issue)}}
    except UserError as error:
        issue = Issue('registration_failed', 'error', str(error), 'mend it and run again')
        return {'error': {'file': '', **dataclasses.asdict(issue)}}
    write_json(task.record_path, record)
    return record


class _Case:
    def __init__(self, task: CaseTask):
        self._task = task
        self._rows: list[dict[str, str]] = []
        self._outputs: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        task = self._task
        path = task.images[task.reference]
        assert path is not None
        reference = self._read(path)
        self._pyramid = Pyramid(reference.hu, Grid.of(reference.place))
        self._reference = reference
        self._low, self._low_grid = self._pyramid.level(QUALITY_MM)
        self._body = body_mask(self._low)
        if task.label is not None:
            self._copy_label(task.label)
        phases = [self._phase(channel) for channel in range(len(task.phases))]
        return {
            'key': task.key,
            'case': task.case_id,
            'outputs': self._outputs,
            'phases': phases,
            'findings': self._rows,
        }

    def _read(self, path: str) -> _Scan:
        read = self._task.read
        volume = volumes.read_image(
            self._task.source / path,
            series=read.series,
            allow=read.allow,
            nan_policy=read.nan_policy,
            assume_orientation=read.assume_orientation,
            max_bytes=read.max_bytes,
        )
        for issue in volume.issues:
            self._note(path, issue)
        span = f'{volume.minimum:.6g} to {volume.maximum:.6g}'
        if volume.minimum < INT16.min or volume.maximum > INT16.max:
            self._error(path, 'value_range', f'{span}, beyond 16 bits', 'check the rescale slope')
        elif volume.is_fractional and volume.maximum - volume.minimum < _NARROW_HU:
            self._error(path, 'normalised', f'fractions in {span}', 'give the original HU')
        array, place = nifti.to_canonical(volume)
        return _Scan(path, to_hu(array), place, volume.header, volume.sha256)

    def _error(self, path: str, check: str, value: str, fix: str) -> None:
        if check not in self._task.read.allow:
            raise FileError(self._task.source / path, Issue(check, 'error', value, fix))
        self._note(path, Issue(check, 'warning', value, f'accepted by --allow={check}'))

    def _note(self, path: str, issue: Issue) -> None:
        self._rows.append({'file': path, **dataclasses.asdict(issue)})

    def _copy_label(self, path: str) -> None:
        task, read = self._task, self._task.read
        volume = volumes.read_label(
            task.source / path,
            masks=task.masks,
            like=task.source / self._reference.path,
            series=read.series,
            allow=read.allow,
            assume_orientation=read.assume_orientation,
            max_bytes=read.max_bytes,
        )
        for issue in volume.issues:
            self._note(path, issue)
        _, place = nifti.to_canonical(volume)
        mine = self._reference.place
        if place.shape != mine.shape:
            raise FileError(
                task.source / path,
                Issue(
                    'shape_mismatch',
                    'error',
                    f'{place.shape}, but the reference phase is {mine.shape} (z, y, x)'
                    + self._twin(place),
                    'name the phase that was annotated with --reference',
                ),
            )
        distance = corner_distance(place.affine, mine.affine, mine.shape)
        if distance > SAME_PLACE * min(mine.spacing_mm):
            self._error(
                path,
                'affine_mismatch',
                f'up to {distance:.4g} mm from the reference phase' + self._twin(place),
                'name the phase that was annotated with --reference',
            )
        name = f'labelsTr/{task.case_id}.nii.gz'
        dtype = volume.array.dtype.newbyteorder('=').name
        nifti.write_like(task.output / name, volume.array, volume, dtype)
        self._outputs[name] = hash_file(task.output / name)

    def _twin(self, place: Orientation) -> str:
        """Says which other phase a label lies on, if any."""
        for name, path in zip(self._task.phases, self._task.images, strict=True):
            if path is None or path == self._reference.path:
                continue
            with contextlib.suppress(UserError):
                header = volumes.read_header(
                    self._task.source / path,
                    series=self._task.read.series,
                    allow=self._task.read.allow,
                    assume_orientation=self._task.read.assume_orientation,
                )
                other = find_orientation(header.affine, header.shape)
                if other.shape == place.shape:
                    distance = corner_distance(place.affine, other.affine, other.shape)
                    if distance <= SAME_PLACE * min(other.spacing_mm):
                        return f'; it lies on phase {name!r}'
        return ''

    def _write(self, channel: int, hu: np.ndarray) -> None:
        name = self._task.image_name(channel)
        array = nifti.from_canonical(hu, self._reference.place)
        nifti.write_like(self._task.output / name, array, self._reference.header, 'int16')
        self._outputs[name] = hash_file(self._task.output / name)

    def _phase(self, channel: int) -> dict[str, Any]:
        task = self._task
        path = task.images[channel]
        entry: dict[str, Any] = {
            'phase': task.phases[channel],
            'channel': channel,
            'file': task.image_name(channel),
        }
        if channel == task.reference or path is None:
            self._write(channel, self._reference.hu)
            return {**entry, 'role': 'copied' if path is None else 'reference'}
        phase = self._read(path)
        if self._reference.sha256 == phase.sha256:
            self._note(
                path,
                Issue('duplicate', 'warning', 'equals the reference phase', 'check the files'),
            )
        pyramid = Pyramid(phase.hu, Grid.of(phase.place))
        image = to_image(phase.hu, pyramid.grid)
        low = to_image(*pyramid.level(QUALITY_MM))
        header = self._candidate('headers', None, image, low)
        notes: list[str] = []
        try:
            found, start = self._candidates(channel, phase, pyramid, image, low, header)
        except builtin.RegistrationFailedError as error:
            found, start = [], 'headers'
            notes.append(f'the registration failed ({error}); aligned by the headers')
        best, worse = choose([header, *found], self._low, self._body)
        notes += [worse] if worse else []
        self._write(channel, best.full())
        return {
            **entry,
            'role': 'registered',
            'method': task.options.method,
            'kept': best.name,
            'start': start,
            'before': header.scores(),
            'after': best.scores(),
            'tried': {candidate.name: candidate.scores() for candidate in found},
            **self._deformation(best),
            'transform': best.save() if best.save else None,
            'failed': not found and task.options.method != 'none',
            'notes': notes,
        }

    def _candidates(
        self, channel: int, phase: _Scan, pyramid: Pyramid, image: Any, low: Any, header: Candidate
    ) -> tuple[list[Candidate], str]:
        """Alignments by the method asked for, the last one being its result."""
        options = self._task.options
        if options.method == 'none':
            return [], 'headers'
        if options.method == 'transforms':
            values = self._task.names(channel)
            chain = transforms.read_transforms([fill(p, values) for p in options.transforms])
            candidate = self._candidate('transforms', chain, image, low)
            candidate.is_fine = True
            return [candidate], 'files'
        if options.method == 'command':
            return [self._commanded(channel, phase, header)], 'headers'
        rigid, start = builtin.register_rigid(self._pyramid, pyramid)
        stem = f'transforms/{self._task.case_id}_{channel:04d}'
        found = [self._candidate('rigid', rigid, image, low)]
        found[0].save = lambda: self._save(f'{stem}.tfm', rigid)
        if options.method == 'deformable':
            field, grid = builtin.register_deformable(self._pyramid, pyramid, rigid)
            warp = builtin.field_transform(field, grid)
            found.append(self._candidate('deformable', warp, image, low))
            found[1].save = lambda: self._save(f'{stem}.nii.gz', field, grid)
        return found, start

    def _candidate(self, name: str, transform: Any, image: Any, low: Any) -> Candidate:
        grid, full_grid = self._low_grid, self._pyramid.grid
        covered = resample(builtin.ones_like(low), grid, transform, fill=0, is_nearest=True) > 0
        candidate = Candidate(
            name,
            resample(low, grid, transform, fill=AIR_HU),
            covered,
            lambda: resample(image, full_grid, transform, fill=AIR_HU),
        )
        if transform is not None:
            candidate.field = lambda part: displacement_of(transform, part)
        return candidate

    def _commanded(self, channel: int, phase: _Scan, header: Candidate) -> Candidate:
        options, reference = self._task.options, self._reference
        moved = header.full()
        with tempfile.TemporaryDirectory(prefix='register_') as folder:
            job = Job(
                options.command, options.timeout_s, self._task.names(channel), pathlib.Path(folder)
            )
            result = run_command(
                job,
                (reference.native, reference.header),
                (phase.native, phase.header),
                nifti.from_canonical(moved, reference.place),
                reference.place,
            )
        factors = self._pyramid.grid.factors(QUALITY_MM)
        header.coarse = block_mean(moved, factors)  # averaged in the same way as the result
        return Candidate(
            'command', block_mean(result, factors), np.ones_like(header.covered), lambda: result
        )

    def _deformation(self, best: Candidate) -> dict[str, Any]:
        if best.name == 'headers':
            return {'folding': 0.0, 'least_jacobian': 1.0, 'displacement_mm': 0.0}
        if best.field is None:  # an external program keeps it to itself
            return {'folding': None, 'least_jacobian': None, 'displacement_mm': None}
        found = measure_folding(best.field, self._pyramid.grid if best.is_fine else self._low_grid)
        return {
            'folding': found.share,
            'least_jacobian': found.minimum,
            'displacement_mm': found.largest_mm,
        }

    def _save(self, name: str, *content: Any) -> str:
        path = self._task.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write = transforms.write_field if name.endswith('.nii.gz') else transforms.write_transform
        write(path, *content)
        self._outputs[name] = hash_file(path)
        return name
