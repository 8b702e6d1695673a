"""Methods side by side: same cases and slices, scaled for display, every missing file named."""

import dataclasses
import pathlib

import matplotlib.image
import numpy as np
import prediction_helper as helper
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.report import compare as compare_lib
from maxquery_jax.report.build import report
from maxquery_jax.report.case_files import CaseFiles, PredictionSet
from maxquery_jax.report.compare import Method, OodSlice, compare, parse_method
from maxquery_jax.report.labels import LabelTable
from tests import processes
from tests.inference import query_run

TABLE = LabelTable.from_json(helper.LABELS, 'labels')
SCORES = ('query_logit', 'category_logit')


def _canonical(array):
    """[x, y, z] of the helper's affine, x to the left and y to the back, as [S, A, R]."""
    return array.transpose(2, 1, 0)[:, ::-1, ::-1]


@pytest.fixture
def study(tmp_path):
    """Two runs on one store, below variants of a study, and the raw files behind it."""
    helper.write_images(tmp_path / 'raw')
    for name, scores in (('ours', SCORES), ('other', ('category_logit',))):
        run = tmp_path / name / 'seed0'
        helper.write_run(run, tmp_path / f'store_{name}', tmp_path / 'raw')
        helper.write_predictions(run / 'predictions' / 'test', scores)
    return tmp_path


def test_methods_are_parsed():
    assert parse_method('MSP=runs/a:category_softmax') == Method(
        'MSP', pathlib.Path('runs/a'), 'category_softmax'
    )
    assert parse_method('Ours = x=runs/a') == Method('Ours', pathlib.Path(' x=runs/a'))
    assert parse_method('A=/x:y/run') == Method('A', pathlib.Path('/x:y/run'))
    found = parse_method('A=nnunet:sml', 'work', 2)
    assert found == Method('A', pathlib.Path('work/nnunet/seed2'), 'sml')
    for text in ('runs/a:msp', '=runs/a', 'A=', 'A=:score'):
        with pytest.raises(UserError, match=r'must look like TITLE=RUN:SCORE'):
            parse_method(text)


def test_slices_with_most_unknown_tumour(study):
    found = compare_lib.open_run(study / 'ours' / 'seed0')
    slices = compare_lib.find_ood_slices(found)
    assert [s.case.case for s in slices] == ['d', 'e']
    for chosen in slices:
        area = (_canonical(helper.make_truth(chosen.case.case)) == 4).sum(axis=(1, 2))
        assert (chosen.area, chosen.place) == (area.max(), area.argmax())
        assert chosen.kind == 4


def test_each_type_comes_before_a_second_of_one():
    def make(case, area, kind):
        return OodSlice(CaseFiles(case, pathlib.Path(), {}, {}), 0, area, kind)

    a, b, c, d = make('a', 50, 5), make('b', 40, 5), make('c', 10, 6), make('d', 5, 7)
    assert compare_lib.choose_slices([d, c, b, a], 4) == [a, c, d, b]
    assert compare_lib.choose_slices([d, c, b, a], 2) == [a, c]
    assert compare_lib.choose_slices([make('z', 9, 5), make('y', 9, 5)], 1)[0].case.case == 'y'
    assert compare_lib.choose_slices([], 4) == []


def test_all_methods_share_cases_and_slices(study):
    methods = [
        Method('Ours', study / 'ours' / 'seed0'),
        Method('MaxLogit', study / 'other' / 'seed0', 'category_logit'),
    ]
    rows = compare(methods, study / 'out' / 'x.png')
    assert matplotlib.image.imread(study / 'out' / 'x.png')[..., :3].std() > 0.1
    assert len(rows) == 2
    places = {s.case.case: s.place for s in compare_lib.find_ood_slices(
        compare_lib.open_run(study / 'ours' / 'seed0'))}  # fmt: skip
    for row in rows:
        case = row.title[0]
        assert row.title == f'{case}\nfnh, slice {places[case] + 1}/8'
        # The margin of 20 mm reaches over all of a slice of 11 mm.
        np.testing.assert_array_equal(row.truth, _canonical(helper.make_truth(case))[places[case]])
        for values, name in zip(row.maps, ('query_logit', 'category_logit'), strict=True):
            expected = _canonical(helper.make_score(case, name))[places[case]]
            np.testing.assert_array_equal(values, expected)
        assert row.image.shape == row.truth.shape and row.aspect == pytest.approx(0.9 / 0.8)
    assert compare(methods, study / 'x.png', num_rows=1)[0].title == rows[0].title


