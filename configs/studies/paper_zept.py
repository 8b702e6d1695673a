"""Numbers that ZePT (CVPR 2024) prints, in percent, by row title and column.

Classes have the names of PhantomCT's task `abdomen`. The data are public CT and, as 'real-world
colon', the authors' own. Table numbers are the paper's, the supplement's included.

Read from a text version of the paper, in which numbers are lost: all of Tab. 12 (GroupViT) and of
the curves of Fig. 6 (threshold of the prompts), every margin in running text, and the sign before
the spread of Tab. 3 and 4 ("82.232.07"), whose spread is left out here. Tab. 4 prints an AUROC of
seen liver tumours, which nothing here measures. Tables that are not here have no study.
"""

_MSD = ('pancreas_tumor', 'lung_tumor', 'hepatic_vessel_tumor', 'colon_tumor')
_METRICS = ('auroc', 'fpr95', 'dice_present')

_TABLE1 = {  # title: pancreas, lung, hepatic vessel, colon of MSD; then real-world colon
    'ZegFormer': (
        (66.45, 69.33, 14.92),
        (41.31, 81.78, 9.94),
        (75.39, 55.94, 30.81),
        (50.13, 78.81, 11.34),
        (55.64, 74.29, 12.03),
    ),
    'zsseg': (
        (53.23, 79.27, 11.40),
        (34.96, 87.54, 7.98),
        (71.43, 60.35, 28.57),
        (47.79, 82.68, 9.68),
        (50.30, 79.52, 10.18),
    ),
    'OpenSeg': (
        (44.56, 85.19, 10.05),
        (23.49, 91.75, 6.12),
        (59.23, 70.52, 23.38),
        (41.76, 89.44, 7.13),
        (41.92, 87.51, 7.59),
    ),
    'OVSeg': (
        (70.22, 59.73, 19.36),
        (52.93, 68.65, 14.11),
        (85.77, 40.28, 35.66),
        (59.94, 65.25, 15.76),
        (69.95, 64.84, 16.05),
    ),
    'FreeSeg': (
        (69.98, 60.75, 18.19),
        (49.92, 70.39, 13.26),
        (85.62, 41.77, 35.08),
        (56.45, 68.49, 14.71),
        (67.01, 66.07, 15.30),
    ),
    'SynthCP': (
        (51.24, 81.69, 11.33),
        (25.85, 90.28, 6.43),
        (70.12, 63.55, 28.01),
        (43.84, 87.71, 8.74),
        (48.37, 84.95, 8.72),
    ),
    'SML': (
        (37.95, 89.93, 9.72),
        (20.18, 93.65, 6.02),
        (57.44, 70.96, 22.97),
        (22.41, 92.07, 6.65),
        (39.88, 88.41, 7.21),
    ),
    'MaxQuery': (
        (68.99, 59.93, 18.15),
        (48.24, 70.47, 11.29),
        (83.66, 42.45, 34.30),
        (50.47, 69.88, 13.43),
        (64.53, 67.65, 15.24),
    ),
    'ZePT': (
        (86.81, 35.18, 37.67),
        (77.84, 44.30, 27.22),
        (91.57, 20.64, 52.94),
        (82.36, 40.73, 30.45),
        (84.35, 38.29, 36.23),
    ),
}

_TABLE2 = {  # title: parameters (M), FLOPs (G); of what input, and of how many, it does not say
    'ZePT': (745.94, 1337.59),
    'ZegFormer': (950.82, 5766.21),
    'OVSeg': (963.44, 5929.65),
    'FreeSeg': (1077.85, 6893.14),
}

_TABLE3 = {  # title: BTCV (organs), LiTS (liver tumours), KiTS (kidney tumours)
    'nnUNet': (82.23, 77.15, 85.18),
    'Swin UNETR': (82.26, 76.79, 85.52),
    'Universal': (86.38, 80.58, 87.05),
    'ZePT': (87.09, 81.66, 87.73),
}

_TABLE4 = {  # title: Dice of LiTS; AUROC, FPR95 and Dice of real-world colon
    'ZePT (w/o OFG)': (80.84, 75.39, 48.24, 31.28),
    'ZePT (w/o QRD)': (80.11, 72.46, 58.93, 25.84),
    'ZePT (w/o PMA)': (81.00, 78.01, 44.35, 33.06),
    'ZePT (w/o QKA)': (80.61, 74.22, 50.31, 31.04),
    'ZePT': (81.66, 84.35, 38.29, 36.23),
}

_TABLE5 = {  # Dice, NSD; the paper does not say whether ZePT was trained with boxes, too
    'MedSAM (relaxed 3D boxes)': (26.18, 36.25),
    'MSA (1 point)': (27.88, 39.06),
    'MA-SAM (relaxed 3D boxes)': (29.39, 41.11),
    'ZePT (relaxed 3D boxes)': (35.89, 48.04),
    'self-generated prompts': (36.23, 48.78),
}

_TABLE9 = {  # title: two of the four subtypes of real-world colon, and the mean over all four
    'OVSeg': ((70.06, 63.71, 16.51), (70.01, 63.89, 16.44), (69.95, 64.84, 16.05)),
    'ZePT': ((96.44, 18.58, 50.31), (88.29, 31.64, 39.10), (84.35, 38.29, 36.23)),
}

