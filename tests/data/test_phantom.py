"""The built-in cohort: anatomy, tumours and scanner."""

import pathlib
import types

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from maxquery_jax.data.datasets.phantom import (
    fields,
    generate_case,
    lesions,
    scanner,
    tissues,
    tumours,
)
from maxquery_jax.data.datasets.phantom.canvas import Canvas, Grid, Motion, coverage
from maxquery_jax.data.datasets.phantom.case import draw_motion
from maxquery_jax.data.datasets.phantom.patient import sample_patient, stream
from maxquery_jax.data.datasets.phantom.shapes import Tube
from maxquery_jax.data.datasets.phantom.tissues import ORGAN_ID, ORGANS, PHASES

COARSE = {'shape_zyx': (22, 34, 40), 'spacing_mm': (8.0, 8.0, 8.0)}


@pytest.fixture(scope='module')
def torso():
    return generate_case(
        seed=1, index=0, shape_zyx=(122, 72, 96), spacing_mm=(5.0, 4.5, 4.5), region='torso',
        phases=('venous', 'arterial_early'),
    )  # fmt: skip


def organ(case, name):
    return case.organs == ORGAN_ID[name]


def centre(case, name):
    """Mean (z, y, x) of an organ in patient mm."""
    z, y, x = np.argwhere(organ(case, name)).mean(0)
    grid = case.grid
    return (
        grid.z[0] + z * grid.spacing_mm[0],
        grid.y[0] + y * grid.spacing_mm[1],
        grid.x[0] + x * grid.spacing_mm[2],
    )


# --- anatomy -------------------------------------------------------------------------------------


def test_case_is_a_function_of_seed_and_index():
    first, again = (generate_case(seed=3, index=5, tumours=('icc',), **COARSE) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.organs, again.organs)
    np.testing.assert_array_equal(first.lesions, again.lesions)
    other = generate_case(seed=3, index=6, **COARSE)
    assert (organ(first, 'liver') != organ(other, 'liver')).mean() > 0.01


@pytest.mark.parametrize(
    'shape, spacing, region',
    [((8, 41, 17), (12, 4.2, 9.5), 'liver'), ((33, 8, 25), (3, 12, 5), 'torso'),
     ((12, 40, 40), (2.5, 1.5, 1.5), 'pancreas')],
)  # fmt: skip
def test_any_shape_and_spacing(shape, spacing, region):
    case = generate_case(seed=0, index=1, shape_zyx=shape, spacing_mm=spacing, region=region)
    assert case.image.shape == (*shape, 1) and case.image.dtype == np.int16
    assert case.organs.shape == shape and case.organs.dtype == np.uint8
    assert case.image.min() >= -1024 and case.image.max() <= 3071
    assert case.grid.spacing_mm == spacing
    assert case.organs.any()


def test_a_patient_is_the_same_on_every_grid():
    fine, coarse = (
        generate_case(seed=2, index=3, shape_zyx=shape, spacing_mm=spacing, tumours=('cyst',),
                      region='liver')
        for shape, spacing in (((50, 60, 70), (4, 5, 4.5)), ((25, 38, 40), (8, 8, 8)))
    )  # fmt: skip
    for name in ('liver', 'spleen', 'right_kidney'):
        volumes = [
            organ(case, name).sum() * np.prod(case.grid.spacing_mm) for case in (fine, coarse)
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.12)
        np.testing.assert_allclose(centre(fine, name), centre(coarse, name), atol=3)


