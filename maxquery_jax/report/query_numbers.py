"""Which query takes which voxel: counts per true class that add up over slices and cases."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from maxquery_jax.metrics.ood import ScoreHistogram
from maxquery_jax.report.labels import LabelTable
from maxquery_jax.report.tables import Table

GROUPS = ('background', 'organ', 'tumour')
TOP_QUERIES = 3
Histograms = Mapping[str, ScoreHistogram]
ANOMALIES = {'max_response': -1, 'length': -1, 'cosine': -1, 'category_logit': 1}
"""Sign with which each voxel quantity of `inference.queries.PARTS` is an anomaly score."""

_ROLE_ROWS = {
    'background': 'background',
    'organ': 'organ',
    'tumour': 'known tumour',
    'ood': 'unknown tumour',
}
# Group of queries that should take the voxels of a role; an unknown tumour is a tumour.
_GROUP_OF_ROLE = {'background': 0, 'organ': 1, 'tumour': 2, 'ood': 2}


@dataclasses.dataclass(frozen=True)
class QueryCounts:
    """Sums over voxels, per class id of the truth.

    Attributes:
        winner: [ids, N] voxels whose largest assignment is to the query.
        group: [ids, 3] voxels whose largest merged assignment (MaxQuery Eq. 5) is to the group.
        predicted: [ids, ids] voxels by predicted class; zeros where none was given.
        entropy: [ids] summed entropy of M, nats.
        parts: quantity to [ids, 2] sums of it and of its square.
        cases: by case, quantity to the histogram of organ, tumour and OOD voxels.
        tumours: quantity to the histogram of tumour and OOD voxels of all cases.
    """

    winner: np.ndarray
    group: np.ndarray
    predicted: np.ndarray
    entropy: np.ndarray
    parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    cases: Mapping[str, Histograms] = dataclasses.field(default_factory=dict)
    tumours: Histograms = dataclasses.field(default_factory=dict)

    @property
    def voxels(self) -> np.ndarray:
        """[ids] voxels per class."""
        return self.winner.sum(axis=1)

    @property
    def num_used(self) -> int:
        """Queries that are the first choice of at least one voxel."""
        return int((self.winner.sum(axis=0) > 0).sum())

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of M over all voxels, nats; at most log N."""
        return float(self.entropy.sum() / max(1, self.voxels.sum()))

    def merge(self, other: Self) -> Self:
        """Counts of both, which are of different slices or cases."""
        cases = dict(self.cases)
        for case, histograms in other.cases.items():
            cases[case] = _join(cases.get(case, {}), histograms, ScoreHistogram.merge)
        return type(self)(
            self.winner + other.winner,
            self.group + other.group,
            self.predicted + other.predicted,
            self.entropy + other.entropy,
            _join(self.parts, other.parts, np.add),
            cases,
            _join(self.tumours, other.tumours, ScoreHistogram.merge),
        )


