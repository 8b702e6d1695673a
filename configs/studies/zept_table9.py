"""ZePT Tab. 9 on PhantomCT: unseen colon tumours by subtype.

python -m launch.study --study=configs/studies/zept_table9.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_table9', (zept_all.table9(),))
