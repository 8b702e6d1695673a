"""The trunk and the whole body: CT-ORG and TotalSegmentator."""

from maxquery_jax.data.datasets.spec import DatasetSpec, FileGroup, Layout, SplitTable

_FIRST_21 = r'\d|1\d|20'

CT_ORG = DatasetSpec(
    name='ct_org',
    title='CT-ORG: 140 CT with liver, bladder, lungs, kidneys, bones and brain',
    layout=Layout(
        groups=(
            FileGroup(
                images=('**/volume-{case}{nii}',),
                label='**/labels-{case}{nii}',
                cases=rf'(?!(?:{_FIRST_21})$)\d+',
                split='train',
            ),
            FileGroup(
                images=('**/volume-{case}{nii}',),
                label='**/labels-{case}{nii}',
                cases=_FIRST_21,
                split='test',
            ),
        ),
        case_id='ct_org_{case}',
    ),
    labels={1: 'liver', 2: 'bladder', 3: 'lung', 4: 'kidney', 5: 'bone', 6: 'brain'},
    left_right={
        'lung': ('right_lung', 'left_lung'),
        'kidney': ('right_kidney', 'left_kidney'),
    },
    to_taxonomy={
        'liver': 'liver',
        'bladder': 'bladder',
        'right_lung': 'right_lung',
        'left_lung': 'left_lung',
        'right_kidney': 'right_kidney',
        'left_kidney': 'left_kidney',
        'bone': None,
        'brain': None,
    },
    licence='CC BY 3.0',
    citation='Rister et al., CT-ORG, a new dataset for multiple organ segmentation in computed '
    'tomography, Scientific Data 2020, doi 10.1038/s41597-020-00715-8',
    url='https://www.cancerimagingarchive.net/collection/ct-org/',
    layout_source='constantinpape/torch-em on GitHub, ct_org.py, and the TCIA page (volume-0.nii.gz'
    ', labels-0.nii.gz; the first 21 are the test set)',
    note='ct_org: most scans are those of LiTS; do not test on those what was trained on this',
)


def _spine() -> list[str]:
    regions = (('S', 1), ('L', 5), ('T', 12), ('C', 7))
    return [f'vertebrae_{letter}{n}' for letter, count in regions for n in range(count, 0, -1)]


def _sided(name: str, *, right_first: bool = False) -> list[str]:
    sides = ('right', 'left') if right_first else ('left', 'right')
    return [f'{name}_{side}' for side in sides]


# In the order of version 2, ids 1 to 117; the last seven are of version 1 only.
_STRUCTURES = [
    'spleen',
    *_sided('kidney', right_first=True),
    'gallbladder',
    'liver',
    'stomach',
    'pancreas',
    *_sided('adrenal_gland', right_first=True),
    'lung_upper_lobe_left',
    'lung_lower_lobe_left',
    'lung_upper_lobe_right',
    'lung_middle_lobe_right',
    'lung_lower_lobe_right',
    'esophagus',
    'trachea',
    'thyroid_gland',
    'small_bowel',
    'duodenum',
    'colon',
    'urinary_bladder',
    'prostate',
    *_sided('kidney_cyst'),
    'sacrum',
    *_spine(),
    'heart',
    'aorta',
    'pulmonary_vein',
    'brachiocephalic_trunk',
    *_sided('subclavian_artery', right_first=True),
    *_sided('common_carotid_artery', right_first=True),
    *_sided('brachiocephalic_vein'),
    'atrial_appendage_left',
    'superior_vena_cava',
    'inferior_vena_cava',
    'portal_vein_and_splenic_vein',
    *_sided('iliac_artery'),
    *_sided('iliac_vena'),
    *_sided('humerus'),
    *_sided('scapula'),
    *_sided('clavicula'),
    *_sided('femur'),
    *_sided('hip'),
    'spinal_cord',
    *_sided('gluteus_maximus'),
    *_sided('gluteus_medius'),
    *_sided('gluteus_minimus'),
    *_sided('autochthon'),
    *_sided('iliopsoas'),
    'brain',
    'skull',
    *[f'rib_{side}_{n}' for side in ('left', 'right') for n in range(1, 13)],
    'sternum',
    'costal_cartilages',
    'heart_myocardium',
    'heart_atrium_left',
    'heart_ventricle_left',
    'heart_atrium_right',
    'heart_ventricle_right',
    'pulmonary_artery',
    'face',
]

# The femur masks are whole bones, not the heads that the taxonomy has; its colon reaches to the
# anus, so that there is no rectum.
_CONCEPTS = {
    'spleen': 'spleen',
    'kidney_right': 'right_kidney',
    'kidney_left': 'left_kidney',
    'gallbladder': 'gall_bladder',
    'liver': 'liver',
    'stomach': 'stomach',
    'pancreas': 'pancreas',
    'adrenal_gland_right': 'right_adrenal_gland',
    'adrenal_gland_left': 'left_adrenal_gland',
    'lung_upper_lobe_left': 'left_lung',
    'lung_lower_lobe_left': 'left_lung',
    'lung_upper_lobe_right': 'right_lung',
    'lung_middle_lobe_right': 'right_lung',
    'lung_lower_lobe_right': 'right_lung',
    'esophagus': 'esophagus',
    'small_bowel': 'intestine',
    'duodenum': 'duodenum',
    'colon': 'colon',
    'urinary_bladder': 'bladder',
    'prostate': 'prostate',
    'kidney_cyst_left': 'kidney_cyst',
    'kidney_cyst_right': 'kidney_cyst',
    'aorta': 'aorta',
    'inferior_vena_cava': 'postcava',
    'portal_vein_and_splenic_vein': 'portal_vein_and_splenic_vein',
}

TOTALSEGMENTATOR = DatasetSpec(
    name='totalsegmentator',
    title='TotalSegmentator v1 (104 structures) and v2 (117): 1204 and 1228 CT, folders of masks',
    layout=Layout(
        groups=(
            FileGroup(
                images=('{case}/ct{nii}',),
                label='{case}/segmentations',
                cases=r's\d+',
            ),
        ),
        roots=('', 'Totalsegmentator_dataset', 'Totalsegmentator_dataset_v201'),
        label_kind='masks',
        split_table=SplitTable(file='meta.csv', case='image_id', split='split', delimiter=';'),
    ),
    labels=dict(enumerate(_STRUCTURES, 1)),
    contains={'kidney_cyst_left': 'kidney_left', 'kidney_cyst_right': 'kidney_right'},
    to_taxonomy={name: _CONCEPTS.get(name) for name in _STRUCTURES},
    licence='CC BY 4.0',
    citation='Wasserthal et al., TotalSegmentator: Robust segmentation of 104 anatomic structures '
    'in CT images, Radiology: Artificial Intelligence 2023, doi 10.1148/ryai.230024',
    url='https://zenodo.org/records/10047292',
    layout_source='wasserth/TotalSegmentator on GitHub, resources/convert_dataset_to_nnunet.py '
    '(s0000/ct.nii.gz, s0000/segmentations/NAME.nii.gz, meta.csv with ; between columns) and '
    'map_to_binary.py (names); names and ids of v2 verified on real label maps',
    note='totalsegmentator: colon includes the rectum; the masks femur_left and femur_right are '
    'whole bones and no part of the taxonomy; tumours are not labelled, and lie within organs',
)

WHOLE_BODY = (CT_ORG, TOTALSEGMENTATOR)