def _join(
    first: Mapping[str, Any], second: Mapping[str, Any], add: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """Entries of both; those of one name are added."""
    joint = dict(first)
    for name, value in second.items():
        joint[name] = add(joint[name], value) if name in joint else value
    return joint


def count_queries(
    assignment: np.ndarray,
    label: np.ndarray,
    query_groups: Sequence[int],
    table: LabelTable,
    *,
    predicted: np.ndarray | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
    case: str = '',
) -> QueryCounts:
    """Counts the voxels of a slice or a slab.

    Args:
        assignment: [N, ...] M, sums to one over the first axis.
        label: [...] class id of the truth (uint8).
        query_groups: (N1, N2, N3), N1 + N2 + N3 == N.
        table: classes.
        predicted: [...] predicted class, optional.
        parts: [...] of each quantity, see `inference.queries.PARTS`.
        case: its name, under which the quantities are ranked.
    """
    num_ids = len(table.names)
    num_queries = len(assignment)
    flat = assignment.reshape(num_queries, -1).astype(np.float32)
    ids = label.reshape(-1).astype(np.int64)
    starts = np.cumsum([0, *query_groups[:-1]])
    merged = np.add.reduceat(flat, starts, axis=0)
    entropy = -(flat * np.log(np.maximum(flat, 1e-30))).sum(axis=0)

    def tally(index: np.ndarray, size: int) -> np.ndarray:
        return np.bincount(ids * size + index, minlength=num_ids * size).reshape(num_ids, size)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(ids, values, num_ids)

    values = {k: v.reshape(-1).astype(np.float64) for k, v in (parts or {}).items()}
    moments = {k: np.stack([total(v), total(v * v)], axis=1) for k, v in values.items()}

    def rank(*roles: str) -> dict[str, ScoreHistogram]:
        region, unknown = table.mask(label, *roles), table.mask(label, 'ood')
        return {
            name: ScoreHistogram.empty().update(ANOMALIES[name] * values, unknown, region)
            for name, values in (parts or {}).items()
        }

    return QueryCounts(
        tally(flat.argmax(axis=0), num_queries),
        tally(merged.argmax(axis=0), len(GROUPS)),
        (
            np.zeros((num_ids, num_ids), np.int64)
            if predicted is None
            else tally(predicted.reshape(-1), num_ids)
        ),
        total(entropy.astype(np.float64)),
        moments,
        {case: rank('organ', 'tumour', 'ood')} if case else {},
        rank('tumour', 'ood'),
    )


def group_confusion(counts: QueryCounts, table: LabelTable) -> dict[str, np.ndarray]:
    """Share of voxels that each group of queries takes, by kind of voxel.

    Returns:
        'background', 'organ', 'known tumour' and 'unknown tumour', those that occur, to [3]
        shares of the background, organ and tumour queries; each sums to one.
    """
    rows = {}
    for role, name in _ROLE_ROWS.items():
        row = counts.group[list(table.ids(role))].sum(axis=0)
        if row.sum():
            rows[name] = row / row.sum()
    return rows


def describe_counts(
    counts: QueryCounts, table: LabelTable, query_groups: Sequence[int]
) -> dict[str, Any]:
    """Everything as JSON: used queries, entropy, confusion, a record per class, ranking."""
    classes = [
        _describe_class(counts, i, table, query_groups)
        for i in range(len(table.names))
        if counts.voxels[i]
    ]
    return {
        'num_queries': counts.winner.shape[1],
        'query_groups': list(query_groups),
        'queries_used': counts.num_used,
        'mean_entropy': counts.mean_entropy,
        'max_entropy': float(np.log(counts.winner.shape[1])),
        'group_confusion': {
            name: dict(zip(GROUPS, row.tolist(), strict=True))
            for name, row in group_confusion(counts, table).items()
        },
        'classes': classes,
        'ood_auroc': _rank(counts),
    }


def ranking_rows(record: Mapping[str, Any], title: str) -> Table:
    """The ranking of `describe_counts` as a table of the page."""
    columns = ('anomaly score', 'against organ and known tumour', 'against known tumour')
    rows = []
    for name, entry in record['ood_auroc'].items():
        values = [entry['organ_region'], entry['tumours']]
        cells = ('-' if value is None else f'{100 * value:.1f}' for value in values)
        rows.append((f'-{name}' if entry['sign'] < 0 else name, *cells))
    return Table(title, columns, tuple(rows))


def class_rows(record: Mapping[str, Any], title: str) -> Table:
    """The classes of `describe_counts` as a table of the page."""
    columns = ('class', 'voxels', 'max response', '|P|', 'cosine', 'top queries', 'own group')
    rows = []
    for entry in record['classes']:
        parts = [entry['parts'].get(name) for name in ('max_response', 'length', 'cosine')]
        rows.append(
            (
                f'{entry["name"]} ({entry["role"]})',
                str(entry['voxels']),
                *(f'{p["mean"]:.2f} ± {p["sd"]:.2f}' if p else '' for p in parts),
                ', '.join(f'{q["query"]}: {100 * q["share"]:.0f}%' for q in entry['top_queries']),
                f'{100 * entry["group_agreement"]:.1f}%',
            )
        )
    return Table(title, columns, tuple(rows))


def _describe_class(
    counts: QueryCounts, i: int, table: LabelTable, query_groups: Sequence[int]
) -> dict[str, Any]:
    voxels = int(counts.voxels[i])
    groups = np.repeat(GROUPS, query_groups)
    order = np.argsort(-counts.winner[i], kind='stable')[:TOP_QUERIES]
    parts = {}
    for name, sums in counts.parts.items():
        mean, square = sums[i] / voxels
        parts[name] = {'mean': float(mean), 'sd': float(np.sqrt(max(square - mean**2, 0.0)))}
    predicted = counts.predicted[i] / voxels
    return {
        'id': i,
        'name': table.names[i],
        'role': table.roles[i],
        'voxels': voxels,
        'parts': parts,
        'entropy': float(counts.entropy[i] / voxels),
        'top_queries': [
            {'query': int(n), 'group': str(groups[n]), 'share': float(counts.winner[i, n] / voxels)}
            for n in order
            if counts.winner[i, n]
        ],
        'group_shares': dict(zip(GROUPS, (counts.group[i] / voxels).tolist(), strict=True)),
        'group_agreement': float(counts.group[i, _GROUP_OF_ROLE[table.roles[i]]] / voxels),
        'predicted': {table.names[c]: float(share) for c, share in enumerate(predicted) if share},
    }


def _rank(counts: QueryCounts) -> dict[str, Any]:
    """AUROC of each quantity, with its sign, as an anomaly score of unknown tumour.

    'organ_region': against organ and known tumour of the same case, mean over OOD cases;
    'tumours': against known tumour only, the voxels of all cases pooled. None where undefined.
    """
    ranking = {}
    for name, pooled in counts.tumours.items():
        values = np.array([float(case[name].compute().auroc) for case in counts.cases.values()])
        values = values[np.isfinite(values)]
        auroc = float(pooled.compute().auroc)
        ranking[name] = {
            'sign': ANOMALIES[name],
            'organ_region': float(values.mean()) if len(values) else None,
            'cases': len(values),
            'tumours': auroc if np.isfinite(auroc) else None,
        }
    return ranking
