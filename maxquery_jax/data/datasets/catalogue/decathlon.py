"""The six CT tasks of the Medical Segmentation Decathlon.

The label names of their dataset.json are checked, so that the wrong folder is noticed. Files:
imagesTr/liver_0.nii.gz, labelsTr/liver_0.nii.gz, listed in dataset.json.
"""

from collections.abc import Mapping

from maxquery_jax.data.datasets.spec import DatasetSpec, Layout

_SOURCE = (
    'dataset.json as described by Antonelli et al. 2022 and read by nnU-Net; ids as in '
    'ljwztc/CLIP-Driven-Universal-Model (label_transfer.py, keys 10_03 to 10_10)'
)


def _task(
    name: str,
    title: str,
    json_labels: Mapping[int, str],
    labels: Mapping[int, str],
    contains: Mapping[str, str] | None = None,
    note: str = '',
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        title=title,
        layout=Layout(kind='dataset_json', json_labels=json_labels),
        labels=labels,
        contains=contains or {},
        to_taxonomy={label: label for label in labels.values()},
        licence='CC BY-SA 4.0',
        citation='Antonelli et al., The Medical Segmentation Decathlon, Nature Communications '
        '2022, doi 10.1038/s41467-022-30695-9',
        url='http://medicaldecathlon.com',
        layout_source=_SOURCE,
        note=note,
    )


DECATHLON = (
    _task(
        'msd_liver',
        'Decathlon Task03_Liver: 131 CT with liver and liver tumours',
        {1: 'liver', 2: 'cancer'},
        {1: 'liver', 2: 'liver_tumour'},
        {'liver_tumour': 'liver'},
        'msd_liver: the same scans as lits under other names; use one of the two',
    ),
    _task(
        'msd_lung',
        'Decathlon Task06_Lung: 63 CT with lung tumours',
        {1: 'cancer'},
        {1: 'lung_tumour'},
    ),
    _task(
        'msd_pancreas',
        'Decathlon Task07_Pancreas: 281 CT with pancreas and pancreas tumours (and cysts)',
        {1: 'pancreas', 2: 'cancer'},
        {1: 'pancreas', 2: 'pancreas_tumour'},
        {'pancreas_tumour': 'pancreas'},
    ),
    _task(
        'msd_hepatic_vessel',
        'Decathlon Task08_HepaticVessel: 303 CT with liver vessels and liver tumours',
        {1: 'vessel', 2: 'tumour'},
        {1: 'hepatic_vessel', 2: 'hepatic_vessel_tumour'},
    ),
    _task(
        'msd_spleen',
        'Decathlon Task09_Spleen: 41 CT with spleen',
        {1: 'spleen'},
        {1: 'spleen'},
    ),
    _task(
        'msd_colon',
        'Decathlon Task10_Colon: 126 CT with colon cancer primaries',
        {1: 'colon cancer primaries'},
        {1: 'colon_tumour'},
    ),
)
