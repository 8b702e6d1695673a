"""One phantom patient: the atlas with individual variation, drawn from (seed, index)."""

import dataclasses
import zlib

import numpy as np

from maxquery_jax.data.datasets.phantom import atlas, fields, tissues

# Standard deviations of the shift of groups that move together, and of single control points, mm.
GROUP_SHIFT = {'upper': (4, 4, 6), 'bowel': (7, 6, 10), 'pelvis': (4, 4, 5), 'vessel': (2, 2, 4)}
GROUPS = {
    'upper': (
        'pancreas', 'duodenum', 'portal_vein', 'splenic_vein', 'bile_duct', 'celiac_trunk',
        'hepatic_artery', 'splenic_artery', 'superior_mesenteric_vein',
        'superior_mesenteric_artery', 'stomach', 'gall_bladder',
    ),
    'bowel': ('colon',),
    'pelvis': ('rectum', 'bladder', 'prostate', 'uterus'),
    'vessel': (
        'aorta', 'postcava', 'right_renal_vein', 'left_renal_vein', 'right_renal_artery',
        'left_renal_artery', 'right_iliac_artery', 'left_iliac_artery', 'right_iliac_vein',
        'left_iliac_vein', 'esophagus',
    ),
}  # fmt: skip
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
OWN_SHIFT = (3.0, 3.0, 5.0)  # of organs outside every group
JITTER_MM = {'colon': 6.0, 'stomach': 4.0, 'duodenum': 2.5, 'pancreas': 2.5}
VESSEL_JITTER_MM = 1.0
SIZE_SD = {'gall_bladder': 0.2, 'bladder': 0.18, 'stomach': 0.12, 'spleen': 0.1, 'colon': 0.1}


def stream(seed: int, index: int, name: str) -> np.random.Generator:
    """Named random stream of one case; a pure function of its arguments."""
    return np.random.default_rng([seed, index, zlib.crc32(name.encode())])


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity, for caches
class Patient:
    """Everything individual about a patient except tumours and the scan.

    Attributes:
        seed, index: where the random streams come from.
        scale_xyz: body size relative to the atlas.
        fat_mm: subcutaneous fat thickness.
        male: sex.
        tubes: name to (points [n, 3], radii [n]) in nominal mm.
        ellipsoids: name to (centre [3], radii [3], turns) in nominal mm.
        diaphragm, liver_floor: height maps.
        warp, warp_mm: smooth deformation of the whole body.
        boundary, texture: shared noise lattices.
        timing, gain, offset: contrast timing (phases), enhancement factor, HU offset per tissue.
        duct_mm, bile_duct_mm: extra duct radius (dilatation), set by tumours.
        duct_from: position along the pancreas from which the duct is dilated.
        atrophy: factor of the pancreas radius.
    """

    seed: int
    index: int
    scale_xyz: np.ndarray
    fat_mm: float
    male: bool
    tubes: dict[str, tuple[np.ndarray, np.ndarray]]
    ellipsoids: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, ...]]]
    diaphragm: fields.HeightMap
    liver_floor: fields.HeightMap
    warp: tuple[fields.Lattice, ...]
    warp_mm: float
    boundary: tuple[fields.Lattice, ...]
    texture: tuple[fields.Lattice, ...]
    timing: float
    gain: float
    offset: dict[str, float]
    duct_mm: float = 0.0
    duct_from: float = 0.0
    bile_duct_mm: float = 0.0
    atrophy: float = 1.0

    def stream(self, name: str) -> np.random.Generator:
        """Named random stream of this patient."""
        return stream(self.seed, self.index, name)

    def wobble(self, name: str, coarse_mm: float, fine_mm: float) -> np.ndarray:
        """Weights [4] of the boundary fields for one structure (two coarse, two fine)."""
        turns = self.stream('wobble/' + name).uniform(0, 2 * np.pi, 2)
        return np.array(
            [
                coarse_mm * np.cos(turns[0]),
                coarse_mm * np.sin(turns[0]),
                fine_mm * np.cos(turns[1]),
                fine_mm * np.sin(turns[1]),
            ],
            np.float32,
        )

    def attenuation(self, position: float) -> dict[str, tuple[float, float, float]]:
        """Tissue to (mean HU, grain, patches) at a contrast phase position."""
        return {
            name: (self.attenuation_of(name, position), tissue.grain, tissue.patches)
            for name, tissue in tissues.TISSUES.items()
        }

    def attenuation_of(self, name: str, position: float) -> float:
        """Mean HU of one tissue of this patient."""
        row = np.asarray(tissues.TISSUES[name].hu, float)
        enhancement = self.gain * (tissues.at_phase(row, position) - row[0])
        return row[0] + enhancement + self.offset.get(name, 0.0)


