"""ZePT Fig. 6 on PhantomCT: threshold of the prompts.

python -m launch.study --study=configs/studies/zept_fig6.py --workdir=runs/zept
"""

from typing import Any

from configs.studies import zept_all

get_config = zept_all.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return zept_all.make_study('zept_fig6', (zept_all.fig6(),))
