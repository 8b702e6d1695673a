"""Query figures: counts on assignments made by hand, chosen slices and queries, drawn panels."""

import dataclasses
import json
import pathlib

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from sklearn.metrics import roc_auc_score

from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.queries import QueryReader
from maxquery_jax.report import build, query_figures
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.query_figures import AssignmentSlice
from maxquery_jax.report.query_numbers import (
    class_rows,
    count_queries,
    describe_counts,
    group_confusion,
    ranking_rows,
)
from tests.inference import query_run

TABLE = LabelTable(('background', 'liver', 'cyst', 'fnh'), ('background', 'organ', 'tumour', 'ood'))
GROUPS = (2, 1, 1)
# Columns are voxels: two of background, three of liver, one of cyst, two of fnh.
LABEL = np.array([[[0, 0, 1, 1], [1, 2, 3, 3]]], np.uint8)
M = np.array(
    [
        [0.7, 0.3, 0.1, 0.3, 0.0, 0.1, 0.0, 0.25],
        [0.1, 0.3, 0.1, 0.3, 0.0, 0.1, 0.1, 0.25],
        [0.1, 0.0, 0.7, 0.4, 1.0, 0.5, 0.2, 0.25],
        [0.1, 0.4, 0.1, 0.0, 0.0, 0.3, 0.7, 0.25],
    ]
).reshape(4, 1, 2, 4)


