"""ZePT Tab. 5 on PhantomCT: relaxed 3D boxes as prompts against self-generated ones.

python -m launch.study --study=configs/studies/zept_table5.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_table5', (zept_all.table5(),))