def test_panels():
    rng = np.random.default_rng(0)
    maps = tuple(rng.normal(5, 3, (6, 8)) for _ in range(3))
    label = np.zeros((6, 8), np.uint8)
    label[2:4, 3:5] = 4
    rows = [compare_lib.CompareRow(f'case {i}', np.zeros((6, 8)), label, maps, 1.0) for i in (0, 1)]
    figure = compare_lib.draw_compare(rows, ['MSP', 'SML', 'Ours'], TABLE)
    assert len(figure.axes) == 2 * (2 + 3)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:5] == ['CT', 'truth', 'MSP', 'SML', 'Ours'] and set(titles[5:]) == {''}
    assert [figure.axes[i].get_ylabel() for i in (0, 5)] == ['case 0', 'case 1']
    assert [len(axes.images) for axes in figure.axes[:5]] == [1, 2, 1, 1, 1]
    for axes, values in zip(figure.axes[2:5], maps, strict=True):
        shown = np.asarray(axes.images[0].get_array())
        scaled = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(shown, scaled[::-1, ::-1], atol=1e-6)
    overlay = np.asarray(figure.axes[1].images[1].get_array())[::-1, ::-1]
    red, green, blue, alpha = overlay[2, 3]
    assert blue > max(red, green) and alpha > 0 and overlay[0, 0, 3] == 0
    assert not compare_lib.scale_for_display(np.full((2, 2), 3.0)).any()


def test_region_shown():
    label = np.zeros((100, 80), np.uint8)
    label[40:50, 30:35] = 1
    label[45:55, 32:33] = 4
    rows, columns = compare_lib.region_shown(label, TABLE, (1.0, 2.0), margin_mm=5.0)
    assert (rows.start, rows.stop) == (35, 60) and (columns.start, columns.stop) == (27, 38)
    rows, columns = compare_lib.region_shown(label, TABLE, (1.0, 2.0), margin_mm=45.0)
    assert (rows.start, columns.start) == (0, 7)
    empty = compare_lib.region_shown(np.zeros((4, 4), np.uint8), TABLE, (1.0, 1.0))
    assert empty == (slice(None), slice(None))


def test_missing_predictions_name_file_and_command(study):
    ours, other = study / 'ours' / 'seed0', study / 'other' / 'seed0'
    methods = [Method('Ours', ours), Method('SML', other, 'sml')]

    def fails(message):
        with pytest.raises(UserError) as caught:
            compare(methods, study / 'x.png')
        assert '\n' not in str(caught.value)
        for part in message:
            assert part in str(caught.value)

    command = f'python -m launch.predict --model={other} --split=test --scores=category_logit,sml'
    folder = other / 'predictions' / 'test'
    fails([f'{folder}/d_ood-sml.nii.gz (SML) does not exist', command])
    methods[1] = Method('MaxLogit', other)
    for file in folder.glob('e*'):
        file.unlink()
    fails([f'{folder}/e_ood.nii.gz (MaxLogit) does not exist', command.removesuffix(',sml')])
    for file in folder.iterdir():
        file.unlink()
    fails([f'{folder} (MaxLogit) holds no prediction', f'--model={other} --split=test'])
    methods[1] = Method('Lost', study / 'lost')
    fails([f'{study}/lost (Lost) does not exist'])
    methods[1] = Method('Ours again', ours)
    (ours / 'predictions' / 'test' / 'a_seg.nii.gz').unlink()
    fails([f'{ours}/predictions/test/a_ood.nii.gz (Ours)', '--scores=query_logit,category_logit'])
    assert not (study / 'x.png').exists()


def test_folders_of_predictions(study):
    folder = study / 'ours' / 'seed0' / 'predictions' / 'test'
    raw = study / 'raw'
    method = Method('Ours', folder, 'query_logit')
    rows = compare([method], study / 'x.png', images=raw / 'images', labels=raw / 'labels')
    assert sorted(row.title[0] for row in rows) == ['d', 'e']
    with pytest.raises(UserError, match='give --images and --labels'):
        compare([method], study / 'x.png')
    with pytest.raises(UserError, match=r'--model=RUN --input=SCANS --output=.* --scores=.*,sml'):
        compare(
            [Method('SML', folder, 'sml')],
            study / 'x.png',
            images=raw / 'images',
            labels=raw / 'labels',
        )
    with pytest.raises(UserError, match='--method=TITLE=RUN:SCORE'):
        compare([], study / 'x.png')


def test_split_without_unknown_tumour(tmp_path):
    helper.write_images(tmp_path / 'raw')
    run = tmp_path / 'run'
    helper.write_run(
        run, tmp_path / 'store', tmp_path / 'raw', {'train': [], 'val': ['a', 'b'], 'test': []}
    )
    helper.write_predictions(run / 'predictions' / 'val', cases=('a', 'b'))
    with pytest.raises(UserError, match='no case of run, val has an unknown tumour'):
        compare([Method('Ours', run)], tmp_path / 'x.png', split='val')


