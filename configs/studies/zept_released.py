"""ZePT on PhantomCT: what its public code does otherwise.

python -m launch.study --study=configs/studies/zept_released.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_released', (zept_all.released(),))
