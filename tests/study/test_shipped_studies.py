"""Every study file of configs/studies: the verb plans it, and its tables can be filled."""

import pathlib
import runpy
import sys

import pytest

from configs.studies import zept_all
from maxquery_jax.data.datasets.phantom.spec import CohortSpec, plan_cases
from maxquery_jax.inference.zept_forward import zept_scores
from maxquery_jax.models.build import ZEPT_STAGES
from maxquery_jax.ops.anomaly import SCORES
from maxquery_jax.study.columns import parse_column
from maxquery_jax.study.plan import plan
from maxquery_jax.study.runner import open_study
from maxquery_jax.train.data import cohort_fields
from maxquery_jax.train.query_table import build_query_table
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
FILES = [
    file
    for file in sorted((ROOT / 'configs/studies').glob('*.py'))
    if 'def get_study' in file.read_text()
]
ABDOMEN = {'liver': 'organ', 'liver_tumor': 'tumour', 'pancreas_tumor': 'ood', 'lung_cyst': 'ood'}
CATEGORY = {'category_softmax', 'category_logit'}
# The verb's own flags and `main`, once per file: importing JAX once is most of the time.
CHILD = """
import sys
from absl import flags
from launch import study

for file in sys.argv[2:]:
    print('FILE', file, flush=True)
    flags.FLAGS(['study', f'--study={file}', f'--workdir={sys.argv[1]}/none', '--dry_run'])
    study.main()
"""


@pytest.fixture(scope='module')
def plans(tmp_path_factory):
    """What `launch.study --dry_run` prints, by file."""
    folder = tmp_path_factory.mktemp('plans')
    files = [str(file) for file in FILES]
    done = processes.run([sys.executable, '-c', CHILD, str(folder), *files], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())  # a plan changes nothing
    parts = [part.partition('\n') for part in done.stdout.split('FILE ')[1:]]
    return {name: text.splitlines() for name, _, text in parts}


def opened(file):
    module = runpy.run_path(str(file))
    return open_study(module['get_study']()), module['get_config']


def available_scores(config):
    """Scores that `launch.predict` offers of a run; None for objectives not known here."""
    objective = config[config.stages[-1]].objective
    if objective == 'segmentation':
        has_dropout = config.model.backbone.dropout_rate > 0
        return CATEGORY | ({'mc_entropy'} if has_dropout else {'sml'})
    if objective in ZEPT_STAGES:
        records = [('background', 'background'), *ABDOMEN.items()]
        labels = [{'id': i, 'name': n, 'role': r} for i, (n, r) in enumerate(records)]
        table = build_query_table(config.model.zept, labels, {})
        return set(zept_scores(ZEPT_STAGES[objective], table))
    return {'maxquery': set(SCORES), 'synthcp': CATEGORY | {'synthcp', 'sml'}}.get(objective)


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_the_plan_names_every_run(plans, file, tmp_path):
    study, make_config = opened(file)
    runs = plan(study, make_config, tmp_path)
    assert {run.variant for run in runs} == set(study.variants)
    *lines, total = plans[str(file)]
    for run in runs:
        (line,) = [text for text in lines if text.startswith(f'{run.title}: ')]
        assert 'to run' in line
        for stage, steps in run.stages.items():
            assert f'{stage} {steps} steps' in line
        for path, stage, _ in run.taken:
            assert f'{stage} from ' in line and str(path.relative_to(tmp_path)) in line
    assert len(lines) >= len(runs) and total.startswith(f'{len(runs)} runs, 0 finished')


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_its_tables_show_what_its_runs_give(file, tmp_path):
    study, make_config = opened(file)
    configs = {run.variant: run.config for run in plan(study, make_config, tmp_path)}
    for table in study.tables:
        keys = {column.key.partition('/')[0] for column in table.columns}
        for row in table.rows:
            known = available_scores(configs[row.variant])
            assert not row.score or known is None or row.score in known, (table.name, row)
        for source, numbers in table.reference.items():
            for title, cells in numbers.items():
                for key in cells:
                    assert parse_column(key, source).metric in keys, (table.name, title, key)
        assert all(first != second for first, second in table.pairs)


def test_a_score_that_a_run_does_not_give_would_be_found(tmp_path):
    study, make_config = opened(ROOT / 'configs/studies/maxquery_all.py')
    configs = {run.variant: run.config for run in plan(study, make_config, tmp_path)}
    assert available_scores(configs['qd']) == set(SCORES)
    assert 'mc_entropy' in available_scores(configs['mc_dropout']) - available_scores(
        configs['nnunet']
    )
    assert 'synthcp' in available_scores(configs['synthcp']) - available_scores(configs['nnunet'])


def test_scores_of_zept_follow_its_queries(tmp_path):
    study, make_config = opened(ROOT / 'configs/studies/zept_all.py')
    configs = {run.variant: run.config for run in plan(study, make_config, tmp_path)}
    own = {f'{which}_logit' for which in ('tumour', 'seen', 'unseen', 'query')}
    own |= {f'{which}_anomaly_logit' for which in ('tumour', 'seen')}
    assert available_scores(configs['zept']) == own
    assert available_scores(configs['universal']) is None


def test_the_ood_methods_of_zept_share_one_segmenter(tmp_path):
    study, make_config = opened(ROOT / 'configs/studies/zept_table1.py')
    runs = {run.variant: run for run in plan(study, make_config, tmp_path) if run.seed == 0}
    for name, stage in (('synthcp', 'synth'), ('maxquery', 'finetune')):
        assert list(runs[name].stages) == [stage]
        assert [taken[:2] for taken in runs[name].taken] == [(runs['nnunet'].path, 'pretrain')]
    assert runs['synthcp'].stages['synth'] == runs['zept'].stages['stage2']


@pytest.mark.parametrize('words', ['demo', 'demo,coarse', 'demo,seen_pancreas_liver_kidney_lung'])
def test_zept_is_tested_on_several_of_every_unseen_tumour_of_the_paper(words):
    spec = CohortSpec(**cohort_fields(zept_all.get_config(words).data.phantom.to_dict()))
    label_of = spec.resolved_task.label_of
    types = [case.choices[0] for case in plan_cases(spec) if case.split == 'test']
    seen = [label_of[name] for name in types]
    for name in ('hepatic_vessel_tumor', 'colon_tumor'):
        assert seen.count(name) >= 6
    columns = [parse_column(key, 'table 9') for key in zept_all.table9()['columns']]
    groups = {column.group for column in columns if column.group}
    assert groups == {name for name in label_of if label_of[name] == 'colon_tumor'}
    assert all(types.count(name) >= 6 for name in groups)


def test_zept_tables_print_the_paper_beside_the_same_columns(tmp_path):
    study, _ = opened(ROOT / 'configs/studies/zept_all.py')
    for table in study.tables:
        ours = {column.key for column in table.columns}
        for numbers in table.reference.values():
            assert {key for cells in numbers.values() for key in cells} <= ours, table.name
            printed = {row.title for row in table.rows} & set(numbers)
            assert printed or table.name == 'zept_table10'


def test_only_what_is_trained_on_other_tumours_has_another_cohort(tmp_path):
    study, make_config = opened(ROOT / 'configs/studies/zept_all.py')
    runs = plan(study, make_config, tmp_path)
    base = {run.cohort for run in runs if run.variant == 'zept'}
    others = {run.variant: run.cohort for run in runs if run.cohort not in base}
    assert len(base) == 1 and len(set(others.values())) == 5
    assert all(variant.startswith('seen_') for variant in others)
