"""Plans, parts and tables of a study, against values computed by hand."""

import json
import math
import types

import numpy as np
import pytest

from configs.studies import first_light
from maxquery_jax.errors import UserError
from maxquery_jax.study import runner, tables

STUDY = first_light.get_study()


def test_shared_stages_come_first_and_parts_keep_seeds_together(tmp_path):
    runs = runner.plan(STUDY, tmp_path)
    assert len(runs) == 6
    for run in runs:
        if run.shared_from is not None:
            paths = [other.path for other in runs[: runs.index(run)]]
            assert run.shared_from in paths
    parts = [runner.take_part(runs, f'{i}/2') for i in (1, 2)]
    assert sorted(r.path for part in parts for r in part) == sorted(r.path for r in runs)
    assert not {r.seed for r in parts[0]} & {r.seed for r in parts[1]}


@pytest.mark.parametrize('part', ['0/2', '3/2', 'a', '1', '1/0'])
def test_bad_parts_are_user_errors(part, tmp_path):
    with pytest.raises(UserError, match='--part'):
        runner.take_part(runner.plan(STUDY, tmp_path), part)


def test_run_configs_differ_by_what_the_variant_says(tmp_path):
    by_name = {(r.variant, r.seed): r for r in runner.plan(STUDY, tmp_path)}
    full = runner.make_run_config(STUDY, first_light.get_config, by_name['qd', 2], 'S')
    ablated = runner.make_run_config(STUDY, first_light.get_config, by_name['no_qd', 2], 'S')
    assert full.seed == ablated.seed == 2 and full.data.store == ablated.data.store == 'S'
    assert full.finetune.loss.qd_weight == 0.1 and ablated.finetune.loss.qd_weight == 0.0
    assert tuple(full.stages) == ('pretrain', 'finetune') and tuple(ablated.stages) == ('finetune',)
    assert ablated.finetune.init_from == f'{tmp_path}/qd/seed2:pretrain'


def test_an_unfinished_study_names_the_run(tmp_path):
    with pytest.raises(UserError, match='qd seed 0'):
        runner.read_summaries(STUDY, tmp_path)


def summary(auroc, scores, dice):
    """Three OOD and three inlier cases; one score, one region, two tumour types."""
    cases = []
    for i in range(6):
        is_ood = i < 3
        value = auroc[i] if is_ood else None
        cases.append(
            {
                'case': f'c{i}',
                'is_ood': is_ood,
                'ood': {'s': {'organ': {'auroc': value, 'aupr': value, 'fpr95': value}}},
                'case_score': {'s': scores[i]},
                'dice': {'background': 1.0, 'a': dice[i][0], 'b': dice[i][1]},
            }
        )
    roles = ('background', 'tumour', 'tumour')
    labels = [{'name': n, 'role': r} for n, r in zip(('background', 'a', 'b'), roles, strict=True)]
    return {'cases': cases, 'labels': labels}


def make_rows():
    dice = [(0.9, 0.9)] * 3 + [(0.5, None), (0.7, 0.2), (None, 0.4)]
    seeds = [
        summary([0.8, 0.9, 1.0], [3, 2, 5, 1, 0, 4], dice),
        summary([0.6, 0.7, 0.8], [3, 2, 5, 1, 0, -4], dice),
    ]
    worse = [summary([0.5, 0.6, 0.7], [0, 0, 0, 1, 1, 1], dice)] * 2
    entry = types.SimpleNamespace
    study = entry(
        name='x',
        title='t',
        pairs=(('A', 'B'),),
        rows=[entry(title='A', variant='v', score='s'), entry(title='B', variant='w', score='s')],
    )
    return study, tables.build_rows(study, {'v': seeds, 'w': worse})


def test_cells_are_means_over_seeds_of_the_summaries_metrics():
    _, rows = make_rows()
    cell = rows[0].cell('auroc')
    assert cell.seeds == pytest.approx((0.9, 0.7)) and cell.estimate.value == pytest.approx(0.8)
    assert cell.seed_sd == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert cell.estimate.low < 0.8 < cell.estimate.high
    # seed 0: OOD 3, 2, 5 against 1, 0, 4: 7 of 9 pairs in order; seed 1: all 9
    assert rows[0].cell('case_auc').seeds == pytest.approx((7 / 9, 1.0))
    # per type over inlier cases: a (0.5 + 0.7) / 2, b (0.2 + 0.4) / 2
    assert rows[0].cell('dice_tumour').estimate.value == pytest.approx((0.6 + 0.3) / 2)


def test_paired_difference_sees_what_cases_share():
    _, rows = make_rows()
    difference = tables.compare(*rows)['auroc']
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.2, 0.2))


def test_tables_are_readable_by_people_and_programs():
    study, rows = make_rows()
    text = tables.to_markdown(study, rows, 'how')
    assert '| A | 80.0 [' in text and '+20.0 [' in text
    data = json.loads(tables.to_json(study, rows))
    assert data['rows'][0]['cells']['auroc']['estimate']['value'] == pytest.approx(0.8)
    assert not any(math.isnan(x) for x in data['rows'][1]['cells']['auroc']['seeds'])
