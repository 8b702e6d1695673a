"""MaxQuery on PhantomCT at demo scale: the four scores of Tab. 4, with and without QD loss.

    python -m launch.study --study=configs/studies/first_light.py --workdir=runs/first_light

Both variants of a seed start from the same pre-trained backbone.
"""

from ml_collections import ConfigDict

from configs import maxquery
from configs.common import Config

get_config = maxquery.get_config

_SCORES = {
    'MaxQuery (query, pre-softmax)': 'query_logit',
    'query, post-softmax': 'query_softmax',
    'MaxLogit (category, pre-softmax)': 'category_logit',
    'MSP (category, post-softmax)': 'category_softmax',
}


def get_study() -> Config:
    """Returns the study."""
    study: Config = ConfigDict()
    study.name = 'first_light'
    study.title = 'MaxQuery on PhantomCT, demo scale'
    study.base = 'demo,long'
    study.split = 'test'
    study.seeds = (0, 1, 2)
    study.variants = {
        'qd': {'words': '', 'share': ''},
        'no_qd': {'words': 'no_qd', 'share': 'qd'},
    }
    study.rows = tuple(
        ConfigDict({'title': title + suffix, 'variant': variant, 'score': score})
        for variant, suffix in (('qd', ''), ('no_qd', ', without QD loss'))
        for title, score in _SCORES.items()
    )
    main = 'MaxQuery (query, pre-softmax)'
    study.pairs = (
        (main, main + ', without QD loss'),
        (main, 'query, post-softmax'),
        (main, 'MaxLogit (category, pre-softmax)'),
        (main, 'MSP (category, post-softmax)'),
    )
    return study
