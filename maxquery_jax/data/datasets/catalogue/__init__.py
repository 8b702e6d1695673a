"""Specifications of public CT data sets, by name.

`DATASETS` holds them all. None of the layouts could be looked at here, as the data sets are not
part of this repository: `layout_source` says which public source each was taken from. The label
ids of KiTS and AMOS and the names of TotalSegmentator were checked on real files. Licences are as
commonly stated and may have changed: the terms that come with the data count.
"""

from collections.abc import Mapping

from maxquery_jax.data.datasets.catalogue.abdomen import ABDOMEN
from maxquery_jax.data.datasets.catalogue.decathlon import DECATHLON
from maxquery_jax.data.datasets.catalogue.kidney_liver import KIDNEY_LIVER
from maxquery_jax.data.datasets.catalogue.whole_body import WHOLE_BODY
from maxquery_jax.data.datasets.spec import DatasetSpec

DATASETS: Mapping[str, DatasetSpec] = {
    spec.name: spec for spec in (*ABDOMEN, *WHOLE_BODY, *KIDNEY_LIVER, *DECATHLON)
}
