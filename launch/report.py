"""Draws a run or a folder of predictions: one offline HTML page, and PNGs in report/.

    python -m launch.report --model=RUN [--split=test] [--cases=N]
    python -m launch.report --predictions=DIR --images=DIR [--labels=DIR] [--output=DIR]

The page holds the tables of summary.json (run launch.evaluate first), the training curves of
--model, and CT, truth, prediction and anomaly map of some cases. It loads nothing from elsewhere.
"""

from absl import flags

from launch import _cli
from maxquery_jax.report.build import NUM_CASES, report

_MODEL = flags.DEFINE_string('model', None, 'Run directory that launch.train wrote.')
_SPLIT = flags.DEFINE_string('split', 'test', "Split of the run's store: train, val or test.")
_PREDICTIONS = flags.DEFINE_string('predictions', None, 'Folder that launch.predict wrote.')
_IMAGES = flags.DEFINE_string('images', None, 'Folder with the scans, for --predictions.')
_LABELS = flags.DEFINE_string('labels', None, 'Folder with the truth, if there is one.')
_LABEL_MAP = flags.DEFINE_string(
    'label_map', None, 'JSON file {"raw label id": class id}; see launch.evaluate.'
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder for the page; by default RUN or the predictions.'
)
_CASES = flags.DEFINE_integer('cases', NUM_CASES, 'How many cases to draw.', lower_bound=0)


def main() -> None:
    """Runs the verb."""
    page = report(
        model=_MODEL.value,
        split=_SPLIT.value,
        predictions=_PREDICTIONS.value,
        images=_IMAGES.value,
        labels=_LABELS.value,
        label_map=_LABEL_MAP.value,
        output=_OUTPUT.value,
        cases=_CASES.value,
    )
    print(f'written: {page}', flush=True)


if __name__ == '__main__':
    _cli.run(main)
