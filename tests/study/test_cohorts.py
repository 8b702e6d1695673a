"""Stores of a study: one for all runs, one per other cohort, none in place of a named one."""

import json
import pathlib
import types

import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.study import cohorts
from maxquery_jax.study.cohorts import open_cohorts
from maxquery_jax.study.plan import plan
from maxquery_jax.study.results import load
from maxquery_jax.study.spec import parse_study
from tests.study.study_helper import case, study, summary, table, tiny_config

VARIANTS = {
    'base': {},
    'like_base': {'words': 'no_qd'},
    'other': {'overrides': {'data.phantom.num_train': 4}},
    'own': {'overrides': {'data.store': 'OWN'}},
}


@pytest.fixture
def generated(monkeypatch):
    """Folders in which a cohort was opened, in order, instead of generating it."""
    found = []

    def open_data(config, folder):
        found.append(folder)
        return types.SimpleNamespace(stores=(types.SimpleNamespace(location=folder / 'store'),))

    monkeypatch.setattr(cohorts, 'open_data', open_data)
    return found


def make(names, seeds=(0, 1)):
    rows = tuple({'title': name, 'variant': name, 'score': 's'} for name in names)
    chosen = {name: VARIANTS[name] for name in names}
    return parse_study(study(variants=chosen, tables=(table(rows=rows),), seeds=seeds))


def stores(tmp_path, store=''):
    runs = plan(make(VARIANTS), tiny_config, tmp_path)
    opened = open_cohorts(tiny_config(), tmp_path, store)
    return {(run.variant, run.seed): opened.store_of(run) for run in runs}, runs


def test_each_cohort_is_one_store_for_all_its_seeds(generated, tmp_path):
    found, runs = stores(tmp_path)
    key = next(run.cohort for run in runs if run.variant == 'other')
    for seed in (0, 1):
        assert found['base', seed] == found['like_base', seed] == str(tmp_path / 'store')
        assert found['other', seed] == str(tmp_path / 'cohorts' / key / 'store')
        assert found['own', seed] == ''  # its config names it
    assert generated[0] == tmp_path  # the base's comes first, before any run


def test_a_named_store_does_not_stand_for_another_cohort(generated, tmp_path):
    with pytest.raises(UserError, match='other changes data.phantom, which --store=S replaces'):
        stores(tmp_path, store='S')
    opened = open_cohorts(tiny_config(), tmp_path, 'S')
    run = plan(make(['base']), tiny_config, tmp_path)[0]
    assert opened.store_of(run) == 'S' and generated == []


def test_a_config_without_any_data_is_left_to_say_so(generated, tmp_path):
    config = tiny_config()
    config.data.phantom = type(config)()
    assert open_cohorts(config, tmp_path, '').generate(config) == '' and generated == []


@pytest.mark.integration
def test_two_cohorts_are_generated_side_by_side(tmp_path):
    runs = plan(make(['base', 'other'], seeds=(0,)), tiny_config, tmp_path)
    opened = open_cohorts(tiny_config(), tmp_path, '')
    cases = {}
    for run in runs:
        path = opened.store_of(run)
        subtypes = pathlib.Path(path).parent / 'raw/subtypes.csv'
        before = subtypes.read_bytes()
        subtypes.unlink()  # as a cohort of an older program
        assert path == opened.store_of(run)  # what is there is used again
        assert subtypes.read_bytes() == before
        manifest = json.loads((pathlib.Path(path) / 'manifest.json').read_text())
        cases[run.variant] = len(manifest['splits']['train'])
    assert cases == {'base': 3, 'other': 4}


def test_only_runs_of_one_cohort_must_have_the_same_cases(tmp_path):
    def write(run, *names):
        run.path.mkdir(parents=True)
        cases = [case(n, is_ood=True, value=0.5, score=1.0, dice=(0.5, None)) for n in names]
        (run.path / 'summary.json').write_text(json.dumps(summary(cases)))

    spec = make(['base', 'like_base', 'other'], seeds=(0,))
    runs = {run.variant: run for run in plan(spec, tiny_config, tmp_path)}
    write(runs['base'], 'a', 'b')
    write(runs['other'], 'c')
    found = load(spec, list(runs.values()), ('test',))
    assert found['base'][0].cohort != found['other'][0].cohort
    write(runs['like_base'], 'a')
    with pytest.raises(UserError, match='like_base seed 0 and base seed 0 .* different cases'):
        load(spec, list(runs.values()), ('test',))


def test_groups_are_read_of_the_raw_data_that_a_store_was_made_from(tmp_path):
    raw, store = tmp_path / 'raw', tmp_path / 'store'
    spec = make(['base'], seeds=(0,))
    (run,) = plan(spec, tiny_config, tmp_path)
    for folder in (raw, store, run.path):
        folder.mkdir(parents=True)
    (run.path / 'manifest.json').write_text(json.dumps({'store': str(store)}))
    (store / 'manifest.json').write_text(json.dumps({'source': str(raw)}))
    cases = [case('a', is_ood=True, value=0.5, score=1.0, dice=(0.5, None))]
    (run.path / 'summary.json').write_text(json.dumps(summary(cases)))

    def groups(**options):
        return load(spec, [run], ('test',), **options)['base'][0].group_of

    assert groups(with_groups=True) == {}  # a raw data set that does not say
    tumours = {'a': [{'type': 'fnh', 'volume_ml': 1.0}]}
    (raw / 'dataset.json').write_text(json.dumps({'maxquery_jax': {'tumours': tumours}}))
    assert groups(with_groups=True) == {'a': 'fnh'}  # a cohort of an older program
    (raw / 'subtypes.csv').write_text('case,subtype\na,hard\nb,soft\n')
    assert groups(with_groups=True) == {'a': 'hard', 'b': 'soft'} and groups() == {}
    (raw / 'subtypes.csv').write_text('case,subtype\na,hard\na,soft\n')
    with pytest.raises(UserError, match=r"subtypes\.csv row 3: case 'a' has a row already"):
        groups(with_groups=True)
    store.rename(tmp_path / 'elsewhere')
    assert groups(with_groups=True) == {}
