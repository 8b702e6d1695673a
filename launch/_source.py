"""Flags that name a raw data set and say how it is judged; shared by prepare and check."""

import pathlib
from typing import Any

from absl import flags

from maxquery_jax.data.findings import CHECKS
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.raw import read_json, read_splits
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.sources import LAYOUTS, PairOptions
from maxquery_jax.data.splits import SplitOptions

_DATASET = flags.DEFINE_enum(
    'dataset', 'decathlon', list(LAYOUTS), '; '.join(f'{k}: {v}' for k, v in LAYOUTS.items())
)
_SOURCE = flags.DEFINE_string('source', '', 'Folder of the raw data.')
_IMAGES = flags.DEFINE_list(
    'images', [], "pairs: pattern of the images, '*_ct.nii.gz'; one per channel, with commas."
)
_LABELS = flags.DEFINE_string('labels', '', "pairs: pattern of the label maps, '*_seg.nii.gz'.")
_LABEL_NAMES = flags.DEFINE_string('label_names', '', 'pairs: names of the ids, 1:liver,2:tumour.')
_CHANNELS = flags.DEFINE_list('channels', [], 'pairs: names of the channels.')
_ROLES = {
    'organ': flags.DEFINE_list(
        'organ', [], 'Labels that are organs; name=a+b joins labels into one class, * is the rest.'
    ),
    'tumour': flags.DEFINE_list('tumour', [], 'Labels that are tumours to be learnt.'),
    'ood': flags.DEFINE_list(
        'ood', [], 'Labels that are unknown tumours: their cases are kept for testing.'
    ),
    'ignore': flags.DEFINE_list('ignore', [], 'Labels that count as background.'),
}
_SPLIT = flags.DEFINE_enum(
    'split', 'random', ['random', 'all_train'], 'How to divide cases that come without a division.'
)
_SPLITS = flags.DEFINE_string(
    'splits', '', 'JSON file {"train": [case ids], "val": [...], "test": [...]}; wins over --split.'
)
_VAL = flags.DEFINE_float('val_fraction', SplitOptions.val_fraction, 'Share of validation cases.')
_TEST = flags.DEFINE_float('test_fraction', SplitOptions.test_fraction, 'Share of test cases.')
_SEED = flags.DEFINE_integer('split_seed', 0, 'Seed of the division.')
_ALLOW = flags.DEFINE_list(
    'allow', [], f'Errors to accept, by name. A case of no use is left out. Of: {", ".join(CHECKS)}'
)
_NAN = flags.DEFINE_enum(
    'nan_policy', 'error', ['error', 'fill'], 'NaN and Inf: refuse, or replace by -1024 HU.'
)
_ORIENTATION = flags.DEFINE_string(
    'assume_orientation', None, 'Axes of files that hold no affine, such as LPS.'
)
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes; 0 for none, by default as many as help (at most 2).', lower_bound=0
)


def dataset() -> tuple[str, str]:
    """Layout and folder."""
    return _DATASET.value, _SOURCE.value


def options() -> dict[str, Any]:
    """Keyword arguments that `prepare` and `check_dataset` share."""
    return {
        'pairs': PairOptions(
            tuple(_IMAGES.value), _LABELS.value, _LABEL_NAMES.value, tuple(_CHANNELS.value)
        ),
        'roles': RoleFlags(**{role: tuple(flag.value) for role, flag in _ROLES.items()}),
        'read': ReadOptions(frozenset(_ALLOW.value), _NAN.value, _ORIENTATION.value),
        'split': _split(),
        'workers': _WORKERS.value,
    }


def _split() -> SplitOptions:
    given = None
    if _SPLITS.value:
        given = read_splits(
            read_json(pathlib.Path(_SPLITS.value), 'give a JSON file with the splits'),
            _SPLITS.value,
        )
    return SplitOptions(_SPLIT.value, _VAL.value, _TEST.value, _SEED.value, given)