def test_page_of_a_comparison(study):
    methods = [parse_method(f'{title}={title}', study) for title in ('ours', 'other')]
    page = report(methods=methods, output=study / 'out')
    text = page.read_text()
    assert 'Comparison of methods' in text and text.count('<img') == 1
    assert 'within the region shown, for display only' in text
    assert [path.name for path in (study / 'out' / 'report').iterdir()] == ['compare.png']
    with pytest.raises(UserError, match='needs --output'):
        report(methods=methods)
    added = report(model=methods[0].path, methods=methods, cases=1).read_text()
    assert added.count('<img') == 3


def test_scan_prepared_from_dicom(tmp_path):
    """The series that was predicted is shown, also where a folder holds two."""
    dicom = pytest.importorskip('tests.data.dicom.dicom_helper')
    from maxquery_jax.data import volumes

    rng = np.random.default_rng(0)
    hu = rng.integers(-100, 100, (7, 6, 5)).astype(np.int16)
    place = dicom.Place(spacing=(1.0, 1.0, 1.0))
    source = dicom.write_series(tmp_path / 'scan', hu, place)
    first = volumes.read_image(source)
    dicom.write_series(tmp_path / 'scan' / 'second', hu + 1, place, uid='1.2.66')
    info = {'input': [{'file': 'scan', 'series': first.header.series_id}]}
    case = CaseFiles('scan', pathlib.Path(), {}, info, image=source)
    np.testing.assert_array_equal(compare_lib.read_case_image(case).array, first.array)
    with pytest.raises(UserError, match='dicom_series: 2 series'):
        compare_lib.read_case_image(dataclasses.replace(case, info={}))
    with pytest.raises(UserError, match='has no image; give the folder with --images'):
        compare_lib.read_case_image(dataclasses.replace(case, image=None))


def test_case_picture_of_a_dicom_scan(tmp_path):
    """`build._load_slice` puts a DICOM scan under the prediction made from it."""
    dicom = pytest.importorskip('tests.data.dicom.dicom_helper')
    from maxquery_jax.data.nifti import to_canonical, write_like
    from maxquery_jax.data.volumes import read_image
    from maxquery_jax.report import build

    hu = np.arange(7 * 6 * 5).reshape(7, 6, 5).astype(np.int16)
    source = dicom.write_series(tmp_path / 'scan', hu, dicom.Place(np.diag([-1, -1, 1])))
    volume = read_image(source)
    label = np.zeros(volume.array.shape, np.uint8)
    label[2:5, 2:4, 3] = 2
    write_like(tmp_path / 'seg.nii.gz', label, volume.header, 'uint8')
    write_like(tmp_path / 'ood.nii.gz', volume.array, volume.header, 'float16')
    case = CaseFiles(
        'scan', tmp_path / 'seg.nii.gz', {'query_logit': tmp_path / 'ood.nii.gz'}, {}, image=source
    )
    found = PredictionSet((case,), TABLE, {}, ('query_logit',), 'x', tmp_path)
    piece = build._load_slice(case, found)
    expected = to_canonical(volume)[0]
    place = int(piece.title.split()[2].split('/')[0]) - 1
    np.testing.assert_array_equal(piece.image, expected[place])
    np.testing.assert_array_equal(piece.anomaly, expected[place])
    assert (piece.prediction == 2).sum() == 6


@pytest.mark.integration
def test_the_commands(tmp_path, python, request):
    """Predict, then every figure, as README says it."""
    store = query_run.write_store(tmp_path / 'store', tmp_path / 'raw')
    study = tmp_path / 'study'
    for seed, variant in enumerate(('qd', 'no_qd')):
        query_run.write_run(study / variant / 'seed0', store, seed=seed, qd_weight=0.1 - seed / 10)

    def run(verb, *flags):
        done = processes.run(
            [python, '-m', f'launch.{verb}', *flags],
            cwd=request.config.rootpath,
        )
        return done.returncode, done.stdout, done.stderr

    ours, other = '--method=MaxQuery=qd:query_logit', '--method=without QD loss=no_qd'
    compare_flags = (f'--study={study}', '--seed=0', ours, other, f'--output={study / "figures"}')
    code, _, err = run('report', *compare_flags)
    assert code == 2 and f'predict --model={study}/qd/seed0 --split=test' in err
    for variant in ('qd', 'no_qd'):
        code, _, err = run('predict', f'--model={study}/{variant}/seed0', '--split=test')
        assert code == 0, err
    code, out, err = run('report', *compare_flags)
    assert code == 0, err
    assert out.splitlines()[-1] == f'written: {study}/figures/report.html'
    model = study / 'qd' / 'seed0'
    code, _, err = run('report', f'--model={model}', '--queries', f'--against={study}/no_qd/seed0')
    assert code == 0, err
    names = sorted(path.name for path in (model / 'report').iterdir())
    assert names == [
        'cases_0.png', 'progress.png', 'queries.json', 'query_assignments.png', 'query_grid.png'
    ]  # fmt: skip
    assert (model / 'report.html').read_text().count('<img') == 4
