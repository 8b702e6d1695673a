"""ZePT Tab. 14 on PhantomCT: fully supervised, 5-fold cross-validation.

python -m launch.study --study=configs/studies/zept_table14.py --workdir=runs/zept_supervised
"""

from typing import Any

from configs import zept
from configs.common import Config
from configs.studies import common, paper_zept

_VARIANTS = {
    'zept': {},
    'nnunet': {'words': 'nnunet_long'},
    'universal': {'words': 'universal'},
}


def get_config(arg: str | None = None) -> Config:
    """An experiment of `configs/zept.py` whose 200 phantoms hold each tumour about 30 times."""
    config = zept.get_config(arg)
    if config.data.phantom:
        config.data.phantom.num_train = 196
        config.data.phantom.num_val = 4
        config.data.phantom.num_test_inlier = 0
        config.data.phantom.num_test_ood = 0
    return config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return common.make_study(
        'zept_table14',
        (table14(),),
        _VARIANTS,
        title='ZePT on PhantomCT, demo scale, fully supervised',
        base='demo,coarse,supervised',
        seeds=(0,),
        folds=5,
    )


def table14() -> dict[str, Any]:
    """Organs and tumours, all annotated."""
    methods = (('nnUNet', 'nnunet'), ('Universal', 'universal'), ('ZePT', 'zept'))
    reference = paper_zept.table14()
    printed = next(iter(next(iter(reference.values())).values()))
    return {
        'name': 'zept_table14',
        'title': 'Table 14: fully supervised',
        'columns': (*printed, 'dice/organ', 'dice'),
        'rows': tuple({'title': title, 'variant': variant} for title, variant in methods),
        'pairs': tuple(('ZePT', title) for title, _ in methods[:-1]),
        'splits': ('val',),
        'reference': reference,
        'note': 'nnUNet is the same backbone with a softmax; all are trained equally long.',
    }
