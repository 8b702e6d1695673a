"""Registers the contrast phases of every case to one of them; writes an nnU-Net v2 raw folder.

    python -m launch.register --dataset=decathlon --source=RAW --output=REGISTERED \\
        --reference=venous
    python -m launch.register --dataset=pairs --source=RAW --output=REGISTERED --reference=0 \\
        --images='*_venous.nii.gz,*_arterial.nii.gz' --channels=venous,arterial \\
        --labels='*_seg.nii.gz' --label_names=1:liver,2:tumour --method=rigid --missing=copy
    python -m launch.register ... --method=transforms --transforms='fields/{case}_{phase}.nii.gz'
    python -m launch.register ... --method=command \\
        --command='deedsBCV -F {fixed} -M {moving} -O {prefix}'

launch.prepare --dataset=decathlon --source=REGISTERED goes on from there. The same command
continues after an interruption. Needs the extra `registration` (SimpleITK).
"""

from absl import flags

from launch import _cli, _source
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.registration.options import METHODS, MISSING, Limits, RegisterOptions
from maxquery_jax.data.registration.run import register_dataset
from maxquery_jax.data.sources import open_source
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.errors import UserError

_OUTPUT = flags.DEFINE_string('output', '', 'Folder to write.')
_REFERENCE = flags.DEFINE_string(
    'reference', '', 'Phase that was annotated, by name or number; the others are moved to it.'
)
_METHOD = flags.DEFINE_enum(
    'method', 'deformable', list(METHODS), '; '.join(f'{k}: {v}' for k, v in METHODS.items())
)
_MISSING = flags.DEFINE_enum(
    'missing', 'error', list(MISSING), '; '.join(f'{k}: {v}' for k, v in MISSING.items())
)
_TRANSFORMS = flags.DEFINE_list(
    'transforms', [], 'Files with {case} and {phase} or {channel}; the first acts first on points '
    'of the reference. ITK transforms, or displacement fields (.nii.gz) in mm.'
)  # fmt: skip
_COMMAND = flags.DEFINE_string(
    'command', '', 'Program with {fixed}, {moving} and {output} (or {prefix}); also {moving_raw}, '
    '{case}, {phase}, {channel}.'
)  # fmt: skip
_TIMEOUT = flags.DEFINE_float('timeout', 3600, 'Seconds that the command may take per phase.')
_FOLDING = flags.DEFINE_float('max_folding', Limits.folding, 'Share of folded voxels to warn at.')
_OVERLAP = flags.DEFINE_float('min_overlap', Limits.overlap, 'Dice of the bodies to warn below.')
_COVERAGE = flags.DEFINE_float(
    'min_coverage', Limits.coverage, 'Share of the body that a phase must show.'
)
_STRICT = flags.DEFINE_bool('strict', False, 'Count these warnings as errors; --allow names some.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a result made with other settings.')
_JSON = flags.DEFINE_string('json', '', 'File for the findings.')
flags.adopt_module_key_flags(_source)


def main() -> None:
    """Writes `--output` from `--source`."""
    if not _OUTPUT.value:
        raise UserError('--output: name the folder to write, e.g. --output=registered')
    options = RegisterOptions(
        _METHOD.value, _MISSING.value, tuple(_TRANSFORMS.value), _COMMAND.value, _TIMEOUT.value
    )
    limits = Limits(_FOLDING.value, _OVERLAP.value, _COVERAGE.value)
    shared = _source.options()
    later = {'roles': RoleFlags(), 'split': SplitOptions(), 'taxonomy': None}
    if any(shared[name] != value for name, value in later.items()):
        raise UserError(
            'labels and splits are chosen when the result is prepared; give --organ, --tumour, '
            '--ood, --ignore, --taxonomy and --split to launch.prepare'
        )
    raw, _ = open_source(*_source.dataset(), pairs=shared['pairs'], spec=shared['spec'])
    register_dataset(
        raw,
        _OUTPUT.value,
        _REFERENCE.value,
        options=options,
        limits=limits,
        pairs=shared['pairs'],
        read=shared['read'],
        is_strict=_STRICT.value,
        overwrite=_OVERWRITE.value,
        workers=shared['workers'],
        json_path=_JSON.value or None,
        progress=True,
    )


if __name__ == '__main__':
    _cli.run(main)
