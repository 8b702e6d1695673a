"""Opens a raw data set by its name, or by the name of its layout."""

import dataclasses
import difflib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maxquery_jax.data.datasets.catalogue import DATASETS
from maxquery_jax.data.datasets.custom import load_spec
from maxquery_jax.data.datasets.decathlon import read_decathlon
from maxquery_jax.data.datasets.files import read_spec
from maxquery_jax.data.datasets.pairs import parse_label_names, read_pairs
from maxquery_jax.data.datasets.phantom import CohortSpec, write_cohort
from maxquery_jax.data.labels import LabelTable, RoleFlags, build_label_table
from maxquery_jax.data.raw import RawDataset
from maxquery_jax.data.taxonomy import TAXONOMIES, build_taxonomy_table
from maxquery_jax.errors import UserError
from maxquery_jax.progress import Progress

LAYOUTS = {
    'decathlon': 'a folder with dataset.json: Medical Segmentation Decathlon, nnU-Net v1 or v2 raw',
    'nnunet': 'a folder of nnU-Net v2 raw: dataset.json, imagesTr, labelsTr (same as decathlon)',
    'pairs': 'loose files found by --images and --labels, named by --label_names',
    'custom': 'your own data, described by a JSON file --spec; see --spec_template',
    'phantom': 'the built-in synthetic cohort; written into --source if nothing is there',
}
DATASET_NAMES = (*LAYOUTS, *DATASETS)


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How loose files become cases; the layout 'pairs' only.

    Attributes:
        images: one pattern per channel, such as `*_ct.nii.gz`.
        labels: pattern of the label maps, '' for none.
        label_names: names of the ids, such as `1:liver,2:tumour`.
        channels: names of the channels.
    """

    images: tuple[str, ...] = ()
    labels: str = ''
    label_names: str = ''
    channels: tuple[str, ...] = ()


def open_source(
    dataset: str,
    source: str | os.PathLike,
    *,
    pairs: PairOptions | None = None,
    roles: RoleFlags | None = None,
    taxonomy: str | None = None,
    spec: str | os.PathLike | None = None,
) -> tuple[RawDataset, LabelTable]:
    """Lists the cases of a raw data set and decides the ids of its labels.

    Args:
        dataset: one of `DATASET_NAMES`.
        source: the folder.
        pairs: patterns of the layout 'pairs'.
        roles: which labels are organ, tumour, ood or ignored; wins over the specification.
        taxonomy: 'zept' for the fixed label table of `taxonomy`; None for the data set's own
            labels.
        spec: JSON file with the specification of the data set 'custom'.

    Raises:
        UserError: unknown data set, an option of another one, or a malformed data set.
    """
    if dataset not in DATASET_NAMES:
        close = difflib.get_close_matches(dataset, DATASET_NAMES, 1)
        hint = f'did you mean {close[0]}? ' if close else ''
        raise UserError(
            f'--dataset={dataset}: unknown data set; {hint}names: {", ".join(DATASET_NAMES)}'
        )
    if not str(source):
        raise UserError('--source: give the folder of the raw data')
    if taxonomy is not None and taxonomy not in TAXONOMIES:
        raise UserError(f'--taxonomy={taxonomy}: known is {", ".join(TAXONOMIES)}')
    raw = _read(dataset, pathlib.Path(source), pairs or PairOptions(), spec)
    shared = {'left_right': raw.left_right, 'contains': raw.contains, 'masks': raw.masks}
    if taxonomy is None:
        return raw, build_label_table(raw.raw_labels, roles, raw.roles, **shared)
    table = build_taxonomy_table(raw.raw_labels, roles, to_taxonomy=raw.to_taxonomy, **shared)
    return raw, table


def _read(
    dataset: str, source: pathlib.Path, pairs: PairOptions, spec: str | os.PathLike | None
) -> RawDataset:
    if dataset != 'pairs':
        for field in dataclasses.fields(PairOptions):
            if getattr(pairs, field.name):
                raise UserError(f'--{field.name} belongs to --dataset=pairs, not {dataset}')
    if (spec is not None) != (dataset == 'custom'):
        raise UserError(
            '--dataset=custom needs --spec=FILE.json; --spec_template prints an example'
            if dataset == 'custom'
            else f'--spec belongs to --dataset=custom, not {dataset}'
        )
    if spec is not None:
        return read_spec(load_spec(spec), source)
    if dataset in DATASETS:
        return read_spec(DATASETS[dataset], source)
    if dataset != 'pairs':
        return read_decathlon(source)
    if pairs.labels and not pairs.label_names:
        raise UserError('--label_names: name the ids of the label files, as in 1:liver,2:tumour')
    names = parse_label_names(pairs.label_names)
    return read_pairs(source, pairs.images, pairs.labels or None, names, pairs.channels)


def write_phantom(
    source: str | os.PathLike,
    spec: Mapping[str, Any],
    *,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Writes the phantom cohort into a folder that does not hold it yet.

    Args:
        source: the folder.
        spec: fields of `phantom.CohortSpec`; what is left out keeps its default. Empty means
            whatever cohort is there, or the default one.
        workers: processes; None for as many as help.
        progress: whether to print a progress line.

    Raises:
        UserError: unknown field, a value of the wrong kind, or another data set in the folder.
    """
    if not spec and (pathlib.Path(source) / 'dataset.json').exists():
        return
    cohort = parse_cohort(spec)
    if cohort.annotated_groups:
        names = ', '.join(group.name for group in cohort.annotated_groups)
        raise UserError(
            f'phantom: annotated_groups make several data sets ({names}); write them with '
            'phantom.write_cohort and prepare each as decathlon'
        )
    line: Progress | None = None

    def on_case(case_id: str, _: int, total: int) -> None:
        nonlocal line
        line = line or Progress('phantom', total)
        line.step(case_id)

    if workers is None:
        workers = min(2, os.cpu_count() or 1) if _is_worth_processes(cohort) else 0
    write_cohort(source, cohort, workers=workers, on_case=on_case if progress else None)


def parse_cohort(spec: Mapping[str, Any]) -> CohortSpec:
    """The phantom cohort that `data.phantom` or command-line fields describe.

    Raises:
        UserError: unknown field, or a value of the wrong kind.
    """
    known = [field.name for field in dataclasses.fields(CohortSpec)]
    for name in spec:
        if name not in known:
            raise UserError(f'phantom: no field {name!r}; fields: {", ".join(known)}')
    spec = {
        name: (value,) if name in ('phases', 'ood_labels') and isinstance(value, str) else value
        for name, value in spec.items()
    }
    try:
        return CohortSpec(**spec)
    except (TypeError, ValueError) as error:
        raise UserError(f'phantom: {error}') from error


def _is_worth_processes(cohort: CohortSpec) -> bool:
    """Whether generating takes longer than the seconds that starting processes takes."""
    voxels = math.prod(cohort.shape_zyx) * len(cohort.phases)
    cases = cohort.num_train + cohort.num_val + cohort.num_test_inlier + cohort.num_test_ood
    seconds = cases * (0.25 + 2.5e-6 * voxels)  # of one core, roughly
    return seconds > 4