def test_counts_of_a_small_assignment():
    counts = count_queries(M, LABEL, GROUPS, TABLE)
    # Voxel 1 has its largest single assignment in the tumour query, but the two background
    # queries together outweigh it; so with voxel 3 and its organ query.
    np.testing.assert_array_equal(
        counts.winner, [[1, 0, 0, 1], [0, 0, 3, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    )
    confusion = group_confusion(counts, TABLE)
    assert list(confusion) == ['background', 'organ', 'known tumour', 'unknown tumour']
    np.testing.assert_allclose(confusion['background'], [1, 0, 0])
    np.testing.assert_allclose(confusion['organ'], [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(confusion['known tumour'], [0, 1, 0])
    np.testing.assert_allclose(confusion['unknown tumour'], [1 / 2, 0, 1 / 2])
    assert counts.num_used == 3
    flat = M.reshape(4, -1)
    terms = [-sum(p * np.log(p) for p in column if p > 0) for column in flat.T]
    assert counts.mean_entropy == pytest.approx(np.mean(terms))
    assert counts.mean_entropy <= np.log(4)


def _random(seed, shape=(3, 5, 7)):
    rng = np.random.default_rng(seed)
    m = rng.dirichlet(np.ones(4), shape).transpose(3, 0, 1, 2)
    parts = {
        name: rng.normal(size=shape).astype(np.float16)
        for name in ('max_response', 'length', 'category_logit')
    }
    return m, rng.integers(0, 4, shape).astype(np.uint8), parts


def test_description_of_classes_and_ranking():
    """Slabs of two cases, merged, against everything at once."""
    total, all_labels, all_parts, aurocs = None, [], [], []
    for seed, case in enumerate('ab'):
        m, label, parts = _random(seed)
        for part in (slice(0, 1), slice(1, 3)):
            counts = count_queries(
                m[:, part],
                label[part],
                GROUPS,
                TABLE,
                predicted=np.minimum(label, 2)[part],
                parts={name: values[part] for name, values in parts.items()},
                case=case,
            )
            total = counts if total is None else total.merge(counts)
        region = label > 0
        score = -parts['length'][region].astype(float)
        aurocs.append(roc_auc_score(label[region] == 3, score))
        all_labels.append(label)
        all_parts.append(parts)
    assert total is not None
    told = json.loads(json.dumps(describe_counts(total, TABLE, GROUPS)))
    label = np.stack(all_labels)
    length = np.stack([parts['length'] for parts in all_parts]).astype(float)
    ranked = told['ood_auroc']['length']
    assert ranked['organ_region'] == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert (ranked['sign'], ranked['cases']) == (-1, 2)
    tumours = label >= 2
    pooled = roc_auc_score(label[tumours] == 3, -length[tumours])
    assert ranked['tumours'] == pytest.approx(pooled, abs=1e-6)
    assert told['ood_auroc']['category_logit']['sign'] == 1
    for entry in told['classes']:
        values = length[label == entry['id']]
        assert entry['voxels'] == values.size
        assert entry['parts']['length']['mean'] == pytest.approx(values.mean())
        assert entry['parts']['length']['sd'] == pytest.approx(values.std())
        shares = [query['share'] for query in entry['top_queries']]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True)
        assert sum(entry['group_shares'].values()) == pytest.approx(1)
        own = {'background': 'background', 'organ': 'organ'}.get(entry['role'], 'tumour')
        assert entry['group_agreement'] == entry['group_shares'][own]
    assert told['classes'][3]['predicted'] == {'cyst': 1.0}
    assert told['classes'][0]['top_queries'][0]['group'] in query_figures.GROUPS
    assert [row[0] for row in ranking_rows(told, 'x').rows] == [
        '-max_response', '-length', 'category_logit']  # fmt: skip
    table = class_rows(told, 'x')
    assert len(table.rows) == 4 and all(len(row) == len(table.columns) for row in table.rows)


def test_ranking_without_unknown_tumour_is_undefined():
    m, label, parts = _random(3)
    label = np.minimum(label, 2)
    counts = count_queries(m, label, GROUPS, TABLE, parts=parts, case='a')
    told = describe_counts(counts, TABLE, GROUPS)
    ranked = told['ood_auroc']['length']
    assert (ranked['organ_region'], ranked['tumours'], ranked['cases']) == (None, None, 0)
    assert ranking_rows(told, 'x').rows[0][1:] == ('-', '-')
    assert told['classes'][1]['predicted'] == {}  # not given


def _piece(assignment=M, groups=GROUPS, title='case 1 slice 2/3'):
    shape = assignment.shape[-2:]
    label = np.resize(LABEL[0], shape)
    return AssignmentSlice(
        title, np.zeros(shape), label, assignment.reshape(-1, *shape), groups, 1.0
    )


def test_representative_queries_have_the_largest_total():
    # Totals: 1.75, 1.25 | 3.15 | 1.85.
    assert query_figures.choose_queries(_piece()) == [(0, 0), (0, 1), (1, 2), (2, 3)]
    assert query_figures.choose_queries(_piece(), (1, 1, 1)) == [(0, 0), (1, 2), (2, 3)]
    swapped = _piece(M[[1, 0, 2, 3]])
    assert query_figures.choose_queries(swapped, (1, 0, 1)) == [(0, 1), (2, 3)]


def _panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != '<colorbar>' and axes.axison]


def test_panels_of_representative_queries():
    figure = query_figures.draw_assignments([_piece(), _piece(title='ood')], TABLE)
    panels = _panels(figure)
    assert len(panels) == 2 * (1 + 4)
    titles = [axes.get_title() for axes in panels[:5]]
    assert titles == ['CT and truth', 'background', 'background', 'organ', 'tumour']
    assert [axes.texts[0].get_text() for axes in panels[1:5]] == ['0', '1', '2', '3']
    assert [panels[i].get_ylabel() for i in (0, 5)] == ['case 1 slice 2/3', 'ood']
    shown = np.asarray(panels[3].images[0].get_array())
    np.testing.assert_allclose(shown, M[2, 0, ::-1, ::-1])
    assert panels[3].images[0].get_clim() == (0, 1)


def test_grid_of_all_queries_frames_their_groups():
    rng = np.random.default_rng(0)
    m = rng.dirichlet(np.ones(7), (4, 6)).transpose(2, 0, 1)
    pieces = [_piece(m, (3, 2, 2)), _piece(m[::-1], (3, 2, 2))]
    figure = query_figures.draw_query_grid(pieces, ['without', 'with'], TABLE)
    assert len(figure.subfigs) == 2
    for block, piece, title in zip(figure.subfigs, pieces, ('without', 'with'), strict=True):
        assert block.get_suptitle() == title
        panels = _panels(block)
        assert len(block.axes) == 8 and len(panels) == 7  # 4 x 2 places
        assert [axes.texts[0].get_text() for axes in panels] == list('0123456')
        frames = [axes.spines['left'].get_edgecolor() for axes in panels]
        grey, red, green = (to_rgba(name) for name in ('tab:gray', 'tab:red', 'tab:green'))
        assert frames == [grey] * 3 + [red] * 2 + [green] * 2
        np.testing.assert_array_equal(
            panels[6].images[0].get_array(), piece.assignment[6][::-1, ::-1]
        )
        assert block.get_supxlabel() == query_figures.describe_slice(piece, TABLE)


def test_numbers_under_the_grid():
    lines = query_figures.describe_slice(_piece(), TABLE).splitlines()
    assert lines[0].split() == ['voxels', 'of', 'background', 'organ', 'tumour']
    assert lines[2].split() == ['organ', '33.3%', '66.7%', '0.0%']
    assert lines[4].split() == ['unknown', 'tumour', '50.0%', '0.0%', '50.0%']
    assert lines[5].startswith('3 of 4 queries used, mean entropy of M ')
    assert lines[5].endswith('of 1.39')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two runs on one store: with and without QD loss."""
    folder = tmp_path_factory.mktemp('study')
    store = query_run.write_store(folder / 'store', folder / 'raw')
    for seed, (name, weight) in enumerate((('qd', 0.1), ('no_qd', 0.0))):
        query_run.write_run(folder / name / 'seed0', store, seed=seed, qd_weight=weight)
    return folder


def test_slices_hold_most_of_the_tumour(runs):
    reader = QueryReader(load_model(runs / 'qd' / 'seed0'))
    table = LabelTable.from_json(reader.store.manifest.labels, 'store')
    chosen = query_figures.choose_cases(reader.store, 'test', table)
    # 'both' has known and unknown tumour, so it is no inlier; both OOD cases have 13 voxels of
    # it, and the first of the split is taken.
    assert chosen == [('known', ('tumour',)), ('unknown', ('ood',))]
    piece = query_figures.load_slice(reader, table, 'unknown', ('ood',))
    image, label = query_run.make_scan('unknown')
    assert piece.title == 'unknown slice 5/19'
    np.testing.assert_array_equal(piece.truth, label[4])
    np.testing.assert_array_equal(piece.image, image[4])
    np.testing.assert_allclose(piece.assignment.sum(axis=0), 1, atol=2e-3)
    assert piece.aspect == 1.0
    with pytest.raises(UserError, match="split 'train' of store .* has no case with a tumour"):
        query_figures.choose_cases(reader.store, 'train', table)
    counts = query_figures.count_split(reader, table, 'test')
    labels = [query_run.make_scan(case)[1] for case in query_run.SHAPES]
    expected = sum(np.bincount(label.ravel(), minlength=4) for label in labels)
    np.testing.assert_array_equal(counts.voxels, expected)
    assert sorted(counts.cases) == ['both', 'known', 'unknown']


def test_files_of_two_runs(runs, tmp_path):
    told = query_figures.report_queries(
        runs / 'qd' / 'seed0', tmp_path, against=runs / 'no_qd' / 'seed0'
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['queries.json', 'query_assignments.png', 'query_grid.png']
    for caption, path in told.pictures:
        assert matplotlib.image.imread(path)[..., :3].std() > 0.05
        assert 'MaxQuery Fig. ' in caption
    content = json.loads((tmp_path / 'queries.json').read_text())
    assert content == json.loads(json.dumps(told.content))
    assert content['format'] == 'maxquery_jax/queries' and content['version'] == 1
    assert content['slices'] == ['known slice 3/8', 'unknown slice 5/19']
    without, with_loss = content['runs']
    assert without['run'] == 'no_qd/seed0: without QD loss' and without['qd_weight'] == 0
    assert with_loss['run'] == 'qd/seed0: QD loss, weight 0.1'
    assert without['model']['params_sha256'] != with_loss['model']['params_sha256']
    for run in content['runs']:
        assert [entry['name'] for entry in run['classes']] == [
            'background', 'liver', 'cyst', 'hcc']  # fmt: skip
        assert set(run['ood_auroc']) == {'max_response', 'length', 'cosine', 'category_logit'}
        assert all(0 <= entry['tumours'] <= 1 for entry in run['ood_auroc'].values())
        assert 1 <= run['queries_used'] <= 8 and run['query_groups'] == [3, 2, 3]
        cosines = [entry['parts']['cosine']['mean'] for entry in run['classes']]
        assert all(abs(value) <= 1 for value in cosines)
    assert len(told.tables) == 4


def test_page_holds_the_query_pictures(runs, tmp_path, monkeypatch):
    """The page asks for the right figures; what they show is tested above."""
    asked = []
    report = query_figures.QueryReport((), (), {})
    monkeypatch.setattr(
        query_figures, 'report_queries', lambda *args, **kw: asked.append((args, kw)) or report
    )
    monkeypatch.setattr(build, 'open_run', lambda *args, **kw: _NO_CASES)
    run = runs / 'qd' / 'seed0'
    build.report(model=run, output=tmp_path, against='other', split='val')
    build.report(model=run, output=tmp_path)
    assert asked == [((run, tmp_path / 'report'), {'split': 'val', 'against': 'other'})]
    with pytest.raises(UserError, match='--queries and --against need --model'):
        build.report(queries=True, output=tmp_path)


def test_unannotated_split_is_refused(runs):
    reader = QueryReader(load_model(runs / 'qd' / 'seed0'))
    store = PatchStore(reader.store.location)
    table = LabelTable.from_json(store.manifest.labels, 'store')
    for record in store.manifest.cases.values():
        record['voxels'].clear()
    reader.store = store
    with pytest.raises(UserError, match="split 'test' of store .* has no annotated case"):
        query_figures.count_split(reader, table, 'test')


_NO_CASES = dataclasses.make_dataclass('_NoCases', ['name', 'cases', 'folder'])(
    'run', (), pathlib.Path('none')
)
