"""Organs of the abdomen: Pancreas-CT, AbdomenCT-1K, CHAOS, AMOS22, BTCV, WORD."""

from maxquery_jax.data.datasets.spec import DatasetSpec, FileGroup, Layout

_KIDNEY = {'kidney': ('right_kidney', 'left_kidney')}
_ADRENAL = {'adrenal': ('right_adrenal_gland', 'left_adrenal_gland')}


def _same(*names: str) -> dict[str, str]:
    """Labels that have the taxonomy's names already."""
    return {name: name for name in names}


PANCREAS_CT = DatasetSpec(
    name='pancreas_ct',
    title='NIH Pancreas-CT: 80 portal-venous CT of healthy pancreata',
    layout=Layout(
        groups=(
            FileGroup(
                images=('**/PANCREAS_{case}',),
                label='**/label{case}{nii}',
                cases=r'\d{4}',
            ),
        ),
        case_id='pancreas_ct_{case}',
        image_kind='dicom',
    ),
    labels={1: 'pancreas'},
    to_taxonomy=_same('pancreas'),
    licence='CC BY 3.0',
    citation='Roth et al., Data from Pancreas-CT, The Cancer Imaging Archive 2016, '
    'doi 10.7937/K9/TCIA.2016.tNB1kqBU; DeepOrgan, MICCAI 2015',
    url='https://www.cancerimagingarchive.net/collection/pancreas-ct/',
    layout_source='TCIA page; folder names as in codes-kzhan/Pancreas and giussepi/'
    'segmentation-co-training on GitHub (PANCREAS_0001/STUDY/SERIES/*.dcm, labels in '
    'TCIA_pancreas_labels-02-05-2017/label0001.nii.gz)',
    note='pancreas_ct: users report labels that lie mirrored against the DICOM images (mattiaspaul/'
    'deedsBCV issue 2); nnU-Net orders both by their headers. If check reports '
    'affine_mismatch, look at an overlay before --allow=affine_mismatch',
)

ABDOMENCT_1K = DatasetSpec(
    name='abdomenct_1k',
    title='AbdomenCT-1K: 1000 CT with liver, kidneys, spleen and pancreas',
    layout=Layout(
        groups=(
            FileGroup(
                images=('**/Case_{case}_0000{nii}',),
                label='**/Case_{case}{nii}',
                cases=r'\d+',
                needs_label=False,
            ),
        ),
        case_id='Case_{case}',
    ),
    labels={1: 'liver', 2: 'kidney', 3: 'spleen', 4: 'pancreas'},
    left_right=_KIDNEY,
    to_taxonomy=_same('liver', 'right_kidney', 'left_kidney', 'spleen', 'pancreas'),
    licence='CC BY 4.0',
    citation='Ma et al., AbdomenCT-1K: Is abdominal organ segmentation a solved problem?, '
    'TPAMI 2022, doi 10.1109/TPAMI.2021.3100536',
    url='https://zenodo.org/records/5903769',
    layout_source='constantinpape/torch-em on GitHub, abdomenct_1k.py '
    '(AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz, Mask/Case_00001.nii.gz)',
    note='abdomenct_1k: contains the scans of LiTS, KiTS19, Pancreas-CT and of the Decathlon tasks '
    'pancreas and spleen; do not test on those what was trained on this',
)

CHAOS = DatasetSpec(
    name='chaos',
    title='CHAOS, CT part: 20 CT of healthy livers (DICOM, labels as PNG)',
    layout=Layout(
        groups=(
            FileGroup(images=('CT/{case}/DICOM_anon',), label='CT/{case}/Ground', cases=r'\d+'),
        ),
        roots=('', 'Train_Sets', 'CHAOS_Train_Sets/Train_Sets'),
        case_id='chaos_{case}',
        image_kind='dicom',
        label_kind='slices',
    ),
    labels={255: 'liver'},  # the pictures are black and white
    to_taxonomy=_same('liver'),
    licence='CC BY-SA 4.0',
    citation='Kavur et al., CHAOS Challenge: combined (CT-MR) healthy abdominal organ '
    'segmentation, Medical Image Analysis 2021, doi 10.1016/j.media.2020.101950',
    url='https://zenodo.org/records/3431873',
    layout_source='constantinpape/torch-em on GitHub, chaos.py (Train_Sets/CT/1/DICOM_anon/*.dcm, '
    'Train_Sets/CT/1/Ground/liver_GT_000.png); seamusbarnes/chaos-challenge: the CT part labels '
    'the liver only, although ZePT Table 7 counts four organs (those of the MR part)',
)

