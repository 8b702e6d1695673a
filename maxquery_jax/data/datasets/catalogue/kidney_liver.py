"""Tumours of kidney and liver: KiTS19, KiTS21, KiTS23 and LiTS."""

import dataclasses

from maxquery_jax.data.datasets.spec import DatasetSpec, FileGroup, Layout

LITS = DatasetSpec(
    name='lits',
    title='LiTS: 131 CT with liver and liver tumours',
    layout=Layout(
        groups=(
            FileGroup(
                images=('**/volume-{case}{nii}',),
                label='**/segmentation-{case}{nii}',
                cases=r'\d+',
                needs_label=False,
            ),
        ),
        case_id='lits_{case}',
    ),
    labels={1: 'liver', 2: 'liver_tumour'},
    contains={'liver_tumour': 'liver'},
    to_taxonomy={'liver': 'liver', 'liver_tumour': 'liver_tumour'},
    licence='CC BY-NC-ND 4.0',
    citation='Bilic et al., The liver tumor segmentation benchmark (LiTS), Medical Image Analysis '
    '2023, doi 10.1016/j.media.2022.102680',
    url='https://competitions.codalab.org/competitions/17094',
    layout_source='openmedlab/Awesome-Medical-Dataset on GitHub, LiTS.md (Training Batch 1/'
    'volume-0.nii, segmentation-0.nii; the test volumes come without labels)',
    note='lits: the same scans as msd_liver under other names; use one of the two',
)

_CITATION = (
    'Heller et al., The state of the art in kidney and kidney tumor segmentation in '
    'contrast-enhanced CT imaging: Results of the KiTS19 challenge, Medical Image Analysis 2021, '
    'doi 10.1016/j.media.2020.101821'
)

KITS19 = DatasetSpec(
    name='kits19',
    title='KiTS19: 210 labelled CT with kidneys and kidney tumours',
    layout=Layout(
        groups=(
            FileGroup(
                images=('case_{case}/imaging{nii}',),
                label='case_{case}/segmentation{nii}',
                cases=r'\d{5}',
                needs_label=False,
            ),
        ),
        roots=('', 'data', 'kits19/data'),
        case_id='case_{case}',
    ),
    labels={1: 'kidney', 2: 'kidney_tumour'},
    contains={'kidney_tumour': 'kidney'},
    left_right={'kidney': ('right_kidney', 'left_kidney')},
    to_taxonomy={
        'right_kidney': 'right_kidney',
        'left_kidney': 'left_kidney',
        'kidney_tumour': 'kidney_tumour',
    },
    licence='CC BY-NC-SA 4.0',
    citation=_CITATION,
    url='https://github.com/neheller/kits19',
    layout_source='README of neheller/kits19 (data/case_00000/imaging.nii.gz, segmentation.nii.gz; '
    'cases from 210 on have no label)',
)

_WITH_CYSTS = {
    'labels': {1: 'kidney', 2: 'kidney_tumour', 3: 'kidney_cyst'},
    'contains': {'kidney_tumour': 'kidney', 'kidney_cyst': 'kidney'},
    'to_taxonomy': {**KITS19.to_taxonomy, 'kidney_cyst': 'kidney_cyst'},
    'note': (
        'with --taxonomy=zept cysts are an unknown class, so that every case with a cyst is kept '
        'for testing; --ignore=kidney_cyst trains on them as background, --tumour=kidney_cyst '
        'learns them'
    ),
}

KITS21 = dataclasses.replace(
    KITS19,
    name='kits21',
    title='KiTS21: 300 CT with kidneys, kidney tumours and cysts',
    layout=Layout(
        groups=(
            FileGroup(
                images=('case_{case}/imaging{nii}',),
                label='case_{case}/aggregated_MAJ_seg{nii}',
                cases=r'\d{5}',
            ),
        ),
        roots=('', 'data', 'kits21/data', 'kits21/kits21/data'),
        case_id='case_{case}',
    ),
    url='https://github.com/neheller/kits21',
    layout_source='README of neheller/kits21 (data/case_00000/aggregated_MAJ_seg.nii.gz: the '
    'majority of the annotators, as the challenge evaluates)',
    **_WITH_CYSTS,
)

KITS23 = dataclasses.replace(
    KITS19,
    name='kits23',
    title='KiTS23: 489 CT with kidneys, kidney tumours and cysts',
    layout=Layout(
        groups=(
            FileGroup(
                images=('case_{case}/imaging{nii}',),
                label='case_{case}/segmentation{nii}',
                cases=r'\d{5}',
            ),
        ),
        roots=('', 'dataset', 'kits23/dataset'),
        case_id='case_{case}',
    ),
    url='https://github.com/neheller/kits23',
    layout_source='neheller/kits23 on GitHub (dataset/case_00000/imaging.nii.gz, '
    'segmentation.nii.gz); labels verified on 24 real files',
    **_WITH_CYSTS,
)

KIDNEY_LIVER = (LITS, KITS19, KITS21, KITS23)
