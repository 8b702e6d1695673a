"""One builder per data set: writes the tree, returns the masks of every case that counts."""

import json

import dicom_helper
import nifti_helper
import numpy as np
import tree_helper as tree

AMOS = ['spleen', 'right_kidney', 'left_kidney', 'gall_bladder', 'esophagus', 'liver', 'stomach',
        'aorta', 'postcava', 'pancreas', 'right_adrenal_gland', 'left_adrenal_gland', 'duodenum',
        'bladder', 'prostate_uterus']  # fmt: skip
BTCV = ['spleen', 'right_kidney', 'left_kidney', 'gall_bladder', 'esophagus', 'liver', 'stomach',
        'aorta', 'postcava', 'portal_vein_and_splenic_vein', 'pancreas', 'right_adrenal_gland',
        'left_adrenal_gland']  # fmt: skip
WORD = ['liver', 'spleen', 'left_kidney', 'right_kidney', 'stomach', 'gall_bladder', 'esophagus',
        'pancreas', 'duodenum', 'colon', 'intestine', 'adrenal', 'rectum', 'bladder',
        'left_head_of_femur', 'right_head_of_femur']  # fmt: skip
CT_ORG = ['liver', 'bladder', 'lung', 'kidney', 'bone', 'brain']


def number(names):
    return {name: i for i, name in enumerate(names, 1)}


def pancreas_ct(folder):
    masks = {}
    for case in ('0001', '0002'):
        masks[f'pancreas_ct_{case}'] = tree.blocks(['pancreas'], int(case))
        series = folder / 'Pancreas-CT' / f'PANCREAS_{case}' / '11-24-2015-PANCREAS' / 'Pancreas'
        dicom(series, int(case))
        label = np.where(masks[f'pancreas_ct_{case}']['pancreas'], 1, 0).astype(np.uint8)
        tree.write(folder / 'TCIA_pancreas_labels-02-05-2017' / f'label{case}.nii.gz', label)
    return masks


def dicom(folder, seed):
    """A series on the grid of `tree.write`: rows to Left, columns to Posterior, slices up."""
    array = np.ascontiguousarray(tree.hu(seed).transpose(2, 1, 0)[::-1, ::-1])
    place = dicom_helper.Place(spacing=(tree.SPACING,) * 3, origin=(10.0, -5.0, 30.0))
    dicom_helper.write_series(folder, array, place, uid=f'1.2.{seed}')


def chaos(folder):
    from PIL import Image

    masks = {}
    for case in ('1', '14'):
        masks[f'chaos_{case}'] = tree.blocks(['liver'], int(case) % 2)
        root = folder / 'Train_Sets' / 'CT' / case
        dicom(root / 'DICOM_anon', int(case))
        (root / 'Ground').mkdir()
        plane_of = masks[f'chaos_{case}']['liver'].transpose(2, 1, 0)[::-1, ::-1]  # [i, j, k]
        for k in range(tree.SIZE):
            picture = Image.fromarray(plane_of[:, :, k].T.astype(np.uint8) * 255)
            picture.save(root / 'Ground' / f'liver_GT_{k:03d}.png')
    (folder / 'Train_Sets' / 'MR' / '1' / 'T2SPIR').mkdir(parents=True)
    return masks


def abdomenct_1k(folder):
    ids = number(['liver', 'kidney', 'spleen', 'pancreas'])
    parts = {'Case_00001': 'ImagePart1', 'Case_00345': 'ImagePart2', 'Case_01063': 'ImagePart3'}
    masks = {
        case: tree.write_pair(
            folder / f'AbdomenCT-1K-{part}' / f'{case}_0000.nii.gz',
            folder / 'Mask' / f'{case}.nii.gz', seed, ids,
        )
        for seed, (case, part) in enumerate(parts.items())
    }  # fmt: skip
    tree.write(folder / 'AbdomenCT-1K-ImagePart3' / 'Case_01100_0000.nii.gz', tree.hu(9))
    return masks


def amos22(folder):
    root, masks = folder / 'amos22', {}
    for case, part in {'0001': 'Tr', '0410': 'Tr', '0013': 'Va', '0507': 'Tr'}.items():
        masks[f'amos_{case}'] = tree.write_pair(
            root / f'images{part}' / f'amos_{case}.nii.gz',
            root / f'labels{part}' / f'amos_{case}.nii.gz', int(case), number(AMOS),
        )  # fmt: skip
    tree.write(root / 'imagesTs' / 'amos_0003.nii.gz', tree.hu(9))
    masks.pop('amos_0507')  # magnetic resonance
    return masks


def btcv(folder):
    root = folder / 'RawData' / 'Training'
    return {
        f'btcv_{case}': tree.write_pair(
            root / 'img' / f'img{case}.nii.gz', root / 'label' / f'label{case}.nii.gz',
            int(case), number(BTCV),
        )
        for case in ('0001', '0002', '0040')
    }  # fmt: skip


def word(folder):
    root = folder / 'WORD-V0.1.0'
    masks = {
        f'word_{case}': tree.write_pair(
            root / f'images{part}' / f'word_{case}.nii.gz',
            root / f'labels{part}' / f'word_{case}.nii.gz', int(case), number(WORD),
        )
        for case, part in {'0002': 'Tr', '0005': 'Tr', '0001': 'Val', '0014': 'Ts'}.items()
    }  # fmt: skip
    tree.write(root / 'imagesTs' / 'word_0021.nii.gz', tree.hu(9))  # no label was given out
    return masks


def ct_org(folder):
    root = folder / 'OrganSegmentations'
    return {
        f'ct_org_{case}': tree.write_pair(
            root / f'volume-{case}.nii.gz', root / f'labels-{case}.nii.gz', case, number(CT_ORG)
        )
        for case in (0, 20, 21, 100, 139)
    }