AMOS22 = DatasetSpec(
    name='amos22',
    title='AMOS22, CT part: 300 labelled CT with 15 organs',
    layout=Layout(
        groups=(
            FileGroup(
                images=('imagesTr/amos_{case}{nii}',),
                label='labelsTr/amos_{case}{nii}',
                cases=r'0[0-4]\d\d',
                split='train',
            ),
            FileGroup(
                images=('imagesVa/amos_{case}{nii}',),
                label='labelsVa/amos_{case}{nii}',
                cases=r'0[0-4]\d\d',
                split='val',
            ),
        ),
        roots=('', 'amos22', 'AMOS22'),
        case_id='amos_{case}',
    ),
    labels={
        1: 'spleen',
        2: 'right_kidney',
        3: 'left_kidney',
        4: 'gall_bladder',
        5: 'esophagus',
        6: 'liver',
        7: 'stomach',
        8: 'aorta',
        9: 'postcava',
        10: 'pancreas',
        11: 'right_adrenal_gland',
        12: 'left_adrenal_gland',
        13: 'duodenum',
        14: 'bladder',
        15: 'prostate_uterus',
    },  # fmt: skip
    to_taxonomy={
        **_same(
            'spleen',
            'right_kidney',
            'left_kidney',
            'gall_bladder',
            'esophagus',
            'liver',
            'stomach',
            'aorta',
            'postcava',
            'pancreas',
            'right_adrenal_gland',
            'left_adrenal_gland',
            'duodenum',
            'bladder',
        ),
        'prostate_uterus': 'prostate',
    },  # fmt: skip
    licence='CC BY-NC-SA 4.0 (stored records differ; read the terms that come with the data)',
    citation='Ji et al., AMOS: A large-scale abdominal multi-organ benchmark for versatile medical '
    'image segmentation, NeurIPS 2022, arXiv 2206.08023',
    url='https://zenodo.org/records/7262581',
    layout_source='qiumuyang/PLDG on GitHub (README of the AMOS folder); ids below 500 are CT; '
    'label ids verified on a real file (amos_0013)',
)

BTCV = DatasetSpec(
    name='btcv',
    title='BTCV, abdomen: 30 portal-venous CT with 13 organs',
    layout=Layout(
        groups=(
            FileGroup(
                images=('img/img{case}{nii}',), label='label/label{case}{nii}', cases=r'\d{4}'
            ),
        ),
        roots=('', 'Training', 'RawData/Training', 'Abdomen/RawData/Training'),
        case_id='btcv_{case}',
    ),
    labels={
        1: 'spleen', 2: 'right_kidney', 3: 'left_kidney', 4: 'gall_bladder', 5: 'esophagus',
        6: 'liver', 7: 'stomach', 8: 'aorta', 9: 'postcava', 10: 'portal_vein_and_splenic_vein',
        11: 'pancreas', 12: 'right_adrenal_gland', 13: 'left_adrenal_gland',
    },  # fmt: skip
    to_taxonomy=_same(
        'spleen', 'right_kidney', 'left_kidney', 'gall_bladder', 'esophagus', 'liver', 'stomach',
        'aorta', 'postcava', 'portal_vein_and_splenic_vein', 'pancreas', 'right_adrenal_gland',
        'left_adrenal_gland',
    ),
    licence='CC BY 4.0, after registration',
    citation='Landman et al., MICCAI multi-atlas labeling beyond the cranial vault, 2015, '
    'doi 10.7303/syn3193805',
    url='https://www.synapse.org/Synapse:syn3193805',
    layout_source='folder RawData/Training/img and /label as used by scripts on GitHub that read '
    'the Synapse archive; ids as in the challenge and in ljwztc/CLIP-Driven-Universal-Model',
)  # fmt: skip

WORD = DatasetSpec(
    name='word',
    title='WORD: 150 CT before radiotherapy with 16 organs',
    layout=Layout(
        groups=(
            FileGroup(
                images=('imagesTr/word_{case}{nii}',),
                label='labelsTr/word_{case}{nii}',
                split='train',
            ),
            FileGroup(
                images=('imagesVal/word_{case}{nii}',),
                label='labelsVal/word_{case}{nii}',
                split='val',
            ),
            FileGroup(
                images=('imagesTs/word_{case}{nii}',),
                label='labelsTs/word_{case}{nii}',
                split='test',
                needs_label=False,
            ),
        ),
        roots=('', 'WORD-V0.1.0', 'WORD'),
        case_id='word_{case}',
    ),
    labels={
        1: 'liver', 2: 'spleen', 3: 'left_kidney', 4: 'right_kidney', 5: 'stomach',
        6: 'gall_bladder', 7: 'esophagus', 8: 'pancreas', 9: 'duodenum', 10: 'colon',
        11: 'intestine', 12: 'adrenal', 13: 'rectum', 14: 'bladder', 15: 'left_head_of_femur',
        16: 'right_head_of_femur',
    },  # fmt: skip
    left_right=_ADRENAL,
    to_taxonomy=_same(
        'liver', 'spleen', 'left_kidney', 'right_kidney', 'stomach', 'gall_bladder', 'esophagus',
        'pancreas', 'duodenum', 'colon', 'intestine', 'right_adrenal_gland', 'left_adrenal_gland',
        'rectum', 'bladder', 'left_head_of_femur', 'right_head_of_femur',
    ),
    licence='academic research only, on application',
    citation='Luo et al., WORD: A large scale dataset, benchmark and clinical applicable study for '
    'abdominal organ segmentation from CT image, Medical Image Analysis 2022, '
    'doi 10.1016/j.media.2022.102642',
    url='https://github.com/HiLab-git/WORD',
    layout_source='openmedlab/Awesome-Medical-Dataset on GitHub, WORD.md; ids as in '
    'ljwztc/CLIP-Driven-Universal-Model (label_transfer.py, key 07)',
)  # fmt: skip

ABDOMEN = (PANCREAS_CT, ABDOMENCT_1K, CHAOS, AMOS22, BTCV, WORD)
