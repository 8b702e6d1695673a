"""Flags that say how scans are read and judged; shared by check, prepare and predict."""

from absl import flags

from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.scan import ReadOptions

_ALLOW = flags.DEFINE_list(
    'allow', [], f'Errors to accept, by name. A case of no use is left out. Of: {", ".join(CHECKS)}'
)
_NAN = flags.DEFINE_enum(
    'nan_policy', 'error', ['error', 'fill'], 'NaN and Inf: refuse, or replace by -1024 HU.'
)
_ORIENTATION = flags.DEFINE_string(
    'assume_orientation', None, 'Axes of files that hold no affine, such as LPS.'
)
_SERIES = flags.DEFINE_string(
    'series', None, 'Series of a DICOM input with several: number in the list, or start of its UID.'
)


def options() -> ReadOptions:
    """The flags' values."""
    return ReadOptions(
        frozenset(_ALLOW.value), _NAN.value, _ORIENTATION.value, series=_SERIES.value
    )
