"""Times from metric rows, and what a plan says is left."""

import json

import pytest

from maxquery_jax.study.estimate import (
    RECORD,
    describe_plan,
    measure_timing,
    remaining,
    stage_seconds,
    train_seconds,
)
from maxquery_jax.study.plan import plan
from maxquery_jax.study.spec import parse_study
from tests.study.study_helper import study, table, tiny_config

VARIANTS = {'qd': {}, 'no_qd': {'words': 'no_qd', 'share': 'qd'}, 'joint': {'words': 'joint'}}


def rows(stage, walls):
    return [
        {'step': step, 'stage': stage, 'split': 'train', 'wall_s': wall} for step, wall in walls
    ]


@pytest.fixture
def runs(tmp_path):
    entries = tuple({'title': name, 'variant': name, 'score': 's'} for name in VARIANTS)
    spec = parse_study(study(seeds=(0,), variants=VARIANTS, tables=(table(rows=entries),)))
    found = plan(spec, tiny_config, tmp_path)
    assert [run.variant for run in found] == list(VARIANTS)
    return found


def write(run, content):
    run.path.mkdir(parents=True)
    lines = [json.dumps(row) for row in content]
    (run.path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"cut off by a k')


def test_restarts_validation_and_stages_do_not_disturb_the_rate(runs):
    validation = {'step': 10, 'stage': 'pretrain', 'split': 'val', 'dice_mean': 0.1}
    content = rows('pretrain', [(1, 5.0), (10, 23.0)])  # 9 steps in 18 s
    content += [validation, *rows('pretrain', [(11, 4.0), (20, 22.0)])]  # restarted: 18 s for 9
    content += rows('finetune', [(1, 1.0), (3, 7.0)])
    write(runs[0], content)
    assert stage_seconds(runs[0].path) == pytest.approx({'pretrain': 2.0, 'finetune': 3.0})


def test_training_time_counts_the_stages_that_were_taken_over(runs):
    write(runs[0], rows('pretrain', [(1, 1.0), (2, 6.0)]) + rows('finetune', [(1, 1.0), (2, 2.0)]))
    write(runs[1], rows('finetune', [(1, 1.0), (2, 8.0)]))
    assert train_seconds(runs[0]) == pytest.approx(2 * 5.0 + 2 * 1.0)
    assert train_seconds(runs[1]) == pytest.approx(2 * 5.0 + 2 * 7.0)
    assert train_seconds(runs[2]) is None


def test_what_is_left_uses_own_times_then_those_of_the_same_stage(runs):
    qd, no_qd, joint = runs
    timing = measure_timing(runs)
    assert remaining(qd, timing, is_finished=False).unknown == (
        'pretrain',
        'finetune',
        'compilation and evaluation',
    )
    write(qd, rows('pretrain', [(1, 1.0), (2, 31.0)]) + rows('finetune', [(1, 1.0), (2, 61.0)]))
    (qd.path / RECORD).write_text(json.dumps({'besides_steps_s': 20.0}))
    for stage in ('pretrain', 'finetune'):
        (qd.path / 'checkpoints' / stage / '1').mkdir(parents=True)
    timing = measure_timing(runs)
    assert remaining(qd, timing, is_finished=True).seconds == 0
    assert remaining(qd, timing, is_finished=False).seconds == pytest.approx(30 + 60 + 20)
    assert remaining(no_qd, timing, is_finished=False).seconds == pytest.approx(2 * 60 + 20)
    lines = describe_plan(runs, timing, [False, False, False])
    assert lines[0] == 'qd seed 0: pretrain 2 steps, finetune 2 steps: started, 1m50s left'
    steps = joint.stages['finetune']
    assert lines[2] == f'joint seed 0: finetune {steps} steps: to run, {steps}m20s left'
    assert lines[-1].startswith(f'3 runs, 0 finished, {steps + 4}m30s left')
