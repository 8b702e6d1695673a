"""Tumour types of the phantom; the radiological reasoning is in docs/phantom.md.

The numbers follow textbook descriptions of multiphasic CT. They were fixed before any method was
tuned on the cohort and are not adjusted to favour a method.
"""

from maxquery_jax.data.datasets.phantom.tumour_types import (
    Core,
    Inclusion,
    Level,
    Rim,
    Septa,
    TumourType,
    calcium,
    fluid,
)

LIVER = ('liver',)
PANCREAS = ('pancreas',)
KIDNEYS = ('right_kidney', 'left_kidney')
LUNGS = ('right_lung', 'left_lung')
ADRENALS = ('right_adrenal_gland', 'left_adrenal_gland')

NECROSIS = fluid(24, 4)
FAT = Level((-70,) * 5, absolute=True)

LIVER_TYPES = {
    'hcc': TumourType(
        LIVER, Level((-8, 25, 38, -14, -22)), level_sd=8, diameter_mm=(18, 85),
        lobulation=(0.03, 0.10), margin_mm=1.5, mosaic_hu=9, mosaic_mm=10,
        rims=(Rim(Level((-10, -5, 0, 18, 22)), (1.5, 3.0), probability=0.7),),
        core=Core(NECROSIS, (0.2, 0.45), 'irregular', 0.35),
        inclusions=(Inclusion(Level((-35,) * 5, True), 5, 0.12, probability=0.2),),
    ),
    'icc': TumourType(
        LIVER, Level((-18, -12, -20, -30, -6)), level_sd=7, diameter_mm=(20, 85),
        lobulation=(0.12, 0.24), infiltration_mm=1.6, margin_mm=3.0, speckle_hu=7, speckle_mm=3.0,
        rims=(Rim(Level((-12, 18, 16, -8, -2)), (3.5, 8.0), irregular=0.8, cover=0.75),),
        core=Core(Level((-22, -25, -38, -42, 6)), (0.25, 0.5), 'irregular', 0.8),
    ),
    'metastasis': TumourType(
        LIVER, Level((-22, -22, -30, -36, -24)), level_sd=8, diameter_mm=(14, 60),
        lobulation=(0.02, 0.10), margin_mm=2.0, count=(1, 5),
        rims=(Rim(Level((-14, 10, 8, -6, -8)), (2.5, 5.0), irregular=0.3),),
        core=Core(Level((-32, -36, -50, -68, -54)), (0.35, 0.65), 'round', 0.7),
    ),
    'haemangioma': TumourType(
        LIVER, Level((-18, -18, -28, -42, -10)), level_sd=6, diameter_mm=(15, 80),
        lobulation=(0.05, 0.15), margin_mm=0.8,
        rims=(
            Rim(Level((-16, 130, 95, 44, 18)), fill=(0, 0.16, 0.24, 0.45, 0.9), irregular=1.0,
                cover=0.7),
        ),
        core=Core(Level((-24, -30, -45, -60, -40)), (0.15, 0.3), 'stellate', 0.25),
    ),
    'cyst': TumourType(
        LIVER, fluid(5, 1), level_sd=5, diameter_mm=(12, 70), elongation=(1.0, 1.25),
        lobulation=(0.0, 0.04), infiltration_mm=0.0, margin_mm=0.5, speckle_hu=1, count=(1, 4),
        septa=Septa(Level((-20, -15, -20, -30, -25)), (25, 40), (0.4, 0.7), 0.12),
    ),
    # Held out (OOD).
    'hepatoblastoma': TumourType(
        LIVER, Level((-14, -2, -4, -26, -22)), level_sd=8, diameter_mm=(20, 85),
        lobulation=(0.08, 0.18), margin_mm=1.4, mosaic_hu=17, mosaic_mm=13,
        rims=(Rim(Level((-12, 0, 4, 4, 8)), (1.2, 2.5), probability=0.4),),
        septa=Septa(Level((-6, 18, 14, 0, 6)), (14, 22), (0.7, 1.4), 0.7),
        core=Core(NECROSIS, (0.2, 0.4), 'irregular', 0.5),
        inclusions=(calcium(0.5, share=0.03),),
    ),
    'fnh': TumourType(
        LIVER, Level((-5, 42, 50, 10, 0)), level_sd=6, diameter_mm=(18, 80),
        lobulation=(0.05, 0.12), margin_mm=1.0, speckle_hu=2,
        septa=Septa(Level((-10, -2, -6, -14, 6)), (16, 26), (0.5, 1.0), 0.6),
        core=Core(Level((-14, -10, -18, -24, 16)), (0.25, 0.42), 'stellate', 0.85),
    ),
    'liver_angiomyolipoma': TumourType(
        LIVER, Level((-30, 12, 10, -20, -25)), level_sd=8, diameter_mm=(16, 75), margin_mm=0.8,
        inclusions=(Inclusion(FAT, 6, 0.35),),
    ),
    'biliary_cystadenoma': TumourType(
        LIVER, fluid(15, 1), level_sd=4, diameter_mm=(20, 80), lobulation=(0.05, 0.12),
        margin_mm=0.7, rims=(Rim(Level((-14, 0, 2, -6, 0)), (1.2, 2.4)),),
        septa=Septa(Level((-12, 2, 4, -6, -2)), (16, 26), (0.4, 0.8)),
    ),
    'liver_abscess': TumourType(
        LIVER, fluid(22, 3), level_sd=4, diameter_mm=(18, 75), lobulation=(0.10, 0.2),
        margin_mm=4.0, rims=(Rim(Level((-10, 8, 14, 16, 12)), (2.5, 5.5), irregular=0.4),),
        septa=Septa(Level((-12, 0, 2, 0, 0)), (8, 13), (0.7, 1.2)),
    ),
    'liver_lymphoma': TumourType(
        LIVER, Level((-18, -16, -26, -34, -26)), level_sd=5, diameter_mm=(16, 80),
        infiltration_mm=0.8, margin_mm=2.0, speckle_hu=2, count=(1, 3),
    ),
    'epithelioid_haemangioendothelioma': TumourType(
        LIVER, Level((-18, -8, -12, -14, -8)), level_sd=6, diameter_mm=(14, 50), count=(2, 5),
        lobulation=(0.05, 0.12), margin_mm=2.2,
        rims=(Rim(Level((-20, -20, -30, -38, -28)), (2.0, 4.0)),),
        core=Core(Level((-20, -24, -36, -46, -20)), (0.25, 0.4), 'round'),
    ),
    'angiosarcoma': TumourType(
        LIVER, Level((-14, 2, 4, -10, -2)), level_sd=8, diameter_mm=(18, 80),
        lobulation=(0.1, 0.2), infiltration_mm=1.4, margin_mm=2.5, mosaic_hu=26, mosaic_mm=8,
        core=Core(NECROSIS, (0.2, 0.45), 'irregular', 0.5), count=(1, 3),
    ),
}  # fmt: skip

