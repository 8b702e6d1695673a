"""Numbers that MaxQuery (CVPR 2023) prints, in percent, by row title and column.

They were measured on the authors' own CT, which is not public. Table numbers are those of the
main text; the appendix numbers its tables from 1 again.
"""

_LOCALISATION = ('auroc', 'aupr', 'fpr95', 'case_auc')

_TABLE1 = {  # title: pancreas, liver
    'MC Dropout': ((49.08, 11.47, 84.60, 72.91), (39.61, 16.05, 91.13, 34.05)),
    'MSP': ((53.81, 13.44, 86.44, 73.38), (75.14, 25.27, 70.04, 66.76)),
    'MaxLogit': ((58.46, 21.93, 83.68, 73.42), (78.60, 35.47, 48.73, 65.68)),
    'SynthCP': ((69.86, 26.50, 66.65, 68.43), (74.93, 34.03, 57.91, 63.34)),
    'SML': ((56.10, 30.44, 77.81, 62.26), (86.64, 44.59, 31.04, 63.85)),
    'Ours (w/o QD)': ((63.54, 25.25, 67.09, 74.87), (74.95, 42.31, 53.52, 65.91)),
    'Ours': ((82.52, 55.60, 46.19, 77.97), (88.75, 48.80, 23.93, 69.04)),
}

_PANCREAS = ('PDAC', 'IPMN', 'PNET', 'SCN', 'CP', 'SPT', 'MCN')
_LIVER = ('HCC', 'ICC', 'Meta.', 'Heman.', 'Cyst')

_TABLE2 = {  # title: pancreas with its average, liver with its average
    'nnUNet': (
        (65.65, 27.60, 32.59, 36.46, 23.33, 31.73, 30.96, 35.47),
        (57.22, 28.16, 52.81, 77.55, 46.49, 52.45),
    ),
    'Swin UNETR': (None, (50.48, 32.62, 36.06, 71.82, 15.30, 41.26)),  # in the text of Sec. 4.3
    '(nn)TransUNet': (  # appendix Tab. 3 and 4
        (64.91, 31.18, 26.78, 38.96, 22.39, 29.87, 30.27, 34.91),
        (52.26, 25.50, 42.31, 70.90, 47.52, 47.70),
    ),
    'Ours (w/o QD)': (
        (65.87, 28.30, 32.43, 40.63, 28.93, 30.77, 30.89, 36.84),
        (60.91, 30.58, 53.21, 78.47, 46.42, 53.92),
    ),
    'Ours': (
        (67.91, 46.92, 32.07, 42.51, 31.36, 42.67, 28.97, 41.77),
        (67.61, 30.78, 60.40, 77.07, 47.61, 56.69),
    ),
}

_TABLE3 = {  # title: pancreas; Tab. 3 prints 46.90 as FPR95 of (16, 4, 12), Tab. 1 and 4 46.19
    'SML': (56.10, 30.44, 77.81, 35.47),
    '(8, 4, 20)': (84.44, 51.32, 42.10, 36.50),
    '(8, 20, 4)': (83.73, 49.76, 43.32, 39.79),
    '(16, 4, 12)': (82.52, 55.60, 46.90, 41.77),
    '(20, 4, 8)': (85.66, 55.17, 37.24, 38.19),
    '(24, 4, 4)': (86.41, 52.58, 33.70, 39.43),
}

_TABLE4 = {  # title: pancreas
    'Category, post-softmax': (58.14, 16.28, 79.29),
    'Category, pre-softmax': (52.70, 24.59, 88.40),
    'Query, post-softmax': (76.88, 33.98, 55.82),
    'Query, pre-softmax': (82.52, 55.60, 46.19),
}


def table1() -> dict:
    """Tab. 1: OOD localisation and OOD cases."""
    return {
        f'paper, {organ}': {
            title: dict(zip(_LOCALISATION, numbers[index], strict=True))
            for title, numbers in _TABLE1.items()
        }
        for index, organ in enumerate(('pancreas', 'liver'))
    }


def table2(titles: tuple[str, ...] = ('nnUNet', 'Swin UNETR', 'Ours (w/o QD)', 'Ours')) -> dict:
    """Tab. 2, the text of Sec. 4.3 and appendix Tab. 3 and 4: Dice of inlier tumours."""
    found: dict = {}
    for index, (organ, types) in enumerate((('pancreas', _PANCREAS), ('liver', _LIVER))):
        columns = (*(f'dice/{name}' for name in types), 'dice')
        found[f'paper, {organ}'] = {
            title: dict(zip(columns, _TABLE2[title][index], strict=True))
            for title in titles
            if _TABLE2[title][index] is not None
        }
    return found


def table3() -> dict:
    """Tab. 3: query distributions."""
    columns = ('auroc', 'aupr', 'fpr95', 'dice')
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE3.items()}
    return {'paper, pancreas': rows}


def table4() -> dict:
    """Tab. 4: level of the score, and whether a softmax stands before it."""
    columns = ('auroc', 'aupr', 'fpr95')
    rows = {title: dict(zip(columns, numbers, strict=True)) for title, numbers in _TABLE4.items()}
    return {'paper, pancreas': rows}
