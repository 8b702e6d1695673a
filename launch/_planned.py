"""Flags of benchmark and compile for data that is not there: classes, channels, spacing."""

from typing import TYPE_CHECKING, Any

from absl import flags

from launch import _numbers

if TYPE_CHECKING:
    from maxquery_jax.data.store import Manifest

_TUMOURS = flags.DEFINE_integer(
    'tumours',
    None,
    "Known tumour classes; the phantom cohort's or else 7 by default.",
    lower_bound=0,
)
_CHANNELS = flags.DEFINE_integer(
    'channels',
    None,
    "Input channels (phases); the phantom cohort's or else 1 by default.",
    lower_bound=1,
)
_SPACING = flags.DEFINE_list(
    'spacing_mm',
    None,
    "Voxel size (z, y, x); the phantom cohort's or else the paper's by default.",
)


def manifest(config: Any, stage: str) -> 'Manifest':
    """Of the data that a stage of an experiment is meant for, as the flags change it.

    Raises:
        UserError: --spacing_mm is not three numbers, or `data.phantom` describes no cohort.
    """
    from maxquery_jax.train.synthetic import planned_manifest

    spacing = _numbers.triple('spacing_mm', _SPACING.value, float) if _SPACING.value else None
    return planned_manifest(
        config,
        stage,
        num_tumours=_TUMOURS.value,
        num_channels=_CHANNELS.value,
        spacing_mm=spacing,
    )