PANCREAS_TYPES = {
    'pdac': TumourType(
        PANCREAS, Level((-4, -24, -42, -34, -8)), level_sd=7, diameter_mm=(16, 52),
        lobulation=(0.10, 0.22), infiltration_mm=1.8, margin_mm=3.5, speckle_hu=5, bulge=0.55,
        core=Core(NECROSIS, (0.2, 0.4), 'irregular', 0.25), site='head_mostly',
        duct_mm=2.4, bile_duct_mm=3.5, atrophy=0.8,
    ),
    'ipmn': TumourType(
        PANCREAS, fluid(13, 1), level_sd=4, diameter_mm=(15, 55), lobulation=(0.15, 0.3),
        lobe_size=0.45, margin_mm=0.8, bulge=0.6, duct_mm=3.0, site='head_mostly',
        rims=(Rim(Level((-4, -20, -30, -20, -10)), (0.8, 1.4)),),
        septa=Septa(Level((-4, -18, -28, -16, -10)), (9, 15), (0.3, 0.6)),
        inclusions=(Inclusion(Level((0, -10, -20, -10, -4)), 5, 0.06, probability=0.3),),
    ),
    'pnet': TumourType(
        PANCREAS, Level((0, 42, 40, 18, 8)), level_sd=9, diameter_mm=(12, 55), margin_mm=1.0,
        lobulation=(0.02, 0.08), bulge=0.6, mosaic_hu=5,
        rims=(Rim(Level((0, 58, 56, 34, 16)), (1.5, 3.0), probability=0.6),),
        core=Core(NECROSIS, (0.3, 0.6), 'irregular', 0.35),
        inclusions=(calcium(0.2, 'centre'),),
    ),
    'scn': TumourType(
        PANCREAS, fluid(12, 1), level_sd=4, diameter_mm=(20, 70), lobulation=(0.12, 0.22),
        lobe_size=0.45, margin_mm=0.9, bulge=0.7,
        septa=Septa(Level((-4, 10, 8, 6, 8)), (4.5, 7.5), (0.35, 0.65)),
        core=Core(Level((-6, -14, -24, -10, 14)), (0.15, 0.3), 'stellate', 0.6),
        inclusions=(calcium(0.4, 'centre'),),
    ),
    'cp': TumourType(
        PANCREAS, Level((-4, -20, -28, -22, -12)), level_sd=6, diameter_mm=(20, 60),
        elongation=(1.2, 1.7), infiltration_mm=1.5, margin_mm=5.0, speckle_hu=8, bulge=0.3,
        core=Core(fluid(12), (0.3, 0.55), 'round', 0.35),
        inclusions=(calcium(0.9, share=0.06),), duct_mm=2.0, atrophy=0.75,
    ),
    'spt': TumourType(
        PANCREAS, Level((-4, -18, -26, -16, -8)), level_sd=7, diameter_mm=(22, 75), margin_mm=0.8,
        lobulation=(0.02, 0.07), bulge=0.8, site='body_tail', mosaic_hu=8,
        rims=(Rim(Level((0, -4, 2, 12, 18)), (2.0, 3.5)),),
        core=Core(fluid(38, 4), (0.35, 0.7), 'irregular', 0.9),
        inclusions=(calcium(0.3, 'rim'),),
    ),
    'mcn': TumourType(
        PANCREAS, fluid(14, 1), level_sd=4, diameter_mm=(22, 75), lobulation=(0.0, 0.05),
        margin_mm=0.7, bulge=0.8, site='body_tail',
        rims=(Rim(Level((0, -10, -12, -2, 6)), (1.6, 3.0)),),
        septa=Septa(Level((-4, -10, -14, -6, 4)), (24, 40), (0.3, 0.7), 0.7),
        inclusions=(calcium(0.2, 'rim'),),
    ),
    # Held out (OOD). Ampullary and bile duct cancer lie beside the pancreas.
    'ac': TumourType(
        PANCREAS, Level((-2, -14, -26, -20, -8)), level_sd=7, diameter_mm=(15, 42),
        lobulation=(0.08, 0.16), lobe_size=0.4, infiltration_mm=0.8, margin_mm=1.8, speckle_hu=6,
        bulge=1.2, site='ampulla', duct_mm=2.4, bile_duct_mm=5.0,
    ),
    'dc': TumourType(
        PANCREAS, Level((-2, -12, -22, -12, 6)), level_sd=7, diameter_mm=(15, 44),
        elongation=(1.3, 1.9), infiltration_mm=1.1, margin_mm=2.4, bulge=1.2, site='bile_duct',
        core=Core(fluid(16), (0.18, 0.3), 'round', 0.7), bile_duct_mm=5.0,
    ),
    'acinar_cell_carcinoma': TumourType(
        PANCREAS, Level((-4, -14, -22, -14, -10)), level_sd=7, diameter_mm=(22, 75), bulge=0.8,
        margin_mm=1.0, mosaic_hu=10, rims=(Rim(Level((0, 4, 6, 10, 12)), (1.2, 2.4)),),
        core=Core(NECROSIS, (0.25, 0.5), 'irregular', 0.7), inclusions=(calcium(0.2),),
    ),
    'pancreatic_lymphoma': TumourType(
        PANCREAS, Level((-4, -26, -40, -26, -14)), level_sd=5, diameter_mm=(20, 70), bulge=0.7,
        margin_mm=1.8, speckle_hu=2, lobulation=(0.04, 0.12),
    ),
    'renal_cell_metastasis': TumourType(
        PANCREAS, Level((-2, 60, 56, 26, 10)), level_sd=9, diameter_mm=(12, 45), bulge=0.6,
        margin_mm=1.0, mosaic_hu=14, mosaic_mm=7, count=(1, 3),
        core=Core(NECROSIS, (0.25, 0.45), 'round', 0.4),
    ),
    'schwannoma': TumourType(
        PANCREAS, Level((-12, -38, -56, -40, -20)), level_sd=6, diameter_mm=(20, 65), bulge=0.8,
        margin_mm=0.8, mosaic_hu=15, mosaic_mm=11,
        rims=(Rim(Level((-2, -14, -20, -4, 6)), (1.0, 2.0)),),
    ),
    'intrapancreatic_spleen': TumourType(
        PANCREAS, Level((6, 21, 18, 26, 24)), level_sd=4, diameter_mm=(12, 35), bulge=0.5,
        margin_mm=0.7, speckle_hu=2, site='body_tail',
    ),
    'lymphoepithelial_cyst': TumourType(
        PANCREAS, fluid(24, 1), level_sd=4, diameter_mm=(20, 65), bulge=0.9, margin_mm=0.7,
        speckle_hu=5, rims=(Rim(Level((-2, -14, -18, -8, -2)), (1.0, 2.0)),),
        septa=Septa(Level((-6, -20, -30, -20, -12)), (14, 24), (0.3, 0.6), 0.5),
    ),
}  # fmt: skip


