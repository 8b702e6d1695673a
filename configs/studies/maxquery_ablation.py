"""MaxQuery on PhantomCT: decoder blocks, deep supervision, two stages against one.

python -m launch.study --study=configs/studies/maxquery_ablation.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_ablation', (maxquery_all.ablation(),))
