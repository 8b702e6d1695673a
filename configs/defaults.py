"""What the fields of an experiment are unless it changes them."""

from typing import Any

from configs import base
from configs.common import Config


def field_defaults(config: Config) -> dict[str, Any]:
    """The fields of an experiment, its stages included, and their values in `configs.base`."""
    defaults = base.get_base(config.name)
    for name, section in config.items():
        if 'objective' in getattr(section, 'keys', tuple)():
            defaults[name] = base.stage(section.objective)
    return defaults.to_dict()