def totalsegmentator(folder):
    """Version 1 and 2 names in one; most masks are left out, as building takes time."""
    names = ['spleen', 'kidney_right', 'kidney_left', 'lung_upper_lobe_left', 'femur_left', 'aorta',
             'heart_atrium_left', 'urinary_bladder', 'kidney_cyst_left']  # fmt: skip
    root, masks = folder / 'Totalsegmentator_dataset_v201', {}
    for seed, case in enumerate(['s0000', 's0001', 's0287', 's1429']):
        masks[case] = tree.blocks(names, seed % 2)
        tree.write(root / case / 'ct.nii.gz', tree.hu(seed))
        for name, mask in masks[case].items():
            target = root / case / 'segmentations' / f'{name}.nii.gz'
            tree.write(target, mask.astype(np.uint8))
    rows = ['image_id;age;split', 's0000;60;train', 's0001;61;train', 's0287;2;val',
            's1429;77;test', 's9999;1;train']  # fmt: skip
    (root / 'meta.csv').write_text('\ufeff' + '\n'.join(rows) + '\n')
    return masks


def lits(folder):
    ids = number(['liver', 'liver_tumour'])
    masks = {
        f'lits_{case}': tree.write_pair(
            folder / f'Training Batch {part}' / f'volume-{case}.nii',
            folder / f'Training Batch {part}' / f'segmentation-{case}.nii', case, ids,
        )
        for case, part in {0: 1, 27: 1, 130: 2}.items()
    }  # fmt: skip
    tree.write(folder / 'Test' / 'test-volume-0.nii', tree.hu(9))
    return masks


def kits(folder, label, names, unlabelled=()):
    masks = {}
    for case in ('00000', '00041', '00209', *unlabelled):
        root = folder / f'case_{case}'
        target = None if case in unlabelled else root / label
        found = tree.write_pair(root / 'imaging.nii.gz', target, int(case), number(names))
        if target is not None:
            masks[f'case_{case}'] = found
    return masks


def kits19(folder):
    names = ['kidney', 'kidney_tumour']
    return kits(folder / 'data', 'segmentation.nii.gz', names, ('00210',))


def kits21(folder):
    names = ['kidney', 'kidney_tumour', 'kidney_cyst']
    masks = kits(folder / 'kits21' / 'data', 'aggregated_MAJ_seg.nii.gz', names)
    root = folder / 'kits21' / 'data' / 'case_00000'
    tree.write(root / 'aggregated_OR_seg.nii.gz', tree.hu(0))
    tree.write(root / 'segmentations' / 'kidney_instance-1_annotation-1.nii.gz', tree.hu(0))
    return masks


def kits23(folder):
    names = ['kidney', 'kidney_tumour', 'kidney_cyst']
    return kits(folder / 'dataset', 'segmentation.nii.gz', names)


def msd(name, labels):
    """A Decathlon task: its dataset.json names, and ours for them."""

    def build(folder):
        ids, cases, masks = number(labels.values()), {}, {}
        for case in (0, 4, 12):
            found = tree.blocks(list(ids), case)
            arrays = [
                np.ascontiguousarray(a.transpose(2, 1, 0)[::-1, ::-1])
                for a in (tree.hu(case), tree.label_of(found, ids))
            ]
            cases[f'{name}_{case}'], masks[f'{name}_{case}'] = arrays, found
        listed = {'0': 'background', **{str(i): text for i, text in enumerate(labels, 1)}}
        nifti_helper.decathlon(folder, cases, listed, spacing=(tree.SPACING,) * 3)
        return masks

    return build


TREES = {
    'pancreas_ct': pancreas_ct,
    'abdomenct_1k': abdomenct_1k,
    'chaos': chaos,
    'amos22': amos22,
    'btcv': btcv,
    'word': word,
    'ct_org': ct_org,
    'totalsegmentator': totalsegmentator,
    'lits': lits,
    'kits19': kits19,
    'kits21': kits21,
    'kits23': kits23,
    'msd_liver': msd('liver', {'liver': 'liver', 'cancer': 'liver_tumour'}),
    'msd_lung': msd('lung', {'cancer': 'lung_tumour'}),
    'msd_pancreas': msd('pancreas', {'pancreas': 'pancreas', 'cancer': 'pancreas_tumour'}),
    'msd_hepatic_vessel': msd(
        'hepaticvessel', {'Vessel': 'hepatic_vessel', 'Tumour': 'hepatic_vessel_tumour'}
    ),
    'msd_spleen': msd('spleen', {'spleen': 'spleen'}),
    'msd_colon': msd('colon', {'colon cancer primaries': 'colon_tumour'}),
}
SPLITS = {
    'amos22': {'train': ('amos_0001', 'amos_0410'), 'val': ('amos_0013',), 'test': ()},
    'word': {'train': ('word_0002', 'word_0005'), 'val': ('word_0001',), 'test': ('word_0014',)},
    'totalsegmentator': {'train': ('s0000', 's0001'), 'val': ('s0287',), 'test': ('s1429',)},
}
CONTAINS = {
    'lits': {'liver_tumour': 'liver'},
    'kits19': {'kidney_tumour': 'right_kidney+left_kidney'},
    'kits21': {
        'kidney_tumour': 'right_kidney+left_kidney',
        'kidney_cyst': 'right_kidney+left_kidney',
    },
    'msd_liver': {'liver_tumour': 'liver'},
    'msd_pancreas': {'pancreas_tumour': 'pancreas'},
    'totalsegmentator': {'kidney_cyst_left': 'kidney_left', 'kidney_cyst_right': 'kidney_right'},
}
CONTAINS['kits23'] = CONTAINS['kits21']


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path
