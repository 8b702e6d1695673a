"""Made-up studies, configs and summaries."""

from typing import Any

from configs import maxquery
from configs.common import Config
from maxquery_jax.report.summary import FORMAT, VERSION

ROLES = {'background': 'background', 'liver': 'organ', 'a': 'tumour', 'b': 'tumour', 'x': 'ood'}
LABELS = [{'id': i, 'name': n, 'role': r} for i, (n, r) in enumerate(ROLES.items())]


def tiny_config(words: str = '') -> Config:
    """The demo with a network and a cohort that train in seconds; further words as usual."""
    config = maxquery.get_config(','.join(word for word in ('demo', words) if word))
    config.model.backbone.base_features = 4
    config.model.backbone.max_stages = 2
    config.model.decoder.output_strides = (2,)
    config.model.decoder.query_dim = 16
    config.model.decoder.embed_dim = 8
    config.model.decoder.ffn_dim = 16
    config.data.patch_size = (16, 32, 32)
    config.data.phantom.shape_zyx = (16, 32, 32)
    config.data.phantom.spacing_mm = (10.0, 8.0, 8.0)
    config.data.phantom.phases = ('venous',)
    config.data.phantom.num_train = 3
    config.data.phantom.num_val = 1
    config.data.phantom.num_test_inlier = 1
    config.data.phantom.num_test_ood = 1
    for stage in config.stages:
        config[stage].epochs, config[stage].steps_per_epoch = 1, 2
        config[stage].optim.frozen_epochs = 0
    config.log.every_steps = 1
    config.mesh.data = 1
    return config


def table(**fields: Any) -> dict[str, Any]:
    """A table of one row."""
    return {
        'name': 't',
        'title': 'T',
        'columns': ('auroc',),
        'rows': ({'title': 'A', 'variant': 'a', 'score': 's'},),
        **fields,
    }


def study(**fields: Any) -> dict[str, Any]:
    """A study of one variant."""
    return {
        'name': 'made_up',
        'title': 'Made up',
        'base': '',
        'seeds': (0, 1),
        'variants': {'a': {}},
        'tables': (table(),),
        **fields,
    }


def case(name: str, *, is_ood: bool, value: float | None, score: float, dice: tuple, **fields: Any):
    """A case of a summary; Dice None of a type means that the truth lacks it."""
    names = ('a', 'b')
    return {
        'case': name,
        'is_ood': is_ood,
        'truth_voxels': {n: int(d is not None) for n, d in zip(names, dice, strict=True)},
        'dice': dict(zip(names, dice, strict=True)),
        'ood': {'s': {r: dict.fromkeys(('auroc', 'aupr', 'fpr95'), value) for r in ('organ',)}},
        'case_score': {'s': score},
        'case_score_fallback': None,
        **fields,
    }


def summary(cases: list[dict], scores: tuple[str, ...] = ('s',)) -> dict[str, Any]:
    """A summary of made-up cases."""
    return {
        'format': FORMAT,
        'version': VERSION,
        'labels': LABELS,
        'scores': list(scores),
        'metrics': {},
        'cases': cases,
    }
