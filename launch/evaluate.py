"""Scores predictions: Dice, surfaces, lesions, OOD localisation and OOD cases, with 95% intervals.

    python -m launch.evaluate --model=RUN
    python -m launch.evaluate --model=RUN --split=val
    python -m launch.evaluate --predictions=DIR --labels=DIR [--label_map=F] [--output=DIR]
    python -m launch.evaluate --model=RUN --groups=subtypes.csv
    python -m launch.evaluate --model=RUN --part=1/2    # on one host
    python -m launch.evaluate --model=RUN --part=2/2    # on another
    python -m launch.evaluate --model=RUN --merge=2     # when both are done

--model evaluates RUN/predictions/SPLIT against the labels that the run's store was made from.
--predictions evaluates any folder that launch.predict wrote; DIR of --labels holds X.nii.gz for
each X_seg.nii.gz, in the same geometry. Labels that join left and right, or that are folders of
masks X/NAME.nii.gz, need --label_map=STORE/manifest.json, which says how to read them. Writes
summary.json (docs/summary_schema.md) and cases.csv. Parts are left beside it in
summary.i_of_n.npz; the merge checks them against today's files and flags and gives the very
summary that one process would have written. --groups adds the metrics of each group of cases, by a
CSV file with the header case,NAME; with parts, give it to the merge.
"""

from absl import flags

from launch import _cli
from maxquery_jax.errors import UserError
from maxquery_jax.report.evaluate import evaluate, evaluate_part

_MODEL = flags.DEFINE_string('model', None, 'Run directory that launch.train wrote.')
_SPLIT = flags.DEFINE_string('split', 'test', "Split of the run's store: train, val or test.")
_PREDICTIONS = flags.DEFINE_string('predictions', None, 'Folder that launch.predict wrote.')
_LABELS = flags.DEFINE_string(
    'labels', None, "Folder with the truth. With --model: where the store's source has moved to."
)
_LABEL_MAP = flags.DEFINE_string(
    'label_map',
    None,
    'JSON file {"raw label id": class id}, or a store\'s manifest.json; by default the map in the '
    "predictions' own .json files.",
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder for the results; by default RUN (test split) or the predictions.'
)
_DILATE_MM = flags.DEFINE_float(
    'dilate_mm', 0.0, 'Margin in mm around the organ region in which voxels are ranked.'
)
_NSD_TOLERANCE_MM = flags.DEFINE_float(
    'nsd_tolerance_mm', 2.0, 'Distance in mm between surfaces that the NSD counts as agreement.'
)
_MIN_LESION_ML = flags.DEFINE_float(
    'min_lesion_ml', 0.01, 'Components below this volume, in truth and prediction, are no lesions.'
)
_LESION_OVERLAP = flags.DEFINE_float(
    'lesion_overlap',
    0.1,
    'Share of a lesion that has to be covered for it to be found; 0: a voxel.',
)
_RESAMPLES = flags.DEFINE_integer(
    'resamples', 1000, 'Bootstrap resamples of the cases.', lower_bound=1000
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the bootstrap.', lower_bound=0)
_PART = flags.DEFINE_string(
    'part', None, 'i/n: measure the i-th of n parts of the cases only, for --merge=n.'
)
_MERGE = flags.DEFINE_integer(
    'merge', None, 'n: make the summary of the n parts that --part has measured.', lower_bound=1
)
_GROUPS = flags.DEFINE_string('groups', None, 'CSV file "case,NAME": metrics by group, too.')


def main() -> None:
    """Runs the verb."""
    measuring = {
        'predictions': _PREDICTIONS.value,
        'labels': _LABELS.value,
        'label_map': _LABEL_MAP.value,
        'model': _MODEL.value,
        'split': _SPLIT.value,
        'output': _OUTPUT.value,
        'dilate_mm': _DILATE_MM.value,
        'nsd_tolerance_mm': _NSD_TOLERANCE_MM.value,
        'min_lesion_ml': _MIN_LESION_ML.value,
        'lesion_overlap': _LESION_OVERLAP.value,
    }
    if _PART.value is None:
        evaluate(
            **measuring,
            resamples=_RESAMPLES.value,
            seed=_SEED.value,
            merge=_MERGE.value,
            groups=_GROUPS.value,
        )
    elif _MERGE.value is None:
        evaluate_part(_PART.value, **measuring)
    else:
        raise UserError('give --part=i/n on each host and --merge=n afterwards, not both at once')


if __name__ == '__main__':
    _cli.run(main)