def _mass(host, row, diameter_mm, **changes) -> TumourType:
    """A soft-tissue mass of a hollow organ's wall, in absolute HU."""
    base = {
        'level_sd': 7, 'diameter_mm': diameter_mm, 'lobulation': (0.08, 0.2), 'margin_mm': 1.5,
        'infiltration_mm': 0.9, 'speckle_hu': 5, 'bulge': 0.3, 'site': 'wall',
    }  # fmt: skip
    return TumourType((host,), Level(row, True), **(base | changes))


def _thrombus(host, row, **changes) -> TumourType:
    """A filling defect inside a vessel."""
    base = {'diameter_mm': (18, 50), 'bulge': 0.0, 'lobulation': (0.02, 0.08), 'speckle_hu': 4}
    return TumourType((host,), Level(row, True), **(base | changes))


OTHER_TYPES = {
    'clear_cell_rcc': TumourType(
        KIDNEYS, Level((2, -30, -52, -70, -60)), level_sd=10, diameter_mm=(16, 75), bulge=0.7,
        lobulation=(0.03, 0.1), mosaic_hu=20, mosaic_mm=9,
        rims=(Rim(Level((0, -60, -60, -50, -40)), (1.0, 2.0), probability=0.5),),
        core=Core(NECROSIS, (0.25, 0.5), 'irregular', 0.5), inclusions=(calcium(0.15),),
    ),
    'papillary_rcc': TumourType(
        KIDNEYS, Level((2, -100, -128, -108, -80)), level_sd=8, diameter_mm=(14, 60), bulge=0.7,
        speckle_hu=4,
    ),
    'renal_cyst': TumourType(
        KIDNEYS, fluid(6, 1), level_sd=4, diameter_mm=(12, 60), lobulation=(0.0, 0.03),
        infiltration_mm=0.0, margin_mm=0.5, speckle_hu=1, bulge=0.9, count=(1, 3),
    ),
    'splenic_lymphoma': TumourType(
        ('spleen',), Level((-8, -40, -55, -45, -30)), level_sd=6, diameter_mm=(14, 55),
        margin_mm=1.8, count=(1, 3),
    ),
    'splenic_haemangioma': TumourType(
        ('spleen',), Level((-12, -50, -50, -40, -10)), diameter_mm=(14, 50), margin_mm=0.9,
        rims=(Rim(Level((-10, 20, 15, 10, 8)), fill=(0, 0.2, 0.3, 0.5, 0.8), irregular=0.9),),
    ),
    'gall_bladder_carcinoma': _mass('gall_bladder', (40, 62, 82, 88, 82), (14, 45), bulge=0.5),
    'esophageal_carcinoma': _mass('esophagus', (40, 52, 68, 74, 70), (16, 42), bulge=0.6),
    'gastric_carcinoma': _mass('stomach', (40, 60, 82, 88, 80), (20, 65)),
    'gastric_gist': _mass(
        'stomach', (38, 58, 76, 86, 84), (20, 70), lobulation=(0.02, 0.08), infiltration_mm=0.2,
        core=Core(NECROSIS, (0.25, 0.5), 'irregular', 0.6), bulge=0.8,
    ),
    'duodenal_carcinoma': _mass('duodenum', (40, 56, 74, 80, 74), (16, 45), bulge=0.5),
    'small_bowel_net': _mass('intestine', (42, 88, 104, 96, 84), (12, 38), margin_mm=1.0),
    'colon_adenocarcinoma': _mass('colon', (40, 58, 78, 84, 76), (20, 65)),
    'colon_mucinous': _mass('colon', (24, 34, 44, 50, 48), (22, 70), mosaic_hu=9,
                            inclusions=(calcium(0.25, share=0.03),)),
    'rectal_carcinoma': _mass('rectum', (40, 58, 76, 84, 78), (20, 55)),
    'aortic_intimal_tumour': _thrombus('aorta', (42, 48, 54, 60, 62), diameter_mm=(20, 45)),
    'caval_thrombus': _thrombus('postcava', (44, 58, 72, 78, 72)),
    'portal_thrombus': _thrombus('portal_vein_and_splenic_vein', (44, 60, 72, 74, 68)),
    'vascular_liver_tumour': TumourType(
        LIVER, Level((-16, -6, -8, -30, -26)), level_sd=8, diameter_mm=(16, 70),
        lobulation=(0.08, 0.2), infiltration_mm=1.0, margin_mm=2.2, seat='hepatic_vessel',
        mosaic_hu=6, core=Core(NECROSIS, (0.2, 0.45), 'irregular', 0.4),
    ),
    'adrenal_adenoma': TumourType(
        ADRENALS, Level((6, 34, 58, 54, 26), True), level_sd=6, diameter_mm=(14, 40), bulge=1.5,
        margin_mm=0.8,
    ),
    'adrenal_metastasis': TumourType(
        ADRENALS, Level((34, 48, 66, 74, 66), True), level_sd=7, diameter_mm=(18, 55), bulge=1.5,
        core=Core(NECROSIS, (0.25, 0.5), 'irregular', 0.5),
    ),
    'adrenal_cyst': TumourType(
        ADRENALS, fluid(9), level_sd=4, diameter_mm=(14, 45), bulge=1.5, margin_mm=0.6,
        speckle_hu=1, inclusions=(calcium(0.3, 'rim'),),
    ),
    'lung_carcinoma': TumourType(
        LUNGS, Level((34, 52, 66, 72, 64), True), level_sd=7, diameter_mm=(12, 55),
        lobulation=(0.08, 0.18), infiltration_mm=2.2, margin_mm=2.0, bulge=0.3,
        core=Core(NECROSIS, (0.25, 0.5), 'irregular', 0.4),
    ),
    'lung_cyst': TumourType(
        LUNGS, Level((-970,) * 5, True), level_sd=4, diameter_mm=(14, 50), margin_mm=0.7,
        bulge=0.0, rims=(Rim(Level((10, 20, 25, 30, 30), True), (1.0, 1.8)),),
    ),
}  # fmt: skip

