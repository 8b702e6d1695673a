"""Runs of a study: what they share, their order, their parts and their configs."""

import pytest

from configs import maxquery, zept
from configs.studies import (
    first_light,
    maxquery_ablation,
    maxquery_all,
    maxquery_appendix,
    maxquery_length,
    maxquery_scores,
    maxquery_table1,
    maxquery_table2,
    maxquery_table3,
    maxquery_table4,
    zept_all,
    zept_table1,
    zept_table5,
)
from maxquery_jax.errors import UserError
from maxquery_jax.study.plan import plan, run_config, take_part
from maxquery_jax.study.spec import parse_study
from tests.study.study_helper import study, table, tiny_config

TABLES = (maxquery_table1, maxquery_table2, maxquery_table3, maxquery_table4)
OTHERS = (
    maxquery_appendix,
    maxquery_ablation,
    maxquery_length,
    maxquery_scores,
    maxquery_all,
    first_light,
)
MAXQUERY = (*TABLES, *OTHERS)
STUDIES = (*MAXQUERY, zept_all, zept_table1, zept_table5)


def make(variants, **fields):
    rows = tuple({'title': name, 'variant': name, 'score': 's'} for name in variants)
    return parse_study(study(variants=variants, tables=(table(rows=rows),), **fields))


CHAIN = {  # in an order in which nothing could run
    'last': {
        'words': 'nnunet_longer',
        'share': 'middle',
        'overrides': {'extend.loss.ce_weight': 2.0},
    },
    'middle': {'words': 'nnunet_longer', 'share': 'qd'},
    'qd': {},
}


def by_name(runs, seed=0):
    return {run.variant: run for run in runs if run.seed == seed}


@pytest.mark.parametrize('module', STUDIES, ids=lambda m: m.__name__.rpartition('.')[2])
def test_shipped_studies_never_train_a_stage_twice(module, tmp_path):
    spec = parse_study(module.get_study())
    runs = plan(spec, module.get_config, tmp_path)
    assert len(runs) == len(spec.variants) * 3
    trained = [(run.path, stage) for run in runs for stage in run.stages]
    assert len(trained) == len(set(trained))
    for position, run in enumerate(runs):
        before = {(other.path, stage) for other in runs[:position] for stage in other.stages}
        assert {(path, stage) for path, stage, _ in run.taken} <= before
        config = run_config(run, spec)
        assert tuple(config.stages) == tuple(run.stages)
        if run.taken and run.stages:
            path, stage, _ = run.taken[-1]
            assert config[config.stages[0]].init_from == f'{path}:{stage}'


def test_table1_trains_what_the_paper_compares_from_one_pretraining(tmp_path):
    spec = parse_study(maxquery_table1.get_study())
    runs = by_name(plan(spec, maxquery.get_config, tmp_path))
    assert list(runs['nnunet'].stages) == ['pretrain'] and not runs['nnunet'].taken
    for name, stage in (('qd', 'finetune'), ('no_qd', 'finetune'), ('synthcp', 'synth')):
        assert list(runs[name].stages) == [stage]
        taken = [(path, before) for path, before, _ in runs[name].taken]
        assert taken == [(tmp_path / 'nnunet/seed0', 'pretrain')]
    assert not runs['mc_dropout'].taken


def test_a_chain_is_run_from_its_beginning(tmp_path):
    # `last` differs from `middle` in its second stage, so it takes the first from where that is
    runs = plan(make(CHAIN), tiny_config, tmp_path)
    assert [run.variant for run in runs] == ['qd', 'middle', 'last'] * 2
    taken = by_name(runs, seed=1)['last'].taken
    assert taken == ((tmp_path / 'qd/seed1', 'pretrain', 2),)


