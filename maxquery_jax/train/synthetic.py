"""Manifests without cases: classes, channels and spacing of data that is not there.

`launch.benchmark` and `launch.compile` build a stage from one in place of a store's.
"""

from collections.abc import Sequence

from maxquery_jax.data.sources import parse_cohort
from maxquery_jax.data.store import Manifest
from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.train.data import cohort_fields
from maxquery_jax.train.zept_stage import has_query_table
from maxquery_jax.typing import Config

_MAXQUERY_MM = (3.0, 0.419, 0.419)  # Sec. 4.2, pancreas
_MAXQUERY_TUMOURS = 7  # Sec. 4.1, pancreas: known ones
_ZEPT_MM = (1.5, 1.5, 1.5)  # Sec. 4


def planned_manifest(
    config: Config,
    stage_name: str,
    *,
    num_tumours: int | None = None,
    num_channels: int | None = None,
    spacing_mm: tuple[float, ...] | None = None,
) -> Manifest:
    """Of the data that an experiment is meant for: its phantom cohort, or else the paper's data.

    Args:
        config: the experiment.
        stage_name: one of its stages. ZePT's experiments, baselines included, and stages with a
            query per class take the seen classes of ZePT Table 8.
        num_tumours: instead of the experiment's: known tumours beside one organ.
        num_channels: P, instead of the experiment's.
        spacing_mm: (z, y, x), instead of the experiment's.

    Raises:
        UserError: `data.phantom` describes no cohort.
    """
    is_taxonomy = config.name == 'zept' or has_query_table(config[stage_name].objective)
    if config.data.phantom and num_tumours is None:
        cohort = parse_cohort(cohort_fields(config.data.phantom))
        return _manifest(
            cohort.resolved_task.roles,
            spacing_mm or cohort.spacing_mm,
            num_channels or len(cohort.phases),
        )
    return synthetic_manifest(
        _MAXQUERY_TUMOURS if num_tumours is None else num_tumours,
        spacing_mm or (_ZEPT_MM if is_taxonomy else _MAXQUERY_MM),
        num_channels or 1,
        is_taxonomy=is_taxonomy,
    )


def synthetic_manifest(
    num_tumours: int,
    spacing_mm: tuple[float, ...],
    num_channels: int,
    *,
    is_taxonomy: bool = False,
) -> Manifest:
    """A manifest without cases: enough to build a stage for data that is not there.

    Args:
        num_tumours: known tumours beside one organ.
        spacing_mm: (z, y, x).
        num_channels: P.
        is_taxonomy: the seen classes of ZePT Table 8 instead.
    """
    roles = ['background', 'organ'] + ['tumour'] * num_tumours
    names = [f'{role}{i}' if i > 1 else role for i, role in enumerate(roles)]
    if is_taxonomy:
        seen = [concept for concept in TAXONOMY if concept.seen]
        names = ['background', *(concept.name for concept in seen)]
        roles = ['background', *(concept.kind for concept in seen)]
    return _manifest(dict(zip(names, roles, strict=True)), spacing_mm, num_channels)


def _manifest(roles: dict[str, str], spacing_mm: Sequence[float], num_channels: int) -> Manifest:
    """Of classes by id: name to role, background first."""
    labels = [{'id': i, 'name': name, 'role': role} for i, (name, role) in enumerate(roles.items())]
    return Manifest(
        dataset='synthetic',
        spacing_mm=tuple(spacing_mm),
        channels=tuple(f'phase{i}' for i in range(num_channels)),
        intensity={
            'lower': [-200.0] * num_channels,
            'upper': [300.0] * num_channels,
            'shift': [0.0] * num_channels,
            'scale': [100.0] * num_channels,
            'method': 'synthetic',
        },
        labels=tuple(labels),
        label_map={str(i): i for i in range(len(roles))},
        annotated=tuple(label['name'] for label in labels),
        splits={'train': (), 'val': (), 'test': ()},
        cases={},
        source='',
    )
