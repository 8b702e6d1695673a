"""Running a study with trainings that only leave their traces: order, kills, failures, sharing."""

import fcntl
import json
import time
import types

import pytest

from configs.defaults import field_defaults
from maxquery_jax.errors import StoppedError, UserError
from maxquery_jax.study import runner
from maxquery_jax.study.results import load
from maxquery_jax.study.spec import parse_study
from maxquery_jax.train.run_dir import RunDir
from tests.study.study_helper import case, study, summary, table, tiny_config

VARIANTS = {'no_qd': {'words': 'no_qd', 'share': 'qd'}, 'qd': {}}
ROWS = tuple({'title': name, 'variant': name, 'score': 's'} for name in VARIANTS)


def make_study(**fields):
    fields = {'seeds': (0,), 'tables': (table(rows=ROWS),), **fields}
    return parse_study(study(variants=VARIANTS, **fields))


class Fakes:
    """Train, predict and evaluate as files; each logs its call and may fail once."""

    def __init__(self, root):
        self.log = root / 'log.txt'
        self.fail = {}  # call to the exception that it raises, once

    def calls(self):
        return self.log.read_text().splitlines() if self.log.is_file() else []

    def note(self, text):
        with self.log.open('a') as file:
            file.write(text + '\n')
        if text in self.fail:
            raise self.fail.pop(text)

    def name(self, path):
        return f'{path.parent.name}/{path.name}'

    def train(self, config, path, defaults):
        folder = RunDir(path)
        folder.write_config(json.loads(config.to_json_best_effort()), defaults)
        folder.close()
        labels = [{'role': role} for role in ('background', 'organ', 'tumour', 'ood')]
        data = {'labels': labels, 'channels': ['venous'], 'spacing_mm': [3, 2, 1]}
        (path / 'manifest.json').write_text(json.dumps({'store': 'S', 'data': data}))
        for stage in config.stages:
            step = path / 'checkpoints' / stage / '2'
            if not step.is_dir():
                self.note(f'{self.name(path)} {stage}')
                step.mkdir(parents=True)

    def load_model(self, path):
        return types.SimpleNamespace(params=(), store='S', path=path)

    def count_forward_flops(self, config, objective, **data):
        self.note(f'count {config.variant} {objective} {" ".join(map(str, data.values()))}')
        return 3e9

    def load_ensemble(self, paths):
        members = '+'.join(path.name for path in paths)
        return types.SimpleNamespace(params=(), store='S', path=members)

    def predict(self, model, output, split, scores, **options):
        words = [','.join(scores), *(f'{k}={v}' for k, v in options.items())]
        self.note(f'{self.name(output.parent.parent)} predict {split} {" ".join(words)}')
        (output / 'done').parent.mkdir(parents=True, exist_ok=True)
        (output / 'done').write_text(json.dumps([str(model.path), scores]))

    def evaluate(self, model, split):
        _, scores = json.loads((model / 'predictions' / split / 'done').read_text())
        self.note(f'{self.name(model)} evaluate {split}')
        folder = model if split == 'test' else model / 'predictions' / split
        name = model.name if split == 'val' else 'c'
        cases = [case(name, is_ood=True, value=0.5, score=1.0, dice=(0.5, None))]
        (folder / 'summary.json').write_text(json.dumps(summary(cases, scores)))


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    found = Fakes(tmp_path)
    calls = ('train', 'load_model', 'load_ensemble', 'predict', 'evaluate', 'count_forward_flops')
    for name in calls:
        monkeypatch.setattr(runner, name, getattr(found, name))
    monkeypatch.setattr(runner, 'POLL_S', 0.01)
    return found


def run(spec, workdir, **options):
    return runner.run_study(spec, tiny_config, workdir, store='S', **options)


ALL = [
    'qd/seed0 pretrain',
    'qd/seed0 finetune',
    'qd/seed0 predict test s',
    'qd/seed0 evaluate test',
    'no_qd/seed0 finetune',
    'no_qd/seed0 predict test s',
    'no_qd/seed0 evaluate test',
]


def test_everything_runs_once_in_an_order_that_works(fakes, tmp_path):
    assert run(make_study(), tmp_path / 'w') == []
    assert fakes.calls() == ALL
    run(make_study(), tmp_path / 'w')
    assert fakes.calls() == ALL


@pytest.mark.parametrize('killed', ALL)
def test_a_kill_at_any_call_continues_there(fakes, tmp_path, killed):
    fakes.fail[killed] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(make_study(), tmp_path / 'w')
    run(make_study(), tmp_path / 'w')
    calls = fakes.calls()
    assert list(dict.fromkeys(calls)) == ALL  # nothing was left out
    repeated = {call for call in ALL if calls.count(call) > 1}
    # the call that was killed comes again, and a prediction, which skips what is there
    assert repeated <= {killed, killed.replace('evaluate test', 'predict test s')}


