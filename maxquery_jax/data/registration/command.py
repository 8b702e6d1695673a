"""An external program, such as deedsBCV, that brings a phase onto the reference.

    --command='register.sh {fixed} {moving} {output}'
    --command='deedsBCV -F {fixed} -M {moving} -O {prefix}'

The program gets int16 HU in .nii.gz files: `{fixed}` the reference, `{moving}` the phase resampled
to the grid of the reference by the headers (deedsBCV wants equal dimensions), `{moving_raw}` the
phase on its own grid. It writes `{output}` (a .nii.gz) or, as deedsBCV does by its README,
`{prefix}_deformed.nii.gz`, on the grid of the reference. It is started without a shell; the folder
of these files is deleted afterwards.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess

import numpy as np

from maxquery_jax.data import nifti
from maxquery_jax.data.nifti_header import Header, corner_distance
from maxquery_jax.data.orientation import Orientation
from maxquery_jax.data.raw import hash_file
from maxquery_jax.data.registration.options import fill, split_command
from maxquery_jax.data.scan import to_hu
from maxquery_jax.errors import UserError

SAME_PLACE = 0.05  # voxels: grids this close are one, as in `data.scan`
_MAX_LINE = 200


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of the program.

    Attributes:
        command: with fields.
        timeout_s: seconds.
        names: values of `{case}`, `{phase}` and `{channel}`.
        folder: empty, for its files.
    """

    command: str
    timeout_s: float
    names: dict[str, str]
    folder: pathlib.Path

    @property
    def title(self) -> str:
        """Case and phase, for messages."""
        return f'case {self.names["case"]!r}, phase {self.names["phase"]!r}'


def run_command(
    job: Job,
    reference: tuple[np.ndarray, Header],
    phase: tuple[np.ndarray, Header],
    moved: np.ndarray,
    place: Orientation,
) -> np.ndarray:
    """Runs the program on one phase.

    Args:
        job: what to run.
        reference: array [i, j, k] int16 along the file's own axes, and the file's header.
        phase: the same of the phase.
        moved: [i, j, k] int16, the phase on the grid of the reference by the headers.
        place: orientation of the reference.

    Returns:
        [D, H, W] int16 HU on the canonical grid of the reference.

    Raises:
        UserError: it failed, took too long, or wrote nothing that lies on that grid.
    """
    files = {
        name: job.folder / f'{name}.nii.gz' for name in ('fixed', 'moving', 'moving_raw', 'output')
    }
    nifti.write_like(files['fixed'], reference[0], reference[1], 'int16')
    nifti.write_like(files['moving'], moved, reference[1], 'int16')
    if '{moving_raw}' in job.command:
        nifti.write_like(files['moving_raw'], phase[0], phase[1], 'int16')
    values = {**job.names, **{name: str(path) for name, path in files.items()}}
    values['prefix'] = str(job.folder / 'output')
    arguments = [fill(word, values) for word in split_command(job.command)]
    _run(arguments, job)
    found = [files['output'], job.folder / 'output_deformed.nii.gz']
    written = next((path for path in found if path.is_file()), None)
    if written is None:
        raise UserError(
            f'{job.title}: {arguments[0]} ended without writing {{output}} or '
            '{prefix}_deformed.nii.gz; check --command'
        )
    return _read(written, place, job, arguments[0])


def _run(arguments: list[str], job: Job) -> None:
    log = job.folder / 'log.txt'
    with log.open('wb') as stream:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f'{job.title}: {arguments[0]} cannot be started ({error.strerror}); check --command'
            ) from error
        try:
            code = process.wait(job.timeout_s)
        except subprocess.TimeoutExpired:
            raise UserError(
                f'{job.title}: {arguments[0]} was ended after {job.timeout_s:g} s; raise --timeout '
                'or look into the program'
            ) from None
        finally:
            if process.poll() is None:  # also when interrupted; its children belong to it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        lines = log.read_bytes().decode(errors='replace').split('\n')
        last = next((line.strip() for line in reversed(lines) if line.strip()), 'no message')
        ending = f'signal {-code}' if code < 0 else f'exit code {code}'
        raise UserError(f'{job.title}: {arguments[0]} failed with {ending}: {last[:_MAX_LINE]}')


def _read(path: pathlib.Path, place: Orientation, job: Job, program: str) -> np.ndarray:
    try:
        volume = nifti.read_image(path)
    except UserError as error:
        raise UserError(f'{job.title}: the output of {program} is unusable: {error}') from error
    array, found = nifti.to_canonical(volume)
    if found.shape != place.shape:
        raise UserError(
            f'{job.title}: {program} wrote shape {found.shape}, the reference is {place.shape} '
            '(z, y, x); its output must lie on the grid of {fixed}'
        )
    distance = corner_distance(found.affine, place.affine, place.shape)
    if distance > SAME_PLACE * min(place.spacing_mm):
        raise UserError(
            f'{job.title}: {program} wrote a volume up to {distance:.4g} mm away from the '
            'reference; its output must lie on the grid of {fixed}'
        )
    return to_hu(array)


def hash_program(command: str) -> str:
    """Hash of a program and of the files it is given by name, such as a script."""
    words = split_command(command)
    digest = hashlib.sha256()
    for word in [shutil.which(words[0]) or words[0], *words[1:]]:
        path = pathlib.Path(word)
        digest.update(hash_file(path).encode() if path.is_file() else word.encode())
    return digest.hexdigest()
