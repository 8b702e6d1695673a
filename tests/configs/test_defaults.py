"""Defaults of an experiment's fields, for runs that were started before a field was there."""

from configs import maxquery
from configs.defaults import field_defaults


def test_every_field_that_the_base_has_keeps_its_value():
    config = maxquery.get_config('demo,no_qd')
    defaults = field_defaults(config)
    assert defaults['data']['patch_size'] == (0, 0, 0) != config.data.patch_size
    assert defaults['model']['backbone']['base_features'] == 32
    stages = [key for key in config if 'objective' in getattr(config[key], 'keys', tuple)()]
    assert {'pretrain', 'finetune'} <= set(stages)
    for name in stages:
        assert defaults[name]['objective'] == config[name].objective
        assert set(defaults[name]['loss']) == set(config[name].loss)
    tune = defaults['finetune']
    assert (tune['loss']['qd_weight'], tune['epochs'], tune['optim']['name']) == (0.0, 1, 'sgd')
    assert set(config) == set(defaults)
    assert config.finetune.optim.name == 'radam'  # not touched
