"""Columns of a study's tables: what the keys of a study file name."""

import dataclasses
from collections.abc import Sequence

from maxquery_jax.errors import UserError

REGIONS = ('organ', 'host', 'interior', 'whole')
POOLINGS = ('case_mean', 'pooled')
TYPES = 'types'  # 'dice/types' stands for one column per tumour type
OOD = 'ood'
_GROUPS = {'organ': 'organs', OOD: 'unseen tumours'}  # means over all classes of a role
_SHORT = {'dice_present': 'Dice where present', 'nsd_present': 'NSD where present'}

# name: title, unit, whether lower is better
VOXEL_METRICS = {
    'auroc': ('AUROC', '%', False),
    'aupr': ('AUPR', '%', False),
    'fpr95': ('FPR95', '%', True),
}
_CASE = {'case_auc': ('case AUC', '%', False)}
CLASS_METRICS = {
    'dice': ('inlier tumour Dice', '%', False),
    'dice_present': ('Dice, cases that hold the type', '%', False),
    'nsd': ('NSD', '%', False),
    'nsd_present': ('NSD, cases that hold the type', '%', False),
    'hd95': ('HD95', 'mm', True),
    'lesion_sensitivity': ('lesion sensitivity', '%', False),
}
_ANY = {
    'dice_any': ('Dice, tumours of all types as one', '%', False),
    'lesion_sensitivity_any': ('lesion sensitivity, any type', '%', False),
}
_OTHER = {
    'fallbacks': ('case score fell back', 'cases', True),
    'parameters': ('parameters', 'M', True),
    'gflop': ('forward pass of a patch', 'GFLOP', True),
    'train_time': ('training time', 'min', True),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: as the study file writes it.
        metric: its first part.
        title: heading.
        unit: '%' (values are fractions), 'mm', 'M', 'GFLOP', 'min' or 'cases'.
        lower_is_better: whether a smaller value is better.
        region: of `REGIONS`, of voxel metrics.
        pooling: 'case_mean' or 'pooled', of voxel metrics.
        tumour: of one class; of several joined by '+', or of all with the role 'organ' or 'ood',
            the mean over them. '' is, of voxel metrics, all OOD voxels as one, and of the others
            the mean over the known tumour types.
        group: whose cases alone count, such as a subtype; '' for all cases.
    """

    key: str
    metric: str
    title: str
    unit: str
    lower_is_better: bool
    region: str = ''
    pooling: str = ''
    tumour: str = ''
    group: str = ''

    @property
    def needs_score(self) -> bool:
        """Whether a row must name an anomaly score for it."""
        return self.metric in VOXEL_METRICS or self.metric in _CASE

    @property
    def is_compared(self) -> bool:
        """Whether a difference between two rows is a finding: not of costs and counts."""
        return self.metric not in _OTHER


def parse_column(key: str, where: str) -> Column:
    """Reads 'auroc', 'auroc/organ/pooled', 'auroc/colon_tumor', 'dice/cyst', 'dice/types', ...

    'dice_any/CLASS' is, over the cases that hold an OOD class, the Dice of all tumours as one: how
    well its tumours are found, whatever they are called.

    '@GROUP' at the end of any of these is the same over the cases of one group.

    Raises:
        UserError: there is no such column.
    """
    whole, at, group = key.partition('@')
    if at:
        column = parse_column(whole, where)
        if group and column.is_compared and column.pooling != 'pooled':
            return _of_group(column, group)
        raise UserError(f'{where}: column {key!r}: name a group behind a mean over cases')
    metric, *rest = key.split('/')
    known = VOXEL_METRICS | _CASE | CLASS_METRICS | _ANY | _OTHER
    if metric not in known:
        raise UserError(f'{where}: no column {key!r}: choose from {", ".join(known)}')
    if metric in VOXEL_METRICS:
        return _parse_voxel_column(key, metric, rest, where)
    if metric == 'dice_any' and len(rest) == 1:
        title = f'Dice as any tumour: {_class_title(rest[0])}'
        return Column(key, metric, title, '%', False, tumour=rest[0])
    if rest and (metric not in CLASS_METRICS or len(rest) > 1):
        raise UserError(f'{where}: column {key!r} has too many parts')
    if rest and rest[0] != TYPES:
        return class_column(metric, rest[0])
    return Column(key, metric, *known[metric], tumour=rest[0] if rest else '')


def _parse_voxel_column(key: str, metric: str, parts: Sequence[str], where: str) -> Column:
    """Of METRIC[/REGION[/POOLING]], or METRIC/CLASS[/REGION]."""
    title, unit, lower = VOXEL_METRICS[metric]
    rest = list(parts)
    tumour = rest.pop(0) if rest and rest[0] not in REGIONS else ''
    region, pooling = (*rest, *('organ', 'case_mean')[len(rest) :])[:2]
    if len(rest) > (1 if tumour else 2) or region not in REGIONS or pooling not in POOLINGS:
        raise UserError(
            f'{where}: column {key!r}: name a region ({", ".join(REGIONS)}) and a pooling '
            f'({", ".join(POOLINGS)}), or a class and a region'
        )
    names = {
        'organ': '',
        'host': 'host organ',
        'interior': 'organ interior',
        'whole': 'whole volume',
    }
    extra = [names[region], pooling.replace('case_mean', '')]
    suffix = ', '.join(text for text in extra if text)
    title = f'{title} ({suffix})' if suffix else title
    title = f'{title}: {_class_title(tumour)}' if tumour else title
    return Column(key, metric, title, unit, lower, region=region, pooling=pooling, tumour=tumour)


def class_column(metric: str, tumour: str) -> Column:
    """A column of one class, or of several; see `Column.tumour`."""
    title, unit, lower = CLASS_METRICS[metric]
    label = _class_title(tumour)
    if metric == 'dice':
        title = f'Dice, {label}' if label != tumour else label
    else:
        title = f'{_SHORT.get(metric, title)}: {label}'
    return Column(f'{metric}/{tumour}', metric, title, unit, lower, tumour=tumour)


def _of_group(column: Column, group: str) -> Column:
    named = {'key': f'{column.key}@{group}', 'title': f'{column.title} @ {group}'}
    return dataclasses.replace(column, group=group, **named) if group else column


def _class_title(tumour: str) -> str:
    names = tumour.split('+')
    label = f'{len(names)} classes' if len(names) > 1 else _GROUPS.get(tumour, tumour)
    return label if label == tumour else f'mean of {label}'


def expand(columns: Sequence[Column], tumours: Sequence[str]) -> tuple[Column, ...]:
    """Replaces 'dice/types' and the like by one column per tumour type."""
    found: list[Column] = []
    for column in columns:
        if column.tumour == TYPES:
            found += [_of_group(class_column(column.metric, n), column.group) for n in tumours]
        else:
            found.append(column)
    return tuple(found)