def sample_patient(seed: int, index: int) -> Patient:
    """Draws the patient of (seed, index)."""
    rng = stream(seed, index, 'patient')
    male = bool(rng.random() < 0.5)
    size = rng.normal(1.02 if male else 0.95, 0.035)
    scale = size * np.clip(rng.normal(1, [0.03, 0.04, 0.03]), 0.9, 1.1)
    fat = float(np.clip(rng.lognormal(np.log(15), 0.4), 6, 40))
    scale[1] *= 1 + 0.004 * (fat - 15)  # more visceral fat: a deeper abdomen
    shifts = {name: rng.normal(0, sd) for name, sd in GROUP_SHIFT.items()}
    tubes = {name: _vary_tube(rng, name, shifts) for name in atlas.TUBES}
    _reconnect(tubes)
    return Patient(
        seed=seed,
        index=index,
        scale_xyz=scale,
        fat_mm=fat,
        male=male,
        tubes=tubes,
        ellipsoids={name: _vary_ellipsoid(rng, name, shifts) for name in atlas.ELLIPSOIDS},
        diaphragm=fields.HeightMap(_vary_surface(rng, atlas.DIAPHRAGM, 10, 4)),
        liver_floor=fields.HeightMap(_vary_liver(rng)),
        warp=tuple(fields.Lattice(rng, 55, 16) for _ in range(3)),
        warp_mm=3.5,
        boundary=tuple(fields.Lattice(rng, step, 24) for step in (28, 28, 12, 12)),
        texture=(fields.Lattice(rng, 2.6, 64), fields.Lattice(rng, 8, 32)),
        timing=float(rng.uniform(-0.25, 0.25)),
        gain=float(np.clip(rng.normal(1, 0.1), 0.75, 1.3)),
        offset=_offsets(rng),
    )


def _shift_of(rng, name, shifts) -> np.ndarray:
    own = rng.normal(0, OWN_SHIFT)
    return shifts[GROUP_OF[name]] + 0.3 * own if name in GROUP_OF else own


def _vary_tube(rng, name, shifts) -> tuple[np.ndarray, np.ndarray]:
    points, radii = (np.asarray(part, float) for part in atlas.TUBES[name])
    points = points + _shift_of(rng, name, shifts)
    points += rng.normal(0, JITTER_MM.get(name, VESSEL_JITTER_MM), points.shape)
    radii = radii * np.clip(rng.normal(1, SIZE_SD.get(name, 0.07)), 0.7, 1.35)
    return points, radii * np.clip(rng.normal(1, 0.04, radii.shape), 0.85, 1.15)


def _vary_ellipsoid(rng, name, shifts):
    centre, radii, turns = atlas.ELLIPSOIDS[name]
    radii = np.asarray(radii, float) * np.clip(rng.normal(1, SIZE_SD.get(name, 0.06)), 0.65, 1.4)
    radii = radii * np.clip(rng.normal(1, 0.05, 3), 0.88, 1.12)
    turns = turns[0] + rng.normal(0, 5), turns[1] + rng.normal(0, 5), turns[2] + rng.normal(0, 5)
    return np.asarray(centre, float) + _shift_of(rng, name, shifts), radii, turns


def _vary_surface(rng, points, shared_sd, own_sd) -> np.ndarray:
    points = points.copy()
    points[:, 2] += rng.normal(0, shared_sd) + rng.normal(0, own_sd, len(points))
    return points


def _vary_liver(rng) -> np.ndarray:
    """Liver floor with an individual right lobe length and left lobe reach."""
    points = _vary_surface(rng, atlas.LIVER_FLOOR, 5, 5)
    right = np.clip((points[:, 0] - 50) / 60, 0, 1)
    left = np.clip(-(points[:, 0] + 10) / 40, 0, 1)
    points[:, 2] += right * rng.normal(0, 14) + left * rng.normal(0, 16)
    return points


def _reconnect(tubes) -> None:
    """Joins tubes that continue each other after they moved."""
    joins = (  # (moved end, fixed end): name and control point
        (('splenic_vein', 0), ('portal_vein', 0)),
        (('superior_mesenteric_vein', 0), ('portal_vein', 0)),
        (('hepatic_artery', 0), ('celiac_trunk', -1)),
        (('splenic_artery', 0), ('celiac_trunk', -1)),
        (('duodenum', 0), ('stomach', -1)),
        (('rectum', 0), ('colon', -1)),
        (('right_iliac_artery', 0), ('aorta', -1)),
        (('left_iliac_artery', 0), ('aorta', -1)),
        (('right_iliac_vein', 0), ('postcava', 0)),
        (('left_iliac_vein', 0), ('postcava', 0)),
    )
    for (name, end), (other, other_end) in joins:
        tubes[name][0][end] = tubes[other][0][other_end]


def _offsets(rng) -> dict[str, float]:
    """HU offsets per tissue: individual scatter, liver fat and pancreas fat."""
    offset = {name: float(rng.normal(0, 3)) for name in tissues.TISSUES}
    offset['liver'] -= float(rng.gamma(1.2, 5.0))  # steatosis, right-skewed
    offset['pancreas'] -= float(rng.gamma(1.2, 5.0))
    for name in ('air', 'gas', 'spleen_mottle'):
        offset[name] = 0.0
    return offset