def test_organs_lie_where_they_should(torso):
    at = {name: centre(torso, name) for name in ORGANS if organ(torso, name).any()}
    z, y, x = range(3)
    assert set(at) == set(ORGANS)
    assert at['liver'][x] > 20 > -60 > at['spleen'][x]  # x grows towards the right
    assert at['right_kidney'][x] > 30 and at['left_kidney'][x] < -30
    assert at['postcava'][x] > at['aorta'][x]
    assert at['right_lung'][z] > at['liver'][z] > at['bladder'][z]
    assert at['stomach'][y] > at['left_kidney'][y] and at['rectum'][y] < at['bladder'][y]
    assert at['right_head_of_femur'][x] > 60 and at['left_head_of_femur'][x] < -60
    millilitres = np.prod(torso.grid.spacing_mm) / 1000
    for name, low, high in (('liver', 900, 2600), ('spleen', 60, 400), ('pancreas', 35, 160),
                            ('right_kidney', 70, 280), ('gall_bladder', 4, 90)):  # fmt: skip
        assert low < organ(torso, name).sum() * millilitres < high, name


def test_attenuation_of_organs(torso):
    def mean(name, channel):
        mask = ndimage.binary_erosion(organ(torso, name))
        return torso.image[mask, channel].mean()

    for name, low, high in (('liver', 70, 135), ('spleen', 85, 155), ('aorta', 115, 195),
                            ('right_kidney', 110, 230), ('right_lung', -900, -700),
                            ('bladder', -25, 45)):  # fmt: skip
        assert low < mean(name, 0) < high, name
    assert mean('aorta', 1) > 200 > mean('aorta', 0)
    assert mean('liver', 1) < mean('liver', 0)
    assert torso.image[..., 0].min() < -1000 + 60  # air
    corner = torso.image[:, -6:, :6, 0]
    assert abs(corner.mean() + 1000) < 15


def test_documented_attenuation_is_the_one_used():
    text = (pathlib.Path(__file__).parents[2] / 'docs' / 'phantom.md').read_text()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()
            if line.startswith('| ') and line.count('|') == 8]  # fmt: skip
    table = {row[0]: tuple(float(cell) for cell in row[1:6]) for row in rows[1:]}
    assert table == {name: tissue.hu for name, tissue in tissues.TISSUES.items()}


def test_phases_are_misaligned_but_alike():
    """The same phase with and without its motion against the reference phase."""
    view = {'shape_zyx': (60, 40, 48), 'spacing_mm': (3.0, 7.0, 7.0)}
    patient = sample_patient(5, 2)
    shift = draw_motion(patient, 'delay').shift_xyz[2]
    assert 2.0 < abs(shift) < 8.0  # this patient's breathing
    moved = generate_case(seed=5, index=2, phases=('venous', 'delay'), **view)
    still = generate_case(seed=5, index=2, phases=('delay',), **view)
    assert moved.reference_phase == 'venous' and still.reference_phase == 'delay'
    np.testing.assert_array_equal(moved.organs, still.organs)  # labels are in the reference phase

    def alike(planes):
        a = moved.image[5:-5, ..., 1]
        b = still.image[5 + planes : 55 + planes, ..., 0]
        return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]

    step = round(shift / 3)
    assert 0.9 < alike(0) < alike(step) < 1
    assert alike(-step) < alike(0)


# --- tumours -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [*tumours.LIVER_INLIERS, 'hepatoblastoma', 'fnh', 'liver_abscess'])
def test_liver_tumours_lie_in_the_liver(name):
    check_tumour(generate_case(seed=9, index=1, region='liver', tumours=(name,), **COARSE), name)


@pytest.mark.parametrize('name', ['pdac', 'mcn', 'ac', 'dc', 'schwannoma'])
def test_pancreas_tumours_lie_in_the_pancreas(name):
    case = generate_case(
        seed=9, index=2, shape_zyx=(28, 40, 44), spacing_mm=(5, 4, 4), region='pancreas',
        tumours=(name,),
    )  # fmt: skip
    check_tumour(case, name)


@pytest.mark.parametrize('name', ['clear_cell_rcc', 'splenic_lymphoma', 'colon_adenocarcinoma',
                                  'lung_carcinoma', 'portal_thrombus', 'renal_cyst'])  # fmt: skip
def test_other_tumours_lie_in_their_hosts(name):
    case = generate_case(
        seed=9, index=3, shape_zyx=(60, 50, 60), spacing_mm=(6, 6, 6), region='torso',
        tumours=(name,),
    )  # fmt: skip
    check_tumour(case, name)


