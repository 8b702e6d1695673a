"""Predicts CT scans: a mask and an anomaly map in each scan's own geometry, and a JSON record.

    python -m launch.predict --model=runs/liver --input=scan.nii.gz --output=out
    python -m launch.predict --model=runs/liver --input=folder_of_scans --output=out
    python -m launch.predict --model=runs/liver --input=dicom_folder --output=out \\
        --output_type=nifti,dicom_seg
    python -m launch.predict --model=runs/liver --split=test
    python -m launch.predict --model=runs/fold0,runs/fold1 --input=scan.nii.gz --output=out
    python -m launch.predict --model=runs/liver --input=folder_of_scans --output=out --part=1/4

Several runs are an ensemble: the mean of their logits and of each raw score. Parts share a folder
of scans out to hosts that see the same disk. For a scan X.nii.gz the output folder receives
X_seg.nii.gz (classes), X_ood.nii.gz (anomaly score, larger is more anomalous) and X.json (volumes,
lesions, case score). With several input channels name the files X_0000.nii.gz, X_0001.nii.gz, ...
Finished scans are skipped, so the same command continues after an interruption. A bad file is
named, the others are still predicted, and the exit code is 2. No tag of a DICOM input reaches logs
or outputs but UIDs, in X_seg.dcm only.
"""

from absl import flags

from launch import _cli, _model, _part, _reading, _zept

_INPUT = flags.DEFINE_string(
    'input', None, 'A .nii or .nii.gz file, a DICOM folder or .zip, or a folder of these.'
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder for the results; with --split the default is RUN/predictions/SPLIT.'
)
_SPLIT = flags.DEFINE_string('split', None, 'In place of --input: test, val or train of its data.')
_OUTPUT_TYPE = flags.DEFINE_list(
    'output_type',
    ['nifti'],
    'nifti (always written), dicom_seg: the mask as DICOM-SEG, for DICOM input. It keeps the UIDs '
    'of study and images, which archives need; all other tags of patient and study are blank.',
)
_SCORES = flags.DEFINE_list(
    'scores',
    None,
    'Scores to write, the primary one first: query_logit (of MaxQuery and ZePT), query_softmax, '
    'category_logit, category_softmax (alone without queries); of ZePT also tumour_logit, '
    'tumour_anomaly_logit, seen_logit, seen_anomaly_logit, unseen_logit; or all.',
)
_STEP_SIZE = flags.DEFINE_float(
    'step_size',
    None,
    'Distance between tiles as a fraction of the patch; smaller is slower and smoother. '
    'Default 0.5 on GPU and TPU, 0.75 on CPU.',
)
_MIRROR = flags.DEFINE_bool('mirror', False, 'Average over 8 mirrored copies; 8 times the work.')
_BATCH_SIZE = flags.DEFINE_integer(
    'batch_size',
    None,
    'Tiles per call of the network, shared out to the devices of the host. Default one per GPU or '
    'TPU; 1 on CPU.',
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Predict finished scans again.')
_MAX_MEMORY_GB = flags.DEFINE_float('max_memory_gb', None, 'Refuse scans above; default 90 %.')
_MIN_LESION_ML = flags.DEFINE_float('min_lesion_ml', 0.01, 'Smaller lesions are not listed.')
for group in (_model, _part, _reading, _zept):
    flags.adopt_module_key_flags(group)


def main() -> None:
    """Predicts `--input` or `--split` with `--model`."""
    from maxquery_jax.inference.predict import predict

    reading, part = _reading.options(), _part.own_part()
    predict(
        _model.load(),
        _INPUT.value,
        _OUTPUT.value,
        split=_SPLIT.value,
        part=part,
        scores=_SCORES.value,
        step_size=_STEP_SIZE.value,
        batch_size=_BATCH_SIZE.value,
        mirror=_MIRROR.value,
        overwrite=_OVERWRITE.value,
        max_memory_gb=_MAX_MEMORY_GB.value,
        min_lesion_ml=_MIN_LESION_ML.value,
        allow=reading.allow,
        nan_policy=reading.nan_policy,
        assume_orientation=reading.assume_orientation,
        series=reading.series,
        output_types=_OUTPUT_TYPE.value,
        **_zept.options(),
    )


if __name__ == '__main__':
    _cli.run(main)
