"""What to do with the phases of a case, checked."""

import dataclasses
import re
import shlex
import shutil

from maxquery_jax.errors import UserError

METHODS = {
    'rigid': 'six parameters, mutual information',
    'deformable': 'rigid, then a smooth displacement field (diffeomorphic demons)',
    'transforms': 'transforms or displacement fields from files, --transforms',
    'command': 'an external program, --command',
    'none': 'only resampling to the grid of the reference by the headers',
}
MISSING = {
    'error': 'refuse, and list every missing phase',
    'drop': 'leave such cases out',
    'copy': 'use the reference phase in its place, and record it',
}
TRANSFORM_ENDINGS = ('.tfm', '.txt', '.h5', '.hdf5', '.mat', '.nii', '.nii.gz')
FILE_FIELDS = ('case', 'phase', 'channel')
COMMAND_FIELDS = (*FILE_FIELDS, 'fixed', 'moving', 'moving_raw', 'output', 'prefix')
_FIELD = re.compile(r'\{([^{}]*)\}')


@dataclasses.dataclass(frozen=True)
class RegisterOptions:
    """Settings of a registration; those that decide voxels.

    Attributes:
        method: a key of `METHODS`.
        missing: a key of `MISSING`.
        transforms: path patterns with `{case}`, `{phase}` (name) or `{channel}` (0000); the first
            is applied first to points of the reference, as in ANTs' list.
        command: command line with `{fixed}`, `{moving}` and `{output}` or `{prefix}`.
        timeout_s: seconds after which the command is ended.
    """

    method: str = 'deformable'
    missing: str = 'error'
    transforms: tuple[str, ...] = ()
    command: str = ''
    timeout_s: float = 3600.0

    def __post_init__(self):
        for flag, known in (('method', METHODS), ('missing', MISSING)):
            value = getattr(self, flag)
            if value not in known:
                raise UserError(f'--{flag}={value}: use one of {", ".join(known)}')
        for flag in ('transforms', 'command'):
            given, is_wanted = bool(getattr(self, flag)), self.method == flag
            if given != is_wanted:
                reason = 'is required by' if is_wanted else 'belongs to'
                raise UserError(f'--{flag}: {reason} --method={flag}')
        for pattern in self.transforms:
            _check_pattern(pattern)
        if self.command:
            _check_command(self.command)
        if not 0 < self.timeout_s < float('inf'):
            raise UserError(f'--timeout={self.timeout_s:g}: give seconds above 0')


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a registration that was made deserves a warning.

    Attributes:
        folding: largest share of folded voxels.
        overlap: smallest Dice of the bodies.
        coverage: smallest share of the reference's body that the phase shows.
    """

    folding: float = 1e-3
    overlap: float = 0.9
    coverage: float = 0.9

    def __post_init__(self):
        for flag, value in (
            ('max_folding', self.folding),
            ('min_overlap', self.overlap),
            ('min_coverage', self.coverage),
        ):
            if not 0 <= value <= 1:
                raise UserError(f'--{flag}={value:g}: give a share, 0 to 1')


def fill(text: str, values: dict[str, str]) -> str:
    """Replaces `{name}` by its value; other text, braces included, is kept."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), text)


def split_command(command: str) -> list[str]:
    """A command line as arguments, by the shell's rules of quoting but without a shell.

    Raises:
        UserError: a quote is left open, or nothing is given.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f'--command={command}: {error}') from None
    if not words:
        raise UserError('--command: is empty')
    return words


def _check_pattern(pattern: str) -> None:
    fields = _FIELD.findall(pattern)
    strangers = [field for field in fields if field not in FILE_FIELDS]
    if strangers or 'case' not in fields or not {'phase', 'channel'} & set(fields):
        raise UserError(
            f'--transforms={pattern}: give a path with {{case}} and {{phase}} or {{channel}}, such '
            "as 'transforms/{case}_{phase}.tfm'"
        )
    if not pattern.lower().endswith(TRANSFORM_ENDINGS):
        raise UserError(
            f'--transforms={pattern}: must end in {", ".join(TRANSFORM_ENDINGS)}; .nii and .nii.gz '
            'are displacement fields'
        )


def _check_command(command: str) -> None:
    words = split_command(command)
    fields = {field for word in words for field in _FIELD.findall(word)}
    strangers = sorted(fields - set(COMMAND_FIELDS))
    if strangers:
        raise UserError(
            f'--command: {{{strangers[0]}}} is unknown; fields are '
            f'{", ".join("{" + field + "}" for field in COMMAND_FIELDS)}'
        )
    if not {'moving', 'moving_raw'} & fields or not {'output', 'prefix'} & fields:
        raise UserError(
            "--command: needs {moving} and {output}, as in 'tool {fixed} {moving} {output}'"
        )
    if shutil.which(words[0]) is None:
        raise UserError(f'--command: no program {words[0]!r} is found; give its path')
