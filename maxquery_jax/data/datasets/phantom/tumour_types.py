"""What a tumour type is made of: the vocabulary of `tumours.py`."""

import dataclasses

Row = tuple[float, ...]  # noncontrast, arterial early and late, venous, delay
Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Level:
    """Attenuation of a component in the five phases.

    Attributes:
        hu: HU relative to the host tissue of the same phase, or absolute.
        absolute: which of the two.
    """

    hu: Row
    absolute: bool = False


def fluid(hu: float, enhancement: float = 0.0) -> Level:
    """Fluid of a fixed HU that gains at most `enhancement` after contrast."""
    return Level((hu, hu, hu + enhancement / 2, hu + enhancement, hu + enhancement), absolute=True)


@dataclasses.dataclass(frozen=True)
class Rim:
    """The outer layer: capsule, cyst wall, target rim, peripheral nodules.

    Attributes:
        level: its attenuation.
        thickness_mm: range, if the layer has a fixed thickness.
        fill: thickness as a share of the radius in each phase instead (progressive fill-in).
        irregular: 0 even, 1 varies from nothing to double thickness.
        cover: share of the surface that it covers.
        probability: share of tumours that have one.
    """

    level: Level
    thickness_mm: Span = (1.5, 3.0)
    fill: Row | None = None
    irregular: float = 0.2
    cover: float = 1.0
    probability: float = 1.0


@dataclasses.dataclass(frozen=True)
class Core:
    """The centre: necrosis, scar, cystic part.

    Attributes:
        level: its attenuation.
        share: range of its radius relative to the tumour's.
        form: 'round', 'irregular' or 'stellate'.
        probability: share of tumours that have one.
    """

    level: Level
    share: Span
    form: str = 'round'
    probability: float = 1.0


@dataclasses.dataclass(frozen=True)
class Septa:
    """Walls between cells of about `cell_mm`, `half_mm` to each side."""

    level: Level
    cell_mm: Span
    half_mm: Span = (0.6, 1.1)
    probability: float = 1.0


@dataclasses.dataclass(frozen=True)
class Inclusion:
    """Scattered material: calcification, fat, solid nodules.

    Attributes:
        level: its attenuation.
        size_mm: size of one piece.
        share: share of the zone that it takes.
        zone: 'all', 'centre' (inner half of the radius) or 'rim' (outer fifth).
        probability: share of tumours that have it.
    """

    level: Level
    size_mm: float
    share: float
    zone: str = 'all'
    probability: float = 1.0


def calcium(probability: float, zone: str = 'all', share: float = 0.06) -> Inclusion:
    """Calcifications of about 2.5 mm."""
    return Inclusion(Level((420,) * 5, absolute=True), 2.5, share, zone, probability)


@dataclasses.dataclass(frozen=True)
class TumourType:
    """One tumour type; every range is drawn per tumour.

    Attributes:
        host: organ ids by name; one of them is chosen, the tumour stays in or near it.
        level: attenuation of the main component.
        level_sd: scatter of it between tumours, HU.
        diameter_mm: range, drawn log-uniformly.
        elongation: range of longest over mean axis.
        lobulation: range of the relief of the border relative to the radius.
        lobe_size: size of the lobes relative to the radius.
        infiltration_mm: height of fine irregularity of the border.
        margin_mm: width of the transition to the host.
        mosaic_hu, mosaic_mm: cells of differing attenuation.
        speckle_hu, speckle_mm: smooth random texture.
        rims: outer layers, later ones over earlier ones.
        core, septa, inclusions: further components.
        count: range of the number in one patient; the first is the largest.
        bulge: how far it may leave the host, relative to the radius.
        seat: organ in which the centre lies, if not anywhere in the host.
        site: 'any', 'wall' (on the organ's surface), and around the pancreas 'head_mostly',
            'body_tail', 'ampulla' or 'bile_duct'.
        duct_mm, bile_duct_mm, atrophy: effects on pancreas and bile ducts.
    """

    host: tuple[str, ...]
    level: Level
    level_sd: float = 6.0
    diameter_mm: Span = (15.0, 60.0)
    elongation: Span = (1.0, 1.3)
    lobulation: Span = (0.02, 0.1)
    lobe_size: float = 0.6
    infiltration_mm: float = 0.3
    margin_mm: float = 1.2
    mosaic_hu: float = 0.0
    mosaic_mm: float = 10.0
    speckle_hu: float = 3.0
    speckle_mm: float = 3.0
    rims: tuple[Rim, ...] = ()
    core: Core | None = None
    septa: Septa | None = None
    inclusions: tuple[Inclusion, ...] = ()
    count: tuple[int, int] = (1, 1)
    bulge: float = 0.25
    seat: str | None = None
    site: str = 'any'
    duct_mm: float = 0.0
    bile_duct_mm: float = 0.0
    atrophy: float = 1.0
