"""medseg: volumetric medical image segmentation, from files to evaluated predictions.

Public names are imported when they are first used, so that ``import medseg`` is instant. The stub file next to this module
lists them and their types.
"""

from typing import Any

import lazy_loader

_lazy_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from medseg.runtime.machine import installed_version

        return installed_version()
    return _lazy_attribute(name)
