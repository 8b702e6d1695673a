"""The offline page: complete, self-contained, with its pictures inside."""

import base64
import html.parser
import io
import json

import matplotlib.image
import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report.build import report
from maxquery_jax.report.evaluate import evaluate
from maxquery_jax.report.page import write_page
from maxquery_jax.report.tables import Table
from tests import processes


class _Page(html.parser.HTMLParser):
    """Collects tags, picture sources and text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.sources, self.words, self.open = [], [], [], []
        self.feed(path.read_text())
        self.text = ' '.join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ('img', 'meta'):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ('src', 'href')]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def pictures(self):
        prefix = 'data:image/png;base64,'
        assert all(source.startswith(prefix) for source in self.sources)
        return [
            matplotlib.image.imread(io.BytesIO(base64.b64decode(source.removeprefix(prefix))))
            for source in self.sources
        ]


def _run(tmp_path):
    run = tmp_path / 'run'
    helper.write_images(tmp_path / 'raw')
    helper.write_run(run, tmp_path / 'store', tmp_path / 'raw')
    helper.write_predictions(run / 'predictions' / 'test')
    return run


def test_page_of_a_run(tmp_path):
    run = _run(tmp_path)
    summary = evaluate(model=run)
    page = report(model=run)
    assert page == run / 'report.html'
    parsed = _Page(page)
    assert not parsed.open and 'script' not in parsed.tags and 'link' not in parsed.tags
    assert [picture.shape for picture in parsed.pictures()] == [
        (1200, 1100, 4),
        (1500, 1440, 4),
        (420, 1440, 4),
    ]
    value = summary['metrics']['ood_case/query_logit/auc']['value']
    for word in (f'{100 * value:.1f}', 'OOD localisation', 'cyst', 'case mean', 'percentile'):
        assert word in parsed.text
    for case in helper.CASES:
        assert f'{case} slice' in parsed.text
    names = sorted(path.name for path in (run / 'report').iterdir())
    assert names == ['cases_0.png', 'cases_1.png', 'progress.png']


def test_page_before_evaluation_says_so(tmp_path):
    run = _run(tmp_path)
    parsed = _Page(report(model=run, cases=2))
    assert 'run launch.evaluate' in parsed.text and 'table' not in parsed.tags
    assert '2 of 5 cases are drawn' in parsed.text
    assert 'a slice' in parsed.text and 'e slice' in parsed.text  # both ends of the list


@pytest.mark.parametrize('with_truth', [True, False])
def test_page_of_a_prediction_folder(tmp_path, with_truth):
    helper.write_images(tmp_path / 'raw')
    helper.write_predictions(tmp_path / 'predictions')
    page = report(
        predictions=tmp_path / 'predictions',
        images=tmp_path / 'raw' / 'images',
        labels=tmp_path / 'raw' / 'labels' if with_truth else None,
        output=tmp_path / 'out',
        cases=1,
    )
    assert page == tmp_path / 'out' / 'report.html'
    (picture,) = _Page(page).pictures()
    assert picture.shape == (420, 1440, 4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, 'either --model'),
        ({'predictions': 'x'}, 'needs --images'),
        ({'model': 'x', 'cases': -1}, 'cases must be'),
        ({'model': 'nowhere'}, r'nowhere/manifest\.json does not exist'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        report(**arguments)


def test_missing_image_and_foreign_summary_are_named(tmp_path):
    run = _run(tmp_path)
    (tmp_path / 'raw/images/b.nii.gz').unlink()
    with pytest.raises(UserError, match=r'images/b\.nii\.gz'):
        report(model=run)
    (run / 'summary.json').write_text(json.dumps({'format': 'maxquery_jax/summary', 'version': 99}))
    with pytest.raises(UserError, match='version 99'):
        report(model=run)


def test_text_is_escaped(tmp_path):
    table = Table('<b>', ('a & b',), (('<script>alert(1)</script>',),))
    write_page(tmp_path / 'x.html', title='1 < 2', tables=[table], notes=['"quoted" <i>'])
    text = (tmp_path / 'x.html').read_text()
    assert '<script' not in text and '<b>' not in text and '<i>' not in text
    assert '<script>alert(1)</script>' in _Page(tmp_path / 'x.html').text


@pytest.mark.integration
def test_the_command(tmp_path, python, request):
    run = _run(tmp_path)
    done = processes.run(
        [python, '-m', 'launch.report', f'--model={run}', '--cases=1'],
        cwd=request.config.rootpath,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f'written: {run / "report.html"}'
