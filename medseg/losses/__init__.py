"""Loss functions of logits, built by name.

The names are in `medseg.losses.catalog`, which does not import torch. To add a loss, see `register_loss`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
