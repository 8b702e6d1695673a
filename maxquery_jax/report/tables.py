"""The tables of a summary, for the terminal, plain text and HTML."""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from maxquery_jax.metrics.dice import SUMMARIES
from maxquery_jax.metrics.ood import METRICS
from maxquery_jax.report.estimates import POOLINGS, SURFACE_SUMMARIES
from maxquery_jax.report.measure import REGIONS

_TITLES = {
    'auroc': 'AUROC',
    'aupr': 'AUPR',
    'fpr95': 'FPR95',
    'auc': 'AUC',
    'case_mean': 'case mean',
    'present_mean': 'present mean',
    'pooled': 'pooled',
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table of text.

    Attributes:
        title: one line.
        columns: headings.
        rows: cells, as many per row as columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """Headline, OOD voxels, OOD classes, OOD cases, Dice, surfaces, lesions, groups; in percent."""
    return [
        _headline(summary),
        _localisation(summary),
        *_by_class(summary),
        _case_level(summary),
        _dice(summary),
        _surfaces(summary),
        _lesions(summary),
        *_groups(summary),
    ]


def case_table(summary: dict[str, Any]) -> Table:
    """One row per case: Dice of each class and the default score's metrics in the organ region."""
    score = summary['scores'][0]
    names = list(summary['cases'][0]['dice'])
    rows = []
    for case in summary['cases']:
        voxel = case['ood'][score]['organ']
        fallback = case['case_score_fallback']
        mark = f' ({fallback})' if fallback else ''
        rows.append(
            (
                case['case'],
                'OOD' if case['is_ood'] else 'inlier',
                *(percent(case['dice'][name]) for name in names),
                *(percent(voxel[metric]) for metric in METRICS),
                f'{case["case_score"][score]:.4g}{mark}',
            )
        )
    columns = (
        'case',
        'kind',
        *(f'Dice {name}' for name in names),
        *(_TITLES[metric] for metric in METRICS),
        'case score',
    )
    return Table(f'Cases: Dice, and {score} in the organ region', columns, tuple(rows))


def percent(value: float | None) -> str:
    """A rate in percent with one decimal; '-' when undefined."""
    return '-' if value is None else f'{100 * value:.1f}'


def show(tables: list[Table]) -> None:
    """Prints tables: drawn on a terminal, aligned plain text otherwise."""
    if sys.stdout.isatty():
        console = Console()
        for table in tables:
            drawn = RichTable(*table.columns, title=table.title, title_justify='left')
            for row in table.rows:
                drawn.add_row(*row)
            console.print(drawn)
    else:
        print('\n\n'.join(plain(table) for table in tables), flush=True)


def plain(table: Table) -> str:
    """A table as aligned text without colours or frames."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    text = ['  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return '\n'.join([table.title, *(line.rstrip() for line in text)])


def plain_number(value: float | None) -> str:
    """A number with two decimals; '-' when undefined."""
    return '-' if value is None else f'{value:.2f}'


def _cell(summary: dict[str, Any], key: str, form: Callable[..., str] = percent) -> str:
    """Value and interval of a metric, in percent unless told otherwise; '-' if there is none."""
    return _estimate(summary['metrics'].get(key), form)


def _estimate(metric: dict[str, Any] | None, form: Callable[..., str] = percent) -> str:
    if metric is None:
        return '-'
    low, high = metric['ci95']
    interval = '' if low is None else f' [{form(low)}, {form(high)}]'
    return form(metric['value']) + interval


def _headline(summary: dict[str, Any]) -> Table:
    counts = summary['counts']
    title = (
        f'{summary["name"]}: {counts["cases"]} cases ({counts["inlier_cases"]} inlier, '
        f'{counts["ood_cases"]} OOD), % [95% CI]'
    )
    rows = [
        (key, _cell(summary, key), str(summary['metrics'][key]['n'])) for key in summary['headline']
    ]
    return Table(title, ('metric', 'value', 'n'), tuple(rows))


def _localisation(summary: dict[str, Any]) -> Table:
    rows = []
    for score in summary['scores']:
        for region in _shown_regions(summary):
            for pooling in POOLINGS:
                keys = [f'ood/{score}/{region}/{pooling}/{metric}' for metric in METRICS]
                n = summary['metrics'][keys[0]]['n']
                cells = (_cell(summary, key) for key in keys)
                rows.append((score, region, _TITLES[pooling], *cells, str(n)))
    columns = ('score', 'region', 'over', *(_TITLES[metric] for metric in METRICS), 'n')
    return Table('OOD localisation, % [95% CI]', columns, tuple(rows))


def _shown_regions(summary: dict[str, Any]) -> list[str]:
    """`REGIONS`, without `host` where it is the organ region, or an older program left it out."""
    prefix, metrics = f'ood/{summary["scores"][0]}', summary['metrics']
    ends = [f'{pooling}/{metric}' for pooling in POOLINGS for metric in METRICS]
    pairs = [(metrics[f'{prefix}/organ/{e}'], metrics.get(f'{prefix}/host/{e}')) for e in ends]
    is_same = all(host in (None, organ) for organ, host in pairs)
    return [region for region in REGIONS if region != 'host' or not is_same]


def _by_class(summary: dict[str, Any]) -> list[Table]:
    """A row per OOD class, score and region, as in ZePT Tab. 1; none without OOD."""
    classes = summary.get('ood_by_class', {})
    rows = []
    regions = [region for region in _shown_regions(summary) if region in ('organ', 'host')]
    for score, region in itertools.product(summary['scores'], regions):
        parts = [(name, found['scores'][score], found['cases']) for name, found in classes.items()]
        if len(parts) > 1:
            cases = summary['counts']['ood_cases']
            parts.append((f'mean of {len(parts)} classes', summary['ood_class_mean'][score], cases))
        for name, found, cases in parts:
            mean = '_mean/ood' if name not in classes else f'/{name}'
            shapes = (_cell(summary, f'{kind}{mean}/present_mean') for kind in ('dice', 'nsd'))
            ranks = (_estimate(found[region][metric]) for metric in METRICS)
            rows.append((name, score, region, *ranks, *shapes, str(cases)))
    columns = ('class', 'score', 'region', *(_TITLES[m] for m in METRICS), 'Dice', 'NSD', 'n cases')
    title = (
        'OOD classes over the cases that hold them, % [95% CI]; host: only the organs that they '
        'grow in; Dice and NSD where the class is predicted'
    )
    return [Table(title, columns, tuple(rows))] if rows else []


def _case_level(summary: dict[str, Any]) -> Table:
    """AUC by the case score, with and without the cases that lack the region of its rule."""
    fallbacks = summary['counts']['case_score_fallbacks_by_kind']
    rows = []
    for score in summary['scores']:
        keys = [f'ood_case/{score}/{name}' for name in ('auc', 'auc_without_fallback')]
        counts = (str(summary['metrics'][key]['n']) for key in keys)
        rows.append((score, *(_cell(summary, key) for key in keys), ' / '.join(counts)))
    told = (
        f'{sum(regions.values())} {name} ({regions["organ"]} organ, {regions["volume"]} volume)'
        for name, regions in (('inlier', fallbacks['inlier']), ('OOD', fallbacks['ood']))
    )
    title = f'OOD cases, % [95% CI]; without predicted tumour, fell back: {", ".join(told)}'
    columns = ('score', 'AUC', 'AUC without fallback', 'n all / without')
    return Table(title, columns, tuple(rows))


def _dice(summary: dict[str, Any]) -> Table:
    rows = []
    for name, role, group, member in _class_rows(summary):
        keys = [f'dice{group}/{member}/{kind}' for kind in SUMMARIES]
        cells = (_cell(summary, key) for key in keys)
        counts = (summary['metrics'][key]['n'] for key in keys[:2])
        rows.append((name, role, *cells, ' / '.join(map(str, counts))))
    columns = ('class', 'role', *(_TITLES[kind] for kind in SUMMARIES), 'n defined / present')
    return Table(f'Dice on {_which_cases(summary)}, % [95% CI]', columns, tuple(rows))


def _surfaces(summary: dict[str, Any]) -> Table:
    infinite = summary['counts']['hd95_infinite']
    rows = []
    for name, role, group, member in _class_rows(summary):
        if group == '_any':  # of joined tumours there is Dice only
            continue
        nsd = (_cell(summary, f'nsd{group}/{member}/{kind}') for kind in SURFACE_SUMMARIES['nsd'])
        key = f'hd95{group}/{member}/case_mean'
        count = str(infinite[member]) if not group else ''
        n = str(summary['metrics'][key]['n'])
        rows.append((name, role, *nsd, _cell(summary, key, plain_number), n, count))
    tolerance = summary['policy']['surface']['nsd_tolerance_mm']
    columns = (
        'class',
        'role',
        *(f'NSD, {_TITLES[kind]}' for kind in SURFACE_SUMMARIES['nsd']),
        'HD95 mm',
        'n HD95',
        'n infinite',
    )
    title = (
        f'Surfaces on {_which_cases(summary)}: NSD at {tolerance:g} mm, % [95% CI]; HD95 without '
        'the cases in which one of the masks is empty (infinite)'
    )
    return Table(title, columns, tuple(rows))


def _lesions(summary: dict[str, Any]) -> Table:
    zero_shot = _zero_shot(summary)
    kinds = {'tumour': 'inlier', 'ood': 'OOD'}
    rows = [
        (label['name'], 'all' if label['name'] in zero_shot else kind, 'lesion', label['name'])
        for role, kind in kinds.items()
        for label in summary['labels']
        if label['role'] == role
    ]
    rows += [('any tumour', 'inlier', 'lesion_any', 'tumour')]
    rows += [('any OOD', 'all' if zero_shot else 'OOD', 'lesion_any', 'ood')]
    cells = []
    for name, kind, prefix, member in rows:
        group = 'lesions' if prefix == 'lesion' else 'lesions_any'
        wanted = {'inlier': (False,), 'OOD': (True,), 'all': (False, True)}[kind]
        cases = [case for case in summary['cases'] if case['is_ood'] in wanted]
        truth = sum(case[group][member]['truth'] for case in cases)
        rates = (
            _cell(summary, f'{prefix}/{member}/{rate}')
            for rate in ('sensitivity', 'sensitivity_any', 'precision', 'f1')
        )
        false = _cell(summary, f'{prefix}/{member}/fp_per_case', plain_number)
        cells.append((name, kind, str(truth), *rates, false))
    policy = summary['policy']['lesion']
    title = (
        f'Lesions of {policy["min_lesion_ml"]:g} ml and more, found when '
        f'{100 * policy["lesion_overlap"]:g}% covered, % [95% CI]'
    )
    columns = (
        'lesions',
        'cases',
        'n lesions',
        'found as this',
        'found as any tumour',
        'precision',
        'F1',
        'false per case',
    )
    return Table(title, columns, tuple(cells))


def _groups(summary: dict[str, Any]) -> list[Table]:
    """A table per group of cases: OOD localisation by the default score, Dice and NSD."""
    groups, score = summary.get('groups') or {}, summary['scores'][0]
    columns = ('class', *(_TITLES[m] for m in METRICS), 'Dice', 'NSD', 'n cases')
    tables = []
    for name, group in groups.get('by_name', {}).items():
        counts = group['counts']
        title = (
            f'{groups["column"]} {name}: {counts["cases"]} cases ({counts["inlier_cases"]} inlier, '
            f'{counts["ood_cases"]} OOD), {score} in the organ region, Dice and NSD where present, '
            '% [95% CI]'
        )
        tables.append(Table(title, columns, tuple(_group_rows(summary, group, score))))
    return tables


def _group_rows(summary: dict[str, Any], group: dict[str, Any], score: str) -> list[tuple]:
    """OOD classes, then known tumours, that the group's cases hold, and the mean over organs."""
    unknown = {n: part['scores'][score]['organ'] for n, part in group['ood_by_class'].items()}
    ranks = {n: [_estimate(part[m]) for m in METRICS] for n, part in unknown.items()}
    cases = {n: part['cases'] for n, part in group['ood_by_class'].items()}
    rows = []
    if len(unknown) > 1:
        keys = [f'ood/{score}/organ/case_mean/{metric}' for metric in METRICS]
        count = str(group['counts']['ood_cases'])
        rows.append(('any OOD', *(_cell(group, key) for key in keys), '-', '-', count))
    shown = [(name, '', name) for name in unknown]
    for name, role, ending, member in _class_rows(summary):
        if (role, ending) in (('tumour', ''), ('organ', '_mean')):
            shown.append((name, ending, member))
    for name, ending, member in shown:
        keys = [f'{kind}{ending}/{member}/present_mean' for kind in ('dice', 'nsd')]
        if name in unknown or keys[0] in group['metrics']:
            count = cases[name] if name in cases else group['metrics'][keys[0]]['n']
            shapes = (_cell(group, key) for key in keys)
            rows.append((name, *ranks.get(name, '---'), *shapes, str(count)))
    return rows


def _class_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of a table by class: name, role, and the metric's suffix and second part."""
    zero_shot = _zero_shot(summary)
    measured = {
        role: [
            label['name']
            for label in summary['labels']
            if label['role'] == role and (role != 'ood' or label['name'] in zero_shot)
        ]
        for role in ('organ', 'tumour', 'ood')
    }
    words = {'organ': 'organ', 'tumour': 'tumour', 'ood': 'zero-shot'}
    rows = [(name, words[role], '', name) for role, names in measured.items() for name in names]
    for role, names in measured.items():
        if names:
            rows.append((f'mean over {words[role]} classes', words[role], '_mean', role))
    return [*rows, ('any tumour', 'tumour', '_any', 'tumour')]


def _zero_shot(summary: dict[str, Any]) -> list[str]:
    """OOD classes that are predicted."""
    return [
        label['name']
        for label in summary['labels']
        if label['role'] == 'ood' and label.get('predicted')
    ]


def _which_cases(summary: dict[str, Any]) -> str:
    return 'inlier cases' + (', zero-shot classes on all cases' if _zero_shot(summary) else '')