@pytest.mark.parametrize(
    ('variant', 'message'),
    [
        ({'share': 'qd'}, 'no stage of its own'),
        ({'share': 'qd', 'predict': {}}, 'no stage of its own'),
        (
            {'words': 'nnunet_longer', 'share': 'qd', 'overrides': {'data.batch_size': 1}},
            'batch_size',
        ),
        ({'words': 'no_qd', 'share': 'qd', 'overrides': {'pretrain.epochs': 3}}, 'first stages'),
        ({'words': 'no_qd', 'overrides': {'pretrain.epoch': 3}}, 'epoch'),
        ({'words': 'typo'}, 'typo'),
        ({'words': 'no_qd', 'share': 'b'}, 'circle'),
    ],
)
def test_what_cannot_be_planned_is_a_user_error(variant, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan(make({'qd': {}, 'b': variant}), tiny_config, tmp_path)


def test_a_variant_may_differ_in_how_it_predicts_alone(tmp_path):
    boxes = {'share': 'qd', 'predict': {'mirror': True}}
    run = by_name(plan(make({'qd': {}, 'b': boxes}), tiny_config, tmp_path))['b']
    assert not run.stages and run.model_path == tmp_path / 'qd/seed0'
    assert [stage for _, stage, _ in run.taken] == ['pretrain', 'finetune']
    assert not run.is_ready and run_config(run, make({'qd': {}})).stages == ()
    fewer = {'words': 'nnunet', **boxes}  # the model would be that of another stage
    with pytest.raises(UserError, match='no stage of its own'):
        plan(make({'qd': {}, 'b': fewer}), tiny_config, tmp_path)


def test_a_decoder_may_differ_behind_a_shared_backbone_but_not_in_a_shared_stage(tmp_path):
    wider = {'words': '', 'share': 'qd', 'overrides': {'model.decoder.embed_dim': 12}}
    run = by_name(plan(make({'qd': {}, 'wider': wider}), tiny_config, tmp_path))['wider']
    assert list(run.stages) == ['finetune'] and run.taken[0][1] == 'pretrain'


ZEPT = {  # overrides of model.zept to the message of a variant that shares with the default
    'threshold': (0.1, ''),
    'knowledge': ('minilm_plain', ''),
    'tumours': (('liver_tumour', 'kidney_tumour'), ''),
    'ofg': (False, 'first stages differ'),
    'grouping': ('soft', 'first stages differ'),
    'query_dim': (32, 'first stages differ'),
}


@pytest.mark.parametrize(('field', 'value'), [(k, v) for k, (v, _) in ZEPT.items()])
def test_variants_of_zept_share_stage_one_if_it_reads_nothing_that_differs(field, value, tmp_path):
    variants = {'zept': {}, 'b': {'share': 'zept', 'overrides': {f'model.zept.{field}': value}}}
    spec = make(variants, base='demo')
    if ZEPT[field][1]:
        with pytest.raises(UserError, match=ZEPT[field][1]):
            plan(spec, zept.get_config, tmp_path)
    else:
        run = by_name(plan(spec, zept.get_config, tmp_path))['b']
        assert list(run.stages) == ['stage2'] and run.taken[0][1] == 'stage1'


def test_runs_of_one_cohort_are_known_by_it(tmp_path):
    variants = {'a': {}, 'b': {'overrides': {'data.phantom.num_train': 4}}}
    overrides = {'data.store': 'S', 'seed': 7}
    runs = plan(make({**variants, 'c': {'overrides': overrides}}), tiny_config, tmp_path)
    cohorts = {run.variant: run.cohort for run in runs}
    assert len(set(cohorts.values())) == 3 and len({(r.variant, r.cohort) for r in runs}) == 3


def test_configs_carry_seed_store_fold_and_overrides(tmp_path):
    variants = {'qd': {'overrides': {'finetune.loss.qd_weight': 0.5}}}
    spec = make(variants, folds=3)
    runs = plan(spec, tiny_config, tmp_path)
    assert [run.fold for run in runs] == [0, 1, 2] * 2
    assert runs[4].path == tmp_path / 'qd/seed1_fold1'
    config = run_config(runs[4], spec, 'STORE')
    assert (config.seed, config.data.fold, config.data.num_folds) == (1, 1, 3)
    assert config.data.store == 'STORE' and config.finetune.loss.qd_weight == 0.5
    assert runs[4].config.data.store == ''


def test_parts_divide_seeds_and_folds_but_not_what_shares(tmp_path):
    runs = plan(make(CHAIN, seeds=(0, 1, 2), folds=2), tiny_config, tmp_path)
    parts = [take_part(runs, f'{i}/4') for i in range(1, 5)]
    assert sorted(r.path for part in parts for r in part) == sorted(r.path for r in runs)
    groups = [{run.group for run in part} for part in parts]
    assert [len(group) for group in groups] == [2, 2, 1, 1]
    assert len(set().union(*groups)) == 6
    for part in parts:
        own = {run.path for run in part}
        assert all(path in own for run in part for path, _, _ in run.taken)


@pytest.mark.parametrize('part', ['0/2', '3/2', 'a', '1', '1/0'])
def test_bad_parts_are_user_errors(part, tmp_path):
    with pytest.raises(UserError, match='--part'):
        take_part(plan(make({'qd': {}}), tiny_config, tmp_path), part)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'seeds': ()}, 'seeds'),
        ({'folds': 1}, 'folds'),
        ({'repeats': 3}, "no field 'repeats'"),
        ({'variants': {'a': {'share': 'z'}}}, "'z', which is not there"),
        ({'variants': {'a': {}, 'b': {}}}, "no table shows variant 'b'"),
        ({'variants': {'a/b': {}}}, 'cannot name a folder'),
        ({'variants': {'a': {'predict': {'box': 'truth'}}}}, "'a' predicts with 'box': choose"),
        ({'tables': ()}, 'tables'),
        ({'tables': (table(columns=('roc',)),)}, "no column 'roc'"),
        ({'tables': (table(columns=('auroc/cyst/kidney',)),)}, 'region'),
        ({'tables': (table(columns=('auroc/organ/mean',)),)}, 'pooling'),
        ({'tables': (table(columns=('auroc/cyst/organ/pooled',)),)}, 'a class and a region'),
        ({'tables': (table(rows=({'title': 'A', 'variant': 'a'},)),)}, 'names no score'),
        ({'tables': (table(rows=({'title': 'A', 'variant': 'q', 'score': 's'},)),)}, "'q', which"),
        (
            {'tables': (table(rows=({'title': 'A', 'variant': 'a', 'words': 'no_qd'},)),)},
            "row 'A' has no field 'words': choose from title, variant, score",
        ),
        ({'tables': (table(pairs=(('A', 'B'),)),)}, "'B', which is no row"),
        ({'tables': (table(splits=('train',)),)}, 'splits'),
        ({'tables': (table(reference={'paper': {'A': {'auroc': 'high'}}}),)}, 'must hold numbers'),
    ],
)
def test_bad_study_files_are_user_errors(fields, message):
    with pytest.raises(UserError, match=message):
        parse_study(study(**fields))
