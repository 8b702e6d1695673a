"""Which types of tumour a case of a cohort has, as a file of groups that `evaluate` reads.

A label may cover several types (`tumours.PAN_TUMOURS`). `dataset.json` has recorded the types of
every case from the first release on, so a cohort without the file says as much.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maxquery_jax.data.groups import read_groups, to_csv
from maxquery_jax.errors import UserError
from maxquery_jax.files import write_text

FILE = 'subtypes.csv'
COLUMN = 'subtype'


def write_subtypes(
    folder: pathlib.Path, tumours: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes `FILE`: a row per case with a tumour, several types sorted and joined by '+'.

    Args:
        folder: of the cohort.
        tumours: case id to its tumours, as in dataset.json.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(folder / FILE, to_csv(COLUMN, _join(tumours)))


def add_subtypes(folder: pathlib.Path) -> None:
    """Writes `FILE` into a cohort of an older program, from its dataset.json.

    The cohort stays as it is where that is not to be had or the folder cannot be written to: it is
    complete without.
    """
    tumours = _recorded(folder)
    if tumours and not (folder / FILE).exists():
        with contextlib.suppress(UserError):
            write_subtypes(folder, tumours)


def read_subtypes(folder: pathlib.Path) -> dict[str, str]:
    """Case id to subtype, of `FILE` in any raw data set or of a cohort's dataset.json; else none.

    Raises:
        UserError: the file is there and at fault.
    """
    if (folder / FILE).is_file():
        return dict(read_groups(folder / FILE).group_of)
    return _join(_recorded(folder))


def _recorded(folder: pathlib.Path) -> dict[str, Any]:
    """Tumours by case; none where dataset.json is absent, damaged or not of a cohort."""
    try:
        return json.loads((folder / 'dataset.json').read_bytes())['maxquery_jax']['tumours']
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _join(tumours: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    found = {}
    for case in sorted(tumours):
        # A tumour without volume is not in the labels: another one took its voxels.
        types = {tumour['type'] for tumour in tumours[case] if tumour['volume_ml'] > 0}
        if types:
            found[case] = '+'.join(sorted(types))
    return found
