"""Turns raw scans into a patch store: checks, orients to RAS, resamples, writes.

    python -m launch.prepare --dataset=decathlon --source=Task07_Pancreas --store=stores/pancreas
    python -m launch.prepare --dataset=decathlon --source=DIR --store=STORE \\
        --organ=pancreas --tumour=PDAC,PNET,IPMN --ood=AC,DC --spacing=3,0.419,0.419
    python -m launch.prepare --dataset=pairs --source=DIR --store=STORE --images='*_ct.nii.gz' \\
        --labels='*_seg.nii.gz' --label_names=1:right_lung,2:left_lung,3:cord,4:tumour \\
        --organ=lung=right_lung+left_lung --ignore=cord
    python -m launch.prepare --dataset=phantom --source=phantom --store=stores/phantom
    python -m launch.prepare --dataset=kits23 --source=kits23 --store=STORE --taxonomy=zept
    python -m launch.prepare --dataset=custom --spec=mine.json --source=DIR --store=STORE

--list shows all data sets. The same command continues after an interruption. Cases with an --ood
label are kept for testing. launch.check with the same flags looks without writing anything.
"""

import contextlib
from typing import Any

from absl import flags

from launch import _catalogue, _cli, _source
from maxquery_jax.data.prepare import prepare
from maxquery_jax.errors import UserError

_STORE = flags.DEFINE_string('store', '', 'Folder or URL (gs://...) of the store to write.')
_SPACING = flags.DEFINE_list(
    'spacing', [], 'Voxel size z,y,x in mm; by default the median of the training cases.'
)
_WINDOW = flags.DEFINE_list(
    'window',
    [],
    'Fixed intensity window lower,upper in HU, mapped to 0..1 (the Universal model: -175,250); by '
    'default the statistics of the labelled voxels of the training cases.',
)
_LABEL_METHOD = flags.DEFINE_enum(
    'label_method', 'linear', ['linear', 'nearest'], 'How label maps are resampled.'
)
_PHANTOM = flags.DEFINE_list(
    'phantom', [], 'phantom: size of the cohort, num_train=8,num_val=2,shape_zyx=32x64x64.'
)
_CHECK = flags.DEFINE_bool(
    'check', True, 'Refuse data with errors; --nocheck uses whatever can be used.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a finished store.')
_JSON = flags.DEFINE_string('json', '', 'File for the findings of the check.')
flags.adopt_module_key_flags(_source)
flags.adopt_module_key_flags(_catalogue)


def main() -> None:
    """Writes `--store` from `--source`."""
    if _catalogue.show():
        return
    if not _STORE.value:
        raise UserError('--store: name the folder to write, e.g. --store=stores/mine')
    prepare(
        *_source.dataset(),
        _STORE.value,
        **_source.options(),
        phantom=_phantom(_PHANTOM.value),
        spacing_mm=_numbers('spacing', _SPACING.value),
        window_hu=_numbers('window', _WINDOW.value),
        label_method=_LABEL_METHOD.value,
        check=_CHECK.value,
        overwrite=_OVERWRITE.value,
        json_path=_JSON.value or None,
        progress=True,
    )


def _phantom(texts: list[str]) -> dict[str, Any]:
    """`num_train=8,shape_zyx=32x64x64` to a dict of numbers, words and tuples of them."""
    spec = {}
    for text in texts:
        name, sign, value = text.partition('=')
        if not sign:
            raise UserError(f'--phantom: {text!r} is not NAME=VALUE')
        parts = [_value(part) for part in value.split('x' if value[:1].isdigit() else '+')]
        spec[name] = parts[0] if len(parts) == 1 else tuple(parts)
    return spec


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _numbers(name: str, texts: list[str]) -> tuple[float, ...] | None:
    try:
        return tuple(float(text) for text in texts) or None
    except ValueError:
        raise UserError(f'--{name}={",".join(texts)}: give numbers') from None


if __name__ == '__main__':
    _cli.run(main)
