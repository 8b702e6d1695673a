"""MaxQuery on PhantomCT at demo scale: the four scores of Tab. 4, with and without QD loss.

    python -m launch.study --study=configs/studies/first_light.py --workdir=runs/first_light

Both variants of a seed start from the same pre-trained backbone.
"""

from typing import Any

from configs import maxquery

get_config = maxquery.get_config

_SCORES = {
    'MaxQuery (query, pre-softmax)': 'query_logit',
    'query, post-softmax': 'query_softmax',
    'MaxLogit (category, pre-softmax)': 'category_logit',
    'MSP (category, post-softmax)': 'category_softmax',
}


def get_study() -> dict[str, Any]:
    """Returns the study."""
    first, *others = _SCORES
    table = {
        'name': 'first_light',
        'title': 'MaxQuery on PhantomCT: scores, with and without QD loss',
        'columns': ('auroc', 'aupr', 'fpr95', 'case_auc', 'dice'),
        'rows': tuple(
            {'title': title + suffix, 'variant': variant, 'score': score}
            for variant, suffix in (('qd', ''), ('no_qd', ', without QD loss'))
            for title, score in _SCORES.items()
        ),
        'pairs': tuple((first, title) for title in (f'{first}, without QD loss', *others)),
    }
    return {
        'name': 'first_light',
        'title': 'MaxQuery on PhantomCT, demo scale',
        'base': 'demo,long',
        'seeds': (0, 1, 2),
        'variants': {'qd': {}, 'no_qd': {'words': 'no_qd', 'share': 'qd'}},
        'tables': (table,),
    }
