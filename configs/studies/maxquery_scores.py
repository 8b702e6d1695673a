"""MaxQuery on PhantomCT: the query-level scores of every network of the other tables.

python -m launch.study --study=configs/studies/maxquery_scores.py --workdir=runs/maxquery
"""

from typing import Any

from configs import maxquery
from configs.studies import maxquery_all

get_config = maxquery.get_config


def get_study() -> dict[str, Any]:
    """Returns the study."""
    return maxquery_all.make_study('maxquery_scores', (maxquery_all.scores(),))