def test_a_failure_stops_only_what_needs_it(fakes, tmp_path, capsys):
    fakes.fail['qd/seed0 pretrain'] = UserError('loss is NaN')
    failed = run(make_study(seeds=(0, 1)), tmp_path / 'w')
    assert failed == ['qd/seed0: loss is NaN', 'no_qd/seed0: needs a run that failed']
    assert 'no_qd/seed1 evaluate test' in fakes.calls()
    assert '[1/4] qd seed 0: failed: loss is NaN' in capsys.readouterr().out


def test_a_signal_stops_everything(fakes, tmp_path):
    fakes.fail['qd/seed0 finetune'] = StoppedError('whatever it says')
    with pytest.raises(StoppedError, match='whatever it says'):
        run(make_study(seeds=(0, 1)), tmp_path / 'w')
    assert fakes.calls()[-1] == 'qd/seed0 finetune'


def test_words_alone_do_not_stop_a_study(fakes, tmp_path):
    fakes.fail['qd/seed0 finetune'] = UserError('stopped by signal 15, says a file name')
    failed = run(make_study(seeds=(0, 1)), tmp_path / 'w')
    assert len(failed) == 1 and 'no_qd/seed1 evaluate test' in fakes.calls()


def test_another_config_is_refused_even_where_a_run_is_finished(fakes, tmp_path):
    run(make_study(), tmp_path / 'w')
    changed = {'no_qd': VARIANTS['no_qd'], 'qd': {'overrides': {'finetune.loss.ce_weight': 2.0}}}
    spec = parse_study(study(seeds=(0,), variants=changed, tables=(table(rows=ROWS),)))
    failed = run(spec, tmp_path / 'w')
    assert len(failed) == 1 and 'started with finetune.loss.ce_weight=1.0' in failed[0]


def test_a_study_continues_with_code_that_has_more_fields(fakes, tmp_path):
    fakes.fail['no_qd/seed0 finetune'] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(make_study(), tmp_path / 'w')
    files = [tmp_path / f'w/{name}/seed0/config.json' for name in ('qd', 'no_qd')]
    for file in files:  # as code would have written them that had no folds and no dropout
        config = json.loads(file.read_text())
        del config['data']['fold'], config['model']['backbone']['dropout_rate']
        file.write_text(json.dumps(config))
    before = [file.read_bytes() for file in files]
    assert len(run(make_study(), tmp_path / 'w')) == 2  # without defaults nothing can be told
    assert run(make_study(), tmp_path / 'w', defaults_of=field_defaults) == []
    assert fakes.calls().count('qd/seed0 finetune') == 1
    assert [file.read_bytes() for file in files] == before

    changed = {'qd': {'overrides': {'model.backbone.dropout_rate': 0.5}}}
    spec = parse_study(study(seeds=(0,), variants=changed, tables=(table(rows=ROWS[1:]),)))
    (failed,) = run(spec, tmp_path / 'w', defaults_of=field_defaults)
    assert 'without model.backbone.dropout_rate (0.0), now it is 0.5' in failed


def test_a_study_that_needs_another_score_only_predicts_again(fakes, tmp_path):
    run(make_study(), tmp_path / 'w')
    before = len(fakes.calls())
    rows = ({'title': 'A', 'variant': 'qd', 'score': 't'},)
    spec = parse_study(study(seeds=(0,), variants={'qd': {}}, tables=(table(rows=rows),)))
    run(spec, tmp_path / 'w')
    assert fakes.calls()[before:] == ['qd/seed0 predict test s,t', 'qd/seed0 evaluate test']
    run(make_study(), tmp_path / 'w')
    assert len(fakes.calls()) == before + 2


def test_a_variant_that_only_predicts_otherwise(fakes, tmp_path):
    def spec(**predict):
        variants = {'qd': {}, 'boxed': {'share': 'qd', 'predict': predict}}
        rows = tuple({'title': name, 'variant': name, 'score': 's'} for name in variants)
        return parse_study(study(seeds=(0,), variants=variants, tables=(table(rows=rows),)))

    fakes.fail['boxed/seed0 predict test s boxes=truth'] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(spec(boxes='truth'), tmp_path / 'w')
    assert run(spec(boxes='truth'), tmp_path / 'w') == []
    again = ['boxed/seed0 predict test s boxes=truth', 'boxed/seed0 evaluate test']
    assert fakes.calls() == [*ALL[:4], again[0], *again]
    done = json.loads((tmp_path / 'w/boxed/seed0/predictions/test/done').read_text())
    assert done[0] == str(tmp_path / 'w/qd/seed0')  # the model
    assert json.loads((tmp_path / 'w/boxed/seed0/manifest.json').read_text())['store'] == 'S'
    assert not (tmp_path / 'w/boxed/seed0/config.json').exists()
    runs = runner.plan(spec(boxes='truth'), tiny_config, tmp_path / 'w')
    assert set(load(spec(boxes='truth'), runs, ('test',))) == {'qd', 'boxed'}
    run(spec(boxes='truth'), tmp_path / 'w')
    assert len(fakes.calls()) == 7
    (failed,) = run(spec(mirror=True), tmp_path / 'w')
    assert "was predicted with {'boxes': 'truth'}, the study now says {'mirror': True}" in failed


