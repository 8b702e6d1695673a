"""MaxQuery on PhantomCT: length of the fine-tuning, at equal length of the baseline.

python -m launch.study --study=configs/studies/maxquery_length.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_length', (maxquery_all.length(),))