TYPES: dict[str, TumourType] = LIVER_TYPES | PANCREAS_TYPES | OTHER_TYPES

# Labels of the MaxQuery tasks (its section 6.1): label to the types that it covers.
LIVER_INLIERS = {name: (name,) for name in ('hcc', 'icc', 'metastasis', 'haemangioma', 'cyst')}
LIVER_OOD = {
    'hepatoblastoma': ('hepatoblastoma',),
    'fnh': ('fnh',),
    'other': (
        'liver_angiomyolipoma', 'biliary_cystadenoma', 'liver_abscess', 'liver_lymphoma',
        'epithelioid_haemangioendothelioma', 'angiosarcoma',
    ),
}  # fmt: skip
PANCREAS_INLIERS = {name: (name,) for name in ('pdac', 'ipmn', 'pnet', 'scn', 'cp', 'spt', 'mcn')}
PANCREAS_OOD = {
    'ac': ('ac',),
    'dc': ('dc',),
    'other': (
        'acinar_cell_carcinoma', 'pancreatic_lymphoma', 'renal_cell_metastasis', 'schwannoma',
        'intrapancreatic_spleen', 'lymphoepithelial_cyst',
    ),
}  # fmt: skip

# Labels of ZePT (its Table 8, ids 26 to 45, in order).
PAN_TUMOURS = {
    'spleen_tumor': ('splenic_lymphoma', 'splenic_haemangioma'),
    'kidney_tumor': ('clear_cell_rcc', 'papillary_rcc'),
    'kidney_cyst': ('renal_cyst',),
    'gall_bladder_tumor': ('gall_bladder_carcinoma',),
    'esophagus_tumor': ('esophageal_carcinoma',),
    'liver_tumor': tuple(LIVER_INLIERS),
    'stomach_tumor': ('gastric_carcinoma', 'gastric_gist'),
    'aortic_tumor': ('aortic_intimal_tumour',),
    'postcava_tumor_thrombus': ('caval_thrombus',),
    'portal_vein_tumor_thrombus': ('portal_thrombus',),
    'pancreas_tumor': tuple(PANCREAS_INLIERS),
    'adrenal_tumor': ('adrenal_adenoma', 'adrenal_metastasis'),
    'adrenal_cyst': ('adrenal_cyst',),
    'duodenal_tumor': ('duodenal_carcinoma',),
    'hepatic_vessel_tumor': ('vascular_liver_tumour',),
    'lung_tumor': ('lung_carcinoma',),
    'lung_cyst': ('lung_cyst',),
    'colon_tumor': ('colon_adenocarcinoma', 'colon_mucinous'),
    'small_intestinal_neoplasm': ('small_bowel_net',),
    'rectal_tumor': ('rectal_carcinoma',),
}