def test_operations_are_counted_once_where_a_table_shows_them(fakes, tmp_path):
    """Of a run that finished before, too; of one that only predicts otherwise, its model's."""
    variants = {'qd': {}, 'boxed': {'share': 'qd', 'predict': {'boxes': 'truth'}}}

    def spec(*columns):
        rows = tuple({'title': name, 'variant': name, 'score': 's'} for name in variants)
        shown = table(rows=rows, columns=columns)
        return parse_study(study(seeds=(0,), variants=variants, tables=(shown,)))

    run(spec('auroc'), tmp_path / 'w')
    assert not any(call.startswith('count') for call in fakes.calls())
    before = len(fakes.calls())
    for _ in range(2):
        assert run(spec('auroc', 'gflop'), tmp_path / 'w') == []
        assert fakes.calls()[before:] == ['count demo maxquery 3 1 (3, 2, 1)'] * 2
    runs = runner.plan(spec('gflop'), tiny_config, tmp_path / 'w')
    found = load(spec('gflop'), runs, ('test',))
    assert [found[name][0].gflop for name in variants] == [3.0, 3.0]


def test_parts_of_two_hosts_do_everything_once(fakes, tmp_path):
    spec = make_study(seeds=(0, 1))
    run(spec, tmp_path / 'w', part='1/2')
    assert fakes.calls() == ALL
    run(spec, tmp_path / 'w', part='2/2')
    assert fakes.calls() == [*ALL, *(call.replace('seed0', 'seed1') for call in ALL)]


def test_a_run_of_another_process_is_waited_for(fakes, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'w/qd/seed0'
    folder.mkdir(parents=True)
    other = open(folder / '.study.lock', 'w')  # noqa: SIM115 - a lock is that of one `open`
    fcntl.flock(other, fcntl.LOCK_EX)
    naps = []

    def sleep(seconds):
        naps.append(list(fakes.calls()))
        other.close()

    monkeypatch.setattr(runner, 'time', types.SimpleNamespace(sleep=sleep, perf_counter=time.time))
    run(make_study(seeds=(0, 1)), tmp_path / 'w')
    # meanwhile the other seed was done; then, as the other process ended without a result, this
    assert naps == [[call.replace('seed0', 'seed1') for call in ALL]]
    assert fakes.calls()[len(ALL) :] == ALL
    assert 'waiting for another process: qd seed 0, no_qd seed 0' in capsys.readouterr().out


def test_a_study_that_moved_continues(fakes, tmp_path):
    fakes.fail['no_qd/seed0 predict test s'] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(make_study(), tmp_path / 'w')
    (tmp_path / 'w').rename(tmp_path / 'other')
    assert run(make_study(), tmp_path / 'other') == []
    assert fakes.calls().count('no_qd/seed0 finetune') == 1
    config = json.loads((tmp_path / 'other/no_qd/seed0/config.json').read_text())
    assert config['finetune']['init_from'] == f'{tmp_path}/other/qd/seed0:pretrain'


def test_folds_validate_apart_and_test_as_an_ensemble(fakes, tmp_path):
    tables = (table(name='v', rows=ROWS, splits=('val',)), table(name='t', rows=ROWS))
    spec = make_study(folds=2, tables=tables)
    run(spec, tmp_path / 'w')
    calls = fakes.calls()
    assert 'qd/seed0_fold1 predict val s' in calls
    assert not any('_fold' in call and 'predict test' in call for call in calls)
    assert calls[-1] == 'no_qd/seed0_ensemble evaluate test'
    done = json.loads((tmp_path / 'w/qd/seed0_ensemble/predictions/test/done').read_text())
    assert done[0] == 'seed0_fold0+seed0_fold1'
    manifest = json.loads((tmp_path / 'w/qd/seed0_ensemble/manifest.json').read_text())
    assert manifest['store'] == 'S'
    runs = runner.plan(spec, tiny_config, tmp_path / 'w')
    val = load(spec, runs, ('val',))['qd'][0]
    assert [entry['case'] for entry in val.cases] == ['seed0_fold0', 'seed0_fold1']
    assert [entry['case'] for entry in load(spec, runs, ('test',))['no_qd'][0].cases] == ['c']
    run(spec, tmp_path / 'w')
    assert fakes.calls() == calls
