"""Whether the values of an image can be Hounsfield units."""

import numpy as np

from maxquery_jax.data.findings import Issue

INT16 = np.iinfo(np.int16)
_NARROW_HU = 64  # a fractional range below this is no CT
_METAL_HU = 4000


def judge_values(minimum: float, maximum: float, is_fractional: bool) -> list[Issue]:
    """At most one finding about the range of an image.

    Args:
        minimum: smallest value.
        maximum: largest value.
        is_fractional: whether any value is not a whole number.
    """
    span = f'{minimum:.6g} to {maximum:.6g}'
    if minimum < INT16.min or maximum > INT16.max:
        fix = 'check the rescale slope; --allow=value_range clips'
        return [Issue('value_range', 'error', f'{span}, beyond 16 bits', fix)]
    if is_fractional and maximum - minimum < _NARROW_HU:
        fix = 'give the original HU; normalised values do not survive rounding'
        return [Issue('normalised', 'error', f'fractions in {span}', fix)]
    if minimum >= 0 and maximum <= 255:
        value, fix = 'looks like 8-bit grey values', 'give the original HU if you have them'
    elif minimum >= 0:
        value = 'no negative value'
        fix = 'air is -1000 HU: subtract the offset (often 1024) if it is missing'
    elif maximum > _METAL_HU:
        value = f'above {_METAL_HU}'
        fix = 'metal, or a wrong rescale slope; values are clipped for training'
    else:
        return []
    return [Issue('hu_suspicious', 'warning', f'{span}: {value}', fix)]
