"""Flags that name a raw data set and say how it is judged; shared by prepare and check."""

import pathlib
from typing import Any

from absl import flags

from launch import _reading
from maxquery_jax.data.labels import RoleFlags
from maxquery_jax.data.raw import read_json, read_splits
from maxquery_jax.data.sources import PairOptions
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.data.taxonomy import TAXONOMIES

_DATASET = flags.DEFINE_string('dataset', 'decathlon', 'Data set or layout; --list shows all.')
_SOURCE = flags.DEFINE_string('source', '', 'Folder of the raw data.')
_IMAGES = flags.DEFINE_list(
    'images', [], 'pairs: pattern of the images, *_ct.nii.gz, */dicom or *.zip; one per channel.'
)
_LABELS = flags.DEFINE_string('labels', '', "pairs: pattern of the label maps, '*_seg.nii.gz'.")
_LABEL_NAMES = flags.DEFINE_string('label_names', '', 'pairs: names of the ids, 1:liver,2:tumour.')
_SPEC = flags.DEFINE_string('spec', None, 'custom: JSON file that describes your own data.')
_TAXONOMY = flags.DEFINE_enum(
    'taxonomy', None, list(TAXONOMIES), 'Give every store the label table of ZePT Table 8.'
)
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
_FOLDS = flags.DEFINE_integer('folds', None, 'Cross-validation: number of folds, such as 5.')
_FOLD = flags.DEFINE_integer('fold', None, 'Cross-validation: the fold that validates, from 0.')
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes; 0 for none, by default as many as help (at most 2).', lower_bound=0
)
flags.adopt_module_key_flags(_reading)


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
        'taxonomy': _TAXONOMY.value,
        'spec': _SPEC.value,
        'read': _reading.options(),
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
    drawn = _SPLIT.value, _VAL.value, _TEST.value, _SEED.value
    return SplitOptions(*drawn, given, _FOLDS.value, _FOLD.value)
