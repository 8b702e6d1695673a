"""Draws runs and folders of predictions: one offline HTML page, and PNGs in report/.

    python -m launch.report --model=RUN [--split=test] [--cases=N]
    python -m launch.report --predictions=DIR --images=DIR [--labels=DIR] [--output=DIR]
    python -m launch.report --method=MSP=RUN1:category_softmax --method=Ours=RUN2 --output=DIR
    python -m launch.report --study=DIR --seed=0 --method=MSP=VARIANT:category_softmax --output=DIR
    python -m launch.report --model=RUN --queries [--against=RUN2]

The page holds the tables of summary.json (run launch.evaluate first), the training curves of
--model, and CT, truth, prediction and anomaly map of some cases. It loads nothing from elsewhere.

--method, once per column, adds the anomaly maps of several methods side by side (compare.png,
MaxQuery Fig. 4) on the slices with the largest unknown tumours. --queries adds the assignments of
representative queries (query_assignments.png, Fig. 5), of all queries (query_grid.png, Fig. 6;
--against draws a second run beside it), and report/queries.json: which query takes which class.
"""

from absl import flags

from launch import _cli
from maxquery_jax.report.build import NUM_CASES, report
from maxquery_jax.report.compare import parse_method

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
_METHOD = flags.DEFINE_multi_string(
    'method',
    [],
    'TITLE=RUN:SCORE or TITLE=PREDICTIONS:SCORE; a column of the comparison. Without :SCORE the '
    'primary score.',
)
_STUDY = flags.DEFINE_string(
    'study', None, 'Folder of a study; RUN in --method then names one of its variants.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the runs taken from --study.', lower_bound=0)
_QUERIES = flags.DEFINE_bool(
    'queries', False, 'Draw query assignments; runs the network of --model over the split.'
)
_AGAINST = flags.DEFINE_string(
    'against', None, 'Second run for --queries, e.g. the one without QD loss.'
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
        methods=[parse_method(text, _STUDY.value, _SEED.value) for text in _METHOD.value],
        queries=_QUERIES.value,
        against=_AGAINST.value,
    )
    print(f'written: {page}', flush=True)


if __name__ == '__main__':
    _cli.run(main)