def check_tumour(case, name):
    voxel = np.prod(case.grid.spacing_mm)
    assert case.findings and case.findings[0].name == name
    healthy = generate_case(
        seed=9, index={'liver': 1, 'pancreas': 2}.get(case.findings[0].host, 3),
        shape_zyx=case.grid.shape, spacing_mm=case.grid.spacing_mm,
        region={'liver': 'liver', 'pancreas': 'pancreas'}.get(case.findings[0].host, 'torso'),
    )  # fmt: skip
    for number, lesion in enumerate(case.findings, 1):
        mask = case.lesions == number
        assert mask.sum() * voxel >= 200
        assert (case.organs[mask] == ORGAN_ID[lesion.host]).all()
        host = healthy.organs == ORGAN_ID[lesion.host]
        host |= (healthy.organs == ORGAN_ID['hepatic_vessel']) & (lesion.host == 'liver')
        reach = lesion.kind.bulge * lesion.radius + 1.5 * max(case.grid.spacing_mm)
        away = ndimage.distance_transform_edt(~host, sampling=case.grid.spacing_mm)
        assert away[mask].max() <= reach
        assert away[mask].min() <= max(case.grid.spacing_mm)


def mean_hu(index, name, position):
    """Noise-free mean HU of a drawn tumour, from points inside it."""
    patient = sample_patient(21, index)
    kind = tumours.TYPES[name]
    rng = stream(21, index, 'test')
    radius = np.sqrt(np.prod(kind.diameter_mm)) / 2
    lesion = lesions.draw_lesion(rng, name, kind, kind.host[0], (0, 0, 0), radius)
    painter = lesions.Painter(lesion, types.SimpleNamespace(position=position, patient=patient))
    points = np.random.default_rng(index).uniform(-1, 1, (3, 3000)).astype(np.float32)
    depth, value = painter.evaluate(*(points * np.float32(lesion.reach)))
    return float(value[depth > 0].mean())


@pytest.mark.parametrize(
    'known, unknown, position',
    [(tumours.LIVER_INLIERS, tumours.LIVER_OOD, 3.0),
     (tumours.PANCREAS_INLIERS, tumours.PANCREAS_OOD, 2.0)],
    ids=['liver', 'pancreas'],
)  # fmt: skip
def test_held_out_tumours_are_near_the_known_ones(known, unknown, position):
    def values(labels, first):
        names = [kinds[n % len(kinds)] for n in range(20) for kinds in labels.values()][:20]
        return [mean_hu(first + n, name, position) for n, name in enumerate(names)]

    inliers, outliers = values(known, 0), values(unknown, 100)
    auroc = roc_auc_score([0] * 20 + [1] * 20, inliers + outliers)
    assert 0.2 < auroc < 0.8
    assert min(inliers) < np.median(outliers) < max(inliers)
    spans = [tumours.TYPES[name].diameter_mm for names in known.values() for name in names]
    for name in (name for names in unknown.values() for name in names):
        low, high = tumours.TYPES[name].diameter_mm
        assert min(s[0] for s in spans) <= low < high <= max(s[1] for s in spans)


def test_enhancement_patterns():
    """What tells the types apart in the phases is there (docs/phantom.md)."""
    at = {name: [mean_hu(3, name, p) for p in range(5)] for name in ('hcc', 'haemangioma', 'cyst')}
    liver = [sample_patient(21, 3).attenuation_of('liver', p) for p in range(5)]
    hcc = np.subtract(at['hcc'], liver)
    assert hcc[2] > 5 > -5 > hcc[4]  # arterial enhancement and washout
    haemangioma = np.subtract(at['haemangioma'], liver)
    assert haemangioma[3] < haemangioma[4] + 25 and haemangioma[0] < 0
    assert np.ptp(at['cyst']) < 12 and abs(np.mean(at['cyst']) - 5) < 20


