"""A filled table as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RUN = 'not run'
NOT_MEASURED = 'not measured'
UNDEFINED = '-'

_DIGITS = {'%': 1, 'mm': 1, 'M': 2, 'GFLOP': 2, 'min': 1, 'cases': 1}
_MEANINGS = {  # metric to what a reader must know about its column
    'dice': (
        'Dice: mean over the inlier cases, 0 where a type was predicted that the truth lacks, then '
        'over the types.'
    ),
    'hd95': 'HD95 leaves out cases in which one of the masks is empty.',
    'case_auc': 'Case score: mean anomaly over the predicted tumour.',
    'fallbacks': (
        'Case score fell back: cases without predicted tumour, scored over the predicted organ or '
        'the volume.'
    ),
    'gflop': (
        'Forward pass of a patch: operations of the network at prediction, a multiply-add as two.'
    ),
    'train_time': 'Training time: steps of all stages, shared ones included, without compilation.',
}
_CLASS_VOXELS = (
    'AUROC, AUPR and FPR95 of an unseen class: its voxels against all that are not OOD, mean over '
    'the cases that hold it; its Dice and NSD are over all cases.'
)
_GROUPS = (
    '@: only the cases whose tumours are of this subtype, as the raw data say in subtypes.csv, and '
    'intervals over these: {counts}.'
)
_COHORTS = (
    'The rows are of {count} cohorts, since what they train on differs: as many cases each, the '
    'numbers above are of the first; patients have other tumours in each. Rows of different '
    'cohorts (‡) are compared without pairing.'
)
_DATA = (
    'Columns "paper" are the numbers that the paper prints for its own data: different '
    'data, not comparable in value, only in the order of the rows.'
)


def to_markdown(table: Mapping[str, Any], heading: str) -> str:
    """The table, the comparisons between its rows, and how to read them.

    Args:
        table: from `tables.build_table`.
        heading: how it was made.
    """
    lines = [f'# {table["title"]}', '', heading, '', *_main(table), '', *_legend(table)]
    if table['pairs']:
        where = ', on the same cases' if table['cohorts'] < 2 else ''
        lines += ['', f'## Differences between rows{where}', '', *_pairs(table)]
    if table['order']:
        lines += ['', '## Order of the rows, ours against the paper', '', *_order(table)]
    return '\n'.join(lines) + '\n'


def _main(table: Mapping[str, Any]) -> list[str]:
    columns, reference = table['columns'], table['reference']
    printed = [
        (source, key)
        for source, numbers in reference.items()
        for key in dict.fromkeys(key for cells in numbers.values() for key in cells)
    ]
    ours = {column['key']: column for column in columns}
    head = ['method', *(_title(column) for column in columns)]
    head += [f'*{source}:* {_reference_title(key, ours)}' for source, key in printed]
    lines = [_line(head), '|---' * len(head) + '|']
    for row in table['rows']:
        cells = [_cell(row, column) for column in columns]
        theirs = [reference[source].get(row['title'], {}).get(key) for source, key in printed]
        cells += ['' if value is None else f'*{value:.2f}*' for value in theirs]
        partial = 0 < len(row['seeds']) < len(table['seeds'])
        done = f' ({len(row["seeds"])} of {len(table["seeds"])} seeds)' if partial else ''
        lines.append(_line([row['title'] + done, *cells]))
    known = {row['title'] for row in table['rows']}
    extra = dict.fromkeys(t for numbers in reference.values() for t in numbers if t not in known)
    for title in extra:  # rows that only the paper has
        theirs = [reference[source].get(title, {}).get(key) for source, key in printed]
        cells = ['' if value is None else f'*{value:.2f}*' for value in theirs]
        lines.append(_line([f'*{title}*', *('' for _ in columns), *cells]))
    return lines


def _cell(row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    if not row['seeds']:
        return NOT_RUN
    cell = row['cells'].get(column['key'])
    if cell is None:
        return NOT_MEASURED
    if cell['value'] is None:
        return UNDEFINED
    text = _number(cell['value'], column)
    if cell['low'] is not None and cell['high'] is not None:
        low, high = (_number(cell[end], column) for end in ('low', 'high'))
        text += f' [{low}, {high}]' + ('' if cell['is_joint'] else '†')
    return text if cell['seed_sd'] is None else f'{text} ± {_number(cell["seed_sd"], column)}'


def _legend(table: Mapping[str, Any]) -> list[str]:
    counts, splits = table['counts'], ' and '.join(table['splits'])
    folds = table['folds']
    how = f', {folds}-fold cross-validation' if folds else ''
    text = (
        f'Cases: {counts["cases"]} of {splits} ({counts["inlier_cases"]} inlier, '
        f'{counts["ood_cases"]} OOD){how}. Percent, unless a heading names a unit. Mean over seeds '
        f'{", ".join(map(str, table["seeds"]))} [95% interval over cases] ± SD over seeds; the '
        f'interval is of {table["resamples"]} bootstrap resamples of the cases, the same for all '
        'seeds. Arrows point to the better side.'
    )
    lines = [text]
    cells = [cell for row in table['rows'] for cell in row['cells'].values()]
    if any(not cell['is_joint'] for cell in cells):
        lines += ['', "† mean of the seeds' own intervals (voxels pooled over cases)."]
    shown = dict.fromkeys(column['metric'] for column in table['columns'])
    meanings = [_MEANINGS[metric] for metric in shown if metric in _MEANINGS]
    if any(column['region'] and column['tumour'] for column in table['columns']):
        meanings.append(_CLASS_VOXELS)
    if any(metric.endswith('_present') for metric in shown):
        meanings.append('Where present: mean over the cases whose truth holds the class.')
    joined = dict.fromkeys(c['tumour'] for c in table['columns'] if '+' in c['tumour'])
    for names in (text.split('+') for text in joined):
        meanings.append(f'{len(names)} classes: {", ".join(names)}.')
    if table['groups']:
        counts = ', '.join(f'{n} of {name}' for name, n in table['groups'].items())
        meanings.append(_GROUPS.format(counts=counts))
    if meanings:
        lines += ['', ' '.join(meanings)]
    if table['cohorts'] > 1:
        lines += ['', _COHORTS.format(count=table['cohorts'])]
    if folds and 'test' in table['splits']:
        lines += ['', 'Test cases are predicted by the ensemble of the folds.']
    if table['reference']:
        lines += ['', _DATA]
    if table['note']:
        lines += ['', table['note']]
    return lines


def _pairs(table: Mapping[str, Any]) -> list[str]:
    columns = {column['key']: column for column in table['columns']}
    seeds = ', '.join(map(str, table['seeds']))
    head = ['first minus second', 'column', 'difference [95%]', f'seeds {seeds}', 'p', 'p (Holm)']
    head += ['p Wilcoxon', 'p Wilcoxon (Holm)']
    lines = [_line(head), '|---' * len(head) + '|']
    for pair in table['pairs']:
        title = f'{pair["first"]} − {pair["second"]}'
        if not pair['differences']:
            lines.append(_line([title, NOT_RUN, *('' for _ in head[2:])]))
        for key, found in pair['differences'].items():
            column = columns[key]
            value = _number(found['value'], column, signed=True)
            if found['low'] is not None and found['high'] is not None:
                low, high = (_number(found[end], column, signed=True) for end in ('low', 'high'))
                value += f' [{low}, {high}]' + ('' if found['is_paired'] else '‡')
            each = [found['seeds'].get(str(seed)) for seed in table['seeds']]
            cells = [title, _title(column), value]
            cells.append(', '.join(_number(v, column, signed=True) for v in each))
            names = ('p_bootstrap', 'p_bootstrap_holm', 'p_wilcoxon', 'p_wilcoxon_holm')
            lines.append(_line([*cells, *(_p_value(found[name]) for name in names)]))
    text = (
        'p: paired bootstrap over cases, two-sided. p Wilcoxon: signed-rank test on the values of '
        'the cases, each the mean over seeds. Holm: corrected over the pairs of this table, within '
        'a column. Both treat the trained networks as given; the differences of the seeds show '
        'how much training again changes.'
    )
    return [*lines, '', text]


def _order(table: Mapping[str, Any]) -> list[str]:
    ours = {column['key']: column for column in table['columns']}
    lines = [_line(['source', 'column', "Kendall's tau", 'rows']), '|---' * 4 + '|']
    for source, entries in table['order'].items():
        for key, entry in entries.items():
            tau = UNDEFINED if entry['tau'] is None else f'{entry["tau"]:+.2f}'
            lines.append(_line([source, _reference_title(key, ours), tau, str(entry['rows'])]))
    return [*lines, '', '1 is the same order of the rows, 0 no relation, −1 the reverse.']


def _title(column: Mapping[str, Any]) -> str:
    unit = '' if column['unit'] == '%' else f' ({column["unit"]})'
    arrow = {'cases': '', 'M': '', 'GFLOP': '', 'min': ''}.get(
        column['unit'], ' ↓' if column['lower_is_better'] else ' ↑'
    )
    return f'{column["title"]}{unit}{arrow}'


def _reference_title(key: str, ours: Mapping[str, Mapping[str, Any]]) -> str:
    return ours[key]['title'] if key in ours else key.removeprefix('dice/')


def _number(value: float | None, column: Mapping[str, Any], *, signed: bool = False) -> str:
    if value is None:
        return UNDEFINED
    scale, digits = 100 if column['unit'] == '%' else 1, _DIGITS[column['unit']]
    return f'{scale * value:{"+" if signed else ""}.{digits}f}'


def _p_value(value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'
