"""One real study through the command: two variants that share a stage, two steps a stage."""

import json
import pathlib

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDY = """
from tests.study import study_helper

get_config = study_helper.tiny_config
ROWS = (
    {'title': 'Ours', 'variant': 'qd', 'score': 'query_logit'},
    {'title': 'MaxLogit', 'variant': 'qd', 'score': 'category_logit'},
    {'title': 'w/o QD', 'variant': 'no_qd', 'score': 'query_logit'},
)


def get_study():
    return study_helper.study(
        seeds=(0,),
        variants={'qd': {}, 'no_qd': {'words': 'no_qd', 'share': 'qd'}},
        tables=(
            study_helper.table(
                name='tiny',
                columns=('auroc', 'case_auc', 'dice/types', 'parameters', 'gflop', 'train_time'),
                rows=ROWS,
                pairs=(('Ours', 'w/o QD'),),
                reference={'paper, liver': {'Ours': {'auroc': 88.75}, 'SML': {'auroc': 86.64}}},
            ),
        ),
    )
"""


@pytest.fixture
def run(tmp_path, python):
    """Calls launch.study with further flags; returns code, stdout and stderr."""
    (tmp_path / 'tiny.py').write_text(STUDY)

    def call(*flags):
        command = [python, '-m', 'launch.study', f'--study={tmp_path / "tiny.py"}']
        done = processes.run(
            [*command, f'--workdir={tmp_path / "work"}', *flags],
            cwd=ROOT,
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.integration
def test_tables_and_plan_before_anything_ran(run, tmp_path):
    code, out, _ = run('--dry_run')
    shared = tmp_path / 'work/qd/seed0'
    assert code == 0 and f'no_qd seed 0: pretrain from {shared}, finetune 2 steps: to run' in out
    assert 'unknown (pretrain, finetune, compilation and evaluation) left' in out
    code, *_ = run('--tables_only')
    assert code == 0 and '| Ours | not run |' in (tmp_path / 'work/tables/tiny.md').read_text()


@pytest.mark.integration
def test_a_study_runs_shares_stages_and_continues(run, tmp_path):
    code, out, error = run()
    work = tmp_path / 'work'
    assert code == 0, error
    assert f'finetune: initial weights from {work}/qd/seed0, pretrain step 2' in out
    assert sorted(p.name for p in (work / 'no_qd/seed0/checkpoints').iterdir()) == ['finetune']
    data = json.loads((work / 'tables/tiny.json').read_text())
    ours, maxlogit, ablated = data['rows']
    assert ours['cells']['parameters'] == maxlogit['cells']['parameters']
    assert ours['cells']['parameters']['value'] > 0 and ablated['seeds'] == [0]
    assert ours['cells']['gflop'] == ablated['cells']['gflop'] != {}  # one network, two losses
    text = (work / 'tables/tiny.md').read_text()
    assert '| forward pass of a patch (GFLOP) |' in text and 'a multiply-add as two' in text
    assert '*88.75*' in text and '*paper, liver:* AUROC' in text and '| *SML* |' in text

    before = {p.relative_to(work): p.stat().st_mtime_ns for p in work.glob('qd/*/summary.json')}
    moved = work.rename(tmp_path / 'elsewhere')  # as on another machine
    (moved / 'no_qd/seed0/summary.json').unlink()  # its evaluation was lost
    code, out, error = run(f'--workdir={moved}')
    assert code == 0, error
    assert 'qd seed 0: finished before' in out and 'finetune: already at step 2 of 2' in out
    assert all((moved / p).stat().st_mtime_ns == t for p, t in before.items())
    assert (moved / 'no_qd/seed0/summary.json').is_file()