def test_every_label_has_types_and_every_type_a_label():
    groups = (tumours.LIVER_INLIERS, tumours.LIVER_OOD, tumours.PANCREAS_INLIERS,
              tumours.PANCREAS_OOD, tumours.PAN_TUMOURS)  # fmt: skip
    used = {name for group in groups for kinds in group.values() for name in kinds}
    assert used == set(tumours.TYPES)
    assert len(tumours.PAN_TUMOURS) == 20 and len(ORGANS) == 25
    for kind in tumours.TYPES.values():
        assert set(kind.host) <= set(ORGANS)
        assert len(kind.level.hu) == len(PHASES)


# --- drawing and scanning ------------------------------------------------------------------------


def test_lattice_agrees_with_itself_and_has_unit_variance():
    lattice = fields.Lattice(np.random.default_rng(0), 7.0, 16)
    z, y, x = np.linspace(-90, 60, 25), np.linspace(3, 150, 21), np.linspace(-40, 77, 30)
    grid = lattice.on_grid(z, y, x)
    points = np.meshgrid(z, y, x, indexing='ij')
    np.testing.assert_allclose(grid, lattice.at_points(*points), atol=2e-3)
    assert 0.7 < grid.std() < 1.3
    np.testing.assert_allclose(lattice.on_grid(z + 16 * 7, y, x), grid, atol=1e-4)


def test_coverage_is_the_share_of_the_voxel():
    """Against counting sub-voxel points, on thick slices."""
    spacing, radius = np.array([5.0, 2.0, 2.0]), 14.0
    shape = (9, 21, 21)
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)]
    fine = [
        (a[:, None] + (np.arange(6) - 2.5) / 6 * s).ravel()
        for a, s in zip(axes, spacing, strict=True)
    ]

    def field(z, y, x):
        squares = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        return np.sqrt(squares) - radius

    expected = (field(*fine) < 0).reshape(9, 6, 21, 6, 21, 6).mean((1, 3, 5))
    actual = coverage(field(*axes).astype(np.float32))
    assert np.abs(actual - expected).mean() < 0.01
    assert actual.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_thin_tubes_keep_their_mass():
    patient = sample_patient(0, 0)
    grid = Grid.centred((0, 0, 0), (20, 20, 20), (4.0, 4.0, 4.0))
    for radius in (1.0, 2.0, 6.0):
        canvas = Canvas(grid, patient, 3.0, Motion(), keep=('tube',))
        canvas.paint_tube(Tube([[-25, 1, 2], [25, -3, 1]], radius), 'artery', keep='tube')
        mass = canvas.kept['tube'].sum() * 4.0**3 * np.prod(1 / patient.scale_xyz)
        length = 50.3 + 4 / 3 * radius  # with two half balls
        assert mass == pytest.approx(np.pi * radius**2 * length, rel=0.15)


def test_scanner_noise_and_blur():
    grid = Grid.centred((0, 0, 0), (12, 96, 96), (5.0, 0.75, 0.75))
    water = np.zeros(grid.shape, np.float32)
    water[:, :, 48:] = 200
    settings = scanner.Scanner(blur_mm=0.8, grain_mm=0.6, noise_hu=10.0, streaks=0.0)
    image = scanner.acquire(water, grid, settings, np.random.default_rng(1))
    assert image.dtype == np.int16
    noise = image[:, :, :40].astype(float)
    assert abs(noise.mean()) < 2 and 2 < noise.std() < 12
    near, far = (np.corrcoef(noise[:, :, :-s].ravel(), noise[:, :, s:].ravel())[0, 1]
                 for s in (1, 8))  # fmt: skip
    assert near > 0.25 and abs(far) < 0.1
    edge = image.mean((0, 1))
    assert 60 < edge[47] < edge[48] < 140  # blurred, not a step
    again = scanner.acquire(water, grid, settings, np.random.default_rng(1))
    np.testing.assert_array_equal(image, again)
