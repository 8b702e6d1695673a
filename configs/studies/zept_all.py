"""Tables of ZePT (CVPR 2024) on PhantomCT at demo scale, all but the cross-validated Tab. 14.

    python -m launch.study --study=configs/studies/zept_all.py --workdir=runs/zept

`zept_table1.py` and the like are one table each; with the same --workdir they use the same runs.
`zept_table14.py` needs a --workdir of its own.
"""

from typing import Any

from configs import zept
from configs.common import Config
from configs.studies import common, paper_zept

_BASE = 'demo,coarse'
_SEEDS = (0, 1, 2)
_UNSEEN = ('pancreas_tumor', 'lung_tumor', 'hepatic_vessel_tumor', 'colon_tumor')
_ALL_UNSEEN = '+'.join(_UNSEEN)
_SCORE = 'query_logit'  # the anomaly map, Eq. 7
_TUMOURS = ('tumour logit', 'tumour_logit')  # the second score of every comparison

# `share` names the variant whose first stages a variant takes over instead of training them again.
# Variants of another cohort (seen_...) and of another stage I train both stages.
_VARIANTS = {
    'zept': {},
    'nnunet': {'words': 'nnunet'},
    'one_stage': {'words': 'one_stage'},
    'maxquery': {'words': 'maxquery', 'share': 'nnunet'},
    'nnunet_long': {'words': 'nnunet_long'},
    'no_ofg': {'words': 'no_ofg'},
    **{word: {'words': word, 'share': 'zept'} for word in ('no_qrd', 'no_pma', 'no_qka')},
    'universal': {'words': 'universal'},
    'synthcp': {'words': 'synthcp', 'share': 'nnunet'},
    'boxes_at_prediction': {'share': 'zept', 'predict': {'boxes': 'truth'}},
    'prompt_of_box': {'words': 'prompt_of_box', 'share': 'zept', 'predict': {'boxes': 'truth'}},
    **{word: {'words': word} for word in ('groupvit', 'soft_grouping')},
    **{word: {'words': word, 'share': 'zept'} for word in ('plain_prompt', 'name_prompt')},
    **{
        word: {'words': word}
        for word in (
            'seen_lung_kidney',
            'seen_lung_liver',
            'seen_pancreas_liver',
            'seen_pancreas_liver_kidney',
            'seen_pancreas_liver_kidney_lung',
        )
    },
    **{
        word: {'words': word, 'share': 'zept'}
        for word in (
            'released',
            'align_all',
            'prompt_of_decoder',
            'prompt_of_mask',
            *(f'threshold_{n}' for n in (1, 3, 7, 9)),
        )
    },
}


def get_config(arg: str | None = None) -> Config:
    """An experiment of `configs/zept.py`, tested on twelve phantoms of every unseen kind."""
    config = zept.get_config(arg)
    if config.data.phantom:
        config.data.phantom.num_test_inlier = 16
        config.data.phantom.num_test_ood = 48
    return config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    tables = (
        table1(),
        table2(),
        table3(),
        table4(),
        table5(),
        table9(),
        table10(),
        table11(),
        table12(),
        table13(),
        fig6(),
        released(),
    )
    return make_study('zept_all', tables)