_TABLE10 = {  # title: Dice of real-world colon; "text" is "A computerized tomography of a [CLS]."
    'CLIP, text': 34.33,
    'CLIP, text + knowledge': 35.84,
    'ClinicalBERT, text': 34.69,
    'ClinicalBERT, text + knowledge': 36.23,
}

_TABLE11 = {  # title: real-world colon
    'one stage': (78.48, 44.03, 33.19),
    'two stages': (84.35, 38.29, 36.23),
}

_TABLE13 = {  # seen tumours: hepatic vessel of MSD, real-world colon
    'liver, kidney': ((91.57, 20.64, 52.94), (84.35, 38.29, 36.23)),
    'lung, kidney': ((86.80, 33.31, 40.57), (82.56, 40.95, 35.02)),
    'lung, liver': ((90.72, 23.98, 50.39), (78.50, 44.01, 33.21)),
    'pancreas, liver': ((92.58, 19.40, 53.83), (86.82, 34.36, 37.95)),
    'pancreas, liver, kidney': ((93.41, 17.79, 54.99), (87.71, 32.29, 38.87)),
    'pancreas, liver, kidney, lung': ((94.26, 17.05, 55.76), (89.04, 30.68, 39.52)),
}

_TABLE14_CLASSES = (
    'liver',
    'liver_tumor',
    'lung_tumor',
    'pancreas',
    'pancreas_tumor',
    'hepatic_vessel',
    'hepatic_vessel_tumor',
    'spleen',
    'colon_tumor',
)

_TABLE14 = {  # title: MSD, 5-fold cross-validation
    'nnUNet': (94.57, 58.22, 66.57, 80.06, 50.45, 63.29, 68.20, 96.53, 50.07),
    'Swin UNETR': (94.14, 57.93, 68.90, 80.18, 52.54, 62.37, 68.63, 95.86, 50.55),
    'Universal': (96.53, 71.92, 67.11, 82.75, 60.83, 62.64, 69.47, 96.75, 62.15),
    'ZePT': (97.22, 72.95, 69.07, 86.23, 62.10, 64.39, 70.65, 97.04, 64.87),
}


def _of(tumour: str, numbers: tuple[float, ...]) -> dict[str, float]:
    """AUROC, FPR95 and Dice of an unseen tumour; all cases of the paper's data hold it."""
    return {f'{metric}/{tumour}': n for metric, n in zip(_METRICS, numbers, strict=True)}


def table1() -> dict:
    """Tab. 1: unseen tumours."""
    msd: dict[str, dict[str, float]] = {title: {} for title in _TABLE1}
    for title, rows in _TABLE1.items():
        for tumour, row in zip(_MSD, rows[:-1], strict=True):
            msd[title] |= _of(tumour, row)
    own = {title: _of('colon_tumor', rows[-1]) for title, rows in _TABLE1.items()}
    return {'paper, MSD': msd, 'paper, real-world colon': own}


def table2() -> dict:
    """Tab. 2: size and operations."""
    columns = ('parameters', 'gflop')
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE2.items()}
    return {'paper': rows}


def table3() -> dict:
    """Tab. 3: Dice of seen organs and tumours."""
    columns = ('dice/organ', 'dice_present/liver_tumor', 'dice_present/kidney_tumor')
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE3.items()}
    return {'paper, BTCV, LiTS, KiTS': rows}


def table4() -> dict:
    """Tab. 4: ablations."""
    return {
        'paper, LiTS': {t: {'dice_present/liver_tumor': row[0]} for t, row in _TABLE4.items()},
        'paper, real-world colon': {t: _of('colon_tumor', row[1:]) for t, row in _TABLE4.items()},
    }


def table5() -> dict:
    """Tab. 5: prompts. Its data are not named; ZePT's Dice is that of the real-world colon set."""
    columns = ('dice_present/colon_tumor', 'nsd_present/colon_tumor')
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE5.items()}
    return {'paper, real-world colon': rows}


def table9() -> dict:
    """Tab. 9: subtypes that PhantomCT has, too; not signet ring cell and adenosquamous ones."""
    groups = ('@colon_adenocarcinoma', '@colon_mucinous', '')
    found: dict[str, dict[str, float]] = {}
    for title, rows in _TABLE9.items():
        cells = [_of(f'colon_tumor{g}', row) for g, row in zip(groups, rows, strict=True)]
        found[title] = {key: number for part in cells for key, number in part.items()}
    return {'paper, real-world colon': found}


def table10() -> dict:
    """Tab. 10: text encoder and text."""
    rows = {title: {'dice_present/colon_tumor': number} for title, number in _TABLE10.items()}
    return {'paper, real-world colon': rows}


def table11() -> dict:
    """Tab. 11: one stage or two."""
    return {'paper, real-world colon': {t: _of('colon_tumor', row) for t, row in _TABLE11.items()}}


def table13() -> dict:
    """Tab. 13: tumours that stage II sees."""
    sources = (('paper, MSD', 'hepatic_vessel_tumor'), ('paper, real-world colon', 'colon_tumor'))
    return {
        source: {title: _of(tumour, rows[index]) for title, rows in _TABLE13.items()}
        for index, (source, tumour) in enumerate(sources)
    }


def table14() -> dict:
    """Tab. 14: fully supervised."""
    columns = tuple(f'dice_present/{name}' for name in _TABLE14_CLASSES)
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE14.items()}
    return {'paper, MSD': rows}
