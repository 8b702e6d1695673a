"""Names of hardware, its limits, and what is said when something is missing."""

import importlib.util
import types

import pytest

from configs import maxquery
from maxquery_jax.aot import child, estimate, targets
from maxquery_jax.errors import UserError


@pytest.mark.parametrize(
    ('text', 'chip', 'count'),
    [('v5e:4x4', 'v5e', 16), ('v5p:2x2x2', 'v5p', 8), ('h100:8', 'h100', 8), ('cpu:8', 'cpu', 8)],
)
def test_targets(text, chip, count):
    target = targets.parse_target(text)
    assert (target.chip, target.num_chips) == (chip, count)
    environment = targets.compiler_environment(target)
    assert environment['JAX_PLATFORMS'] == 'cpu'  # a compilation never touches a device
    assert ('ALLOW_MULTIPLE_LIBTPU_LOAD' in environment) == chip.startswith('v')


@pytest.mark.parametrize('text', ['v5e', 'v5e:4', 'v5e:0x4', 'h100:2x2', 'a100:8', 'cpu:', ''])
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match='write v5e:4x4'):
        targets.parse_target(text)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.*extra 'aot'"):
        targets.require_compiler(targets.parse_target('v5e:2x2'))
    targets.require_compiler(targets.parse_target('cpu:2'))


def test_a_crash_of_the_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(
        child.subprocess, 'run', lambda *a, **k: types.SimpleNamespace(returncode=-11)
    )
    with pytest.raises(UserError, match=r'v6e:2x2 crashed \(SIGSEGV\)'):
        child.run_child([], targets.parse_target('v6e:2x2'))


def test_memory_that_was_missing():
    tpu = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.55G of 15.75G hbm.'
    old = 'Ran out of memory on HBM: the program (16.55G) exceeds available HBM (15.75G)'
    assert estimate.memory_that_was_missing(tpu) == 16.55
    assert estimate.memory_that_was_missing(old) == 16.55
    assert estimate.memory_that_was_missing('Used 512.00M of 15.75G memory') == 0.5
    assert estimate.memory_that_was_missing('INTERNAL: Mosaic failed') is None


def test_step_time_by_hand():
    chip = targets.Chip(
        platform='tpu', memory_gib=1, tflops=2, memory_gbps=10, link_gbps=5, clock_ghz=1
    )
    step = {
        'gb_moved': 30.0,
        'collectives': {'all-reduce': {'count': 1, 'mb': 2500.0}},
        'cycles_by_layer': {'a': 3_000_000_000, 'b': 1_000_000_000},
    }
    found = estimate.step_time({'step': step}, 2e12, chip)
    assert (found['compute_s'], found['memory_s'], found['compiler_s']) == (1.0, 3.0, 4.0)
    assert (found['collective_s'], found['step_s'], found['mfu']) == (0.5, 4.5, 1 / 4.5)
    without = estimate.step_time({'step': step | {'cycles_by_layer': {}}}, 2e12, chip)
    assert without['compiler_s'] is None and without['step_s'] == 3.5
    unknown = step | {'cycles_by_layer': {}, 'gb_moved': None}  # XLA for GPUs
    bound = estimate.step_time({'step': unknown}, 2e12, chip)
    assert bound['step_s'] == 1.5 and bound['mfu'] is None


def test_advice_names_fields_that_exist():
    config = maxquery.get_config('pancreas')
    found = estimate.advice(config, 'finetune', False, 20.0, targets.parse_target('v5e:2x2'))
    assert '20.0 GiB is 1.3 times' in found[0]
    fields = [line.split()[0] for line in found if line.startswith('--config.')]
    assert len(fields) >= 3
    for field in fields:
        key, value = field.removeprefix('--config.').split('=')
        config.update_from_flattened_dict({key: type(config_value(config, key))(value)})
    assert estimate.advice(config, 'finetune', True, 20.0, targets.parse_target('v5e:2x2')) == []


def config_value(config, key):
    for part in key.split('.'):
        config = config[part]
    return config