def make_study(name: str, tables: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A study of some of the tables, with the variants that they need."""
    title = 'ZePT on PhantomCT, demo scale'
    return common.make_study(name, tables, _VARIANTS, title=title, base=_BASE, seeds=_SEEDS)


def table1() -> dict[str, Any]:
    """Unseen tumours: three OOD methods and ZePT, by each of its scores."""
    methods = (
        ('SynthCP', 'synthcp', 'synthcp'),
        ('SML', 'nnunet_long', 'sml'),
        ('MaxQuery', 'maxquery', 'query_logit'),
        ('ZePT', 'zept', _SCORE),
        ('ZePT, tumour logit + anomaly map', 'zept', 'tumour_anomaly_logit'),
        (f'ZePT, {_TUMOURS[0]}', 'zept', _TUMOURS[1]),
        ('ZePT, logit of seen tumours', 'zept', 'seen_logit'),
        ('ZePT, logit of unseen tumours', 'zept', 'unseen_logit'),
    )
    return {
        'name': 'zept_table1',
        'title': 'Table 1: segmentation of unseen tumours',
        'columns': (
            *(key for name in (*_UNSEEN, _ALL_UNSEEN) for key in _columns(name)),
            f'auroc/{_ALL_UNSEEN}/host',
            f'fpr95/{_ALL_UNSEEN}/host',
            f'auroc/{_ALL_UNSEEN}/whole',
            'train_time',
        ),
        'rows': tuple({'title': t, 'variant': v, 'score': s} for t, v, s in methods),
        'pairs': tuple(('ZePT', title) for title, _, _ in methods if title != 'ZePT'),
        'reference': paper_zept.table1(),
        'note': (
            'The paper states neither the score behind its AUROC and FPR95 nor region and pooling. '
            'Here: the anomaly map of Eq. 7, voxels of organs and tumours (host: of the organ that '
            'the tumour grows in), mean over the cases. How SynthCP, SML and MaxQuery come to a '
            'Dice of one kind of tumour it does not say either; they name no kind.'
        ),
    }


def table2() -> dict[str, Any]:
    """What the networks cost."""
    methods = (
        ('ZePT', 'zept'),
        ('nnUNet', 'nnunet_long'),
        ('Universal', 'universal'),
        ('MaxQuery', 'maxquery'),
    )
    return {
        'name': 'zept_table2',
        'title': 'Table 2: parameters and operations',
        'columns': ('parameters', 'gflop', 'train_time'),
        'rows': tuple({'title': title, 'variant': variant} for title, variant in methods),
        'reference': paper_zept.table2(),
        'note': (
            "The networks are the demo's; launch.benchmark --part=size counts those of the paper's "
            'size. The paper says neither what a pass is given nor whether its text encoder is '
            'counted.'
        ),
    }


def table3() -> dict[str, Any]:
    """Seen organs and tumours."""
    methods = (('nnUNet', 'nnunet_long'), ('Universal', 'universal'), ('ZePT', 'zept'))
    seen = ('liver_tumor', 'kidney_tumor')
    return {
        'name': 'zept_table3',
        'title': 'Table 3: segmentation of seen organs and tumours',
        'columns': (
            'dice/organ',
            *(f'dice_present/{name}' for name in seen),
            'dice',
            'nsd/organ',
            *(f'nsd_present/{name}' for name in seen),
            'nsd',
            'parameters',
            'train_time',
        ),
        'rows': tuple({'title': title, 'variant': variant} for title, variant in methods),
        'pairs': tuple(('ZePT', title) for title, _ in methods[:-1]),
        'splits': ('val', 'test'),
        'reference': paper_zept.table3(),
        'note': (
            'nnUNet is the same backbone with a softmax; it and Universal are trained as long as '
            'both stages. No choice is made on val, so val and test cases are pooled.'
        ),
    }


def table4() -> dict[str, Any]:
    """ZePT without each of its parts."""
    rows = (
        ('ZePT (w/o OFG)', 'no_ofg'),
        ('ZePT (w/o QRD)', 'no_qrd'),
        ('ZePT (w/o PMA)', 'no_pma'),
        ('ZePT (w/o QKA)', 'no_qka'),
        ('ZePT', 'zept'),
    )
    return {
        'name': 'zept_table4',
        'title': 'Table 4: object-aware feature grouping (OFG), query refinement decoder (QRD), '
        'prompt-based masked attention (PMA), query-knowledge alignment (QKA)',
        **_ablation(rows, 'ZePT', ('dice_present/liver_tumor',)),
        'reference': paper_zept.table4(),
        'note': 'The paper also prints an AUROC of seen liver tumours; none is measured here.',
    }


def table5() -> dict[str, Any]:
    """Relaxed boxes as prompts in place of the self-generated ones."""
    rows = (
        ('self-generated prompts', 'zept'),
        ('boxes at prediction', 'boxes_at_prediction'),
        ('trained and predicted with boxes', 'prompt_of_box'),
    )
    colon = ('nsd_present/colon_tumor',)
    return {
        'name': 'zept_table5',
        'title': 'Table 5: self-generated prompts against relaxed 3D boxes',
        **_ablation(rows, 'self-generated prompts', last=colon),
        'reference': paper_zept.table5(),
        'note': (
            'Boxes are those of the tumours in the labels (--boxes=truth), grown by '
            'model.zept.box_margin voxels: they tell the network where a tumour is, and tiles that '
            'no box reaches attend everywhere. The paper says neither how far its boxes are '
            'relaxed nor whether ZePT was trained with them.'
        ),
    }


def table9() -> dict[str, Any]:
    """Unseen colon tumours by subtype (`subtypes.csv` of the cohort)."""
    groups = ('colon_tumor@colon_adenocarcinoma', 'colon_tumor@colon_mucinous', 'colon_tumor')
    return {
        'name': 'zept_table9',
        'title': 'Table 9: unseen colon tumours by subtype',
        'columns': tuple(key for group in groups for key in _columns(group)),
        'rows': (
            {'title': 'MaxQuery', 'variant': 'maxquery', 'score': 'query_logit'},
            {'title': 'ZePT', 'variant': 'zept', 'score': _SCORE},
        ),
        'pairs': (('ZePT', 'MaxQuery'),),
        'reference': paper_zept.table9(),
        'note': (
            'The paper has four subtypes: beside these two signet ring cell and adenosquamous '
            'carcinoma, which PhantomCT does not have. Its numbers without @ are the mean over all '
            'four, ours are over all cases. MaxQuery names no kind of tumour, so it has no Dice.'
        ),
    }


def table10() -> dict[str, Any]:
    """Texts that the queries are aligned with."""
    rows = (
        ('MiniLM, name', 'name_prompt'),
        ('MiniLM, text', 'plain_prompt'),
        ('MiniLM, knowledge', 'zept'),
    )
    return {
        'name': 'zept_table10',
        'title': 'Table 10: text encoder and text',
        **_ablation(rows, 'MiniLM, knowledge'),
        'reference': paper_zept.table10(),
        'note': (
            'Text: "A computerized tomography of a [CLS]."; knowledge: a description of location, '
            'shape, size and anatomy. Vectors of CLIP and ClinicalBERT need their weights: '
            '`launch.embed_text` makes them, model.zept.knowledge names the file.'
        ),
    }


def table11() -> dict[str, Any]:
    """One stage against two."""
    rows = (('one stage', 'one_stage'), ('two stages', 'zept'))
    return {
        'name': 'zept_table11',
        'title': 'Table 11: one stage against two',
        **_ablation(rows, 'two stages', last=('train_time',)),
        'reference': paper_zept.table11(),
        'note': 'One stage: stage II from scratch, for as many steps as both stages have.',
    }


def table12() -> dict[str, Any]:
    """Ways to group voxels to queries."""
    rows = (('GroupViT', 'groupvit'), ('soft assignment', 'soft_grouping'), ('OFG', 'zept'))
    return {
        'name': 'zept_table12',
        'title': 'Table 12: object-aware feature grouping (OFG) against others',
        **_ablation(rows, 'OFG'),
        'note': (
            "The paper's numbers were not to be had (configs/studies/paper_zept.py). Soft "
            'assignment: without the one-hot of Eq. 4 (Sec. 6.4.6).'
        ),
    }


def table13() -> dict[str, Any]:
    """Tumours that stage II sees."""
    rows = (
        ('liver, kidney', 'zept'),
        ('lung, kidney', 'seen_lung_kidney'),
        ('lung, liver', 'seen_lung_liver'),
        ('pancreas, liver', 'seen_pancreas_liver'),
        ('pancreas, liver, kidney', 'seen_pancreas_liver_kidney'),
        ('pancreas, liver, kidney, lung', 'seen_pancreas_liver_kidney_lung'),
    )
    names = ('hepatic_vessel_tumor', 'colon_tumor')
    return {
        'name': 'zept_table13',
        'title': 'Table 13: tumours that stage II sees',
        'columns': tuple(key for name in names for key in _columns(name)),
        'rows': _rows(rows),
        'pairs': _pairs(rows, rows[0][0]),
        'reference': paper_zept.table13(),
        'note': (
            'The paper adds data sets, here the number of cases is the same: a kind of tumour more '
            'means fewer cases of each.'
        ),
    }


def fig6() -> dict[str, Any]:
    """Threshold of the prompts."""
    rows = tuple(
        (f'threshold 0.{n}', 'zept' if n == 5 else f'threshold_{n}') for n in (1, 3, 5, 7, 9)
    )
    return {
        'name': 'zept_fig6',
        'title': 'Figure 6: threshold of the prompts (Eq. 8)',
        **_ablation(rows, 'threshold 0.5', _columns('hepatic_vessel_tumor')),
        'note': 'The paper has a figure without numbers; it finds 0.5 best.',
    }


def released() -> dict[str, Any]:
    """What the public code does otherwise."""
    rows = (
        ('prompts of decoder features', 'prompt_of_decoder'),
        ('queries of unseen tumours aligned, too', 'align_all'),
        ('all of the released code', 'released'),
        ("prompts of stage I's masks", 'prompt_of_mask'),
        ('ZePT', 'zept'),
    )
    return {
        'name': 'zept_released',
        'title': 'Released code against the paper',
        **_ablation(rows, 'ZePT', last=('parameters',)),
        'note': (
            'All of the released code: 7 tumour queries that start at random, prompts of decoder '
            'features, anomaly maps added to the logits, unnormalised alignment of all queries. '
            "Prompts of masks are neither its nor the paper's."
        ),
    }


def _columns(tumour: str) -> tuple[str, ...]:
    """What the paper prints of an unseen tumour, and its Dice whatever it was called."""
    return tuple(f'{m}/{tumour}' for m in ('auroc', 'fpr95', 'dice_present', 'dice_any'))


def _rows(rows: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], ...]:
    """Every variant by the anomaly map, then every one by the tumours' logit."""
    return tuple(
        {'title': title + suffix, 'variant': variant, 'score': score}
        for suffix, score in (('', _SCORE), (f', {_TUMOURS[0]}', _TUMOURS[1]))
        for title, variant in rows
    )


def _pairs(rows: tuple[tuple[str, str], ...], whole: str) -> tuple[tuple[str, str], ...]:
    """`whole` against every other row, score by score."""
    return tuple(
        (whole + suffix, title + suffix)
        for suffix in ('', f', {_TUMOURS[0]}')
        for title, _ in rows
        if title != whole
    )


def _ablation(
    rows: tuple[tuple[str, str], ...],
    whole: str,
    first: tuple[str, ...] = (),
    last: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Columns, rows and pairs of a table of variants: colon, as in the paper, and all four."""
    host = (f'auroc/{_ALL_UNSEEN}/host', f'fpr95/{_ALL_UNSEEN}/host')
    unseen = (*_columns('colon_tumor'), *_columns(_ALL_UNSEEN), *host)
    return {
        'columns': (*first, *unseen, 'dice/organ', *last),
        'rows': _rows(rows),
        'pairs': _pairs(rows, whole),
    }
