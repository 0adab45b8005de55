"""The configuration of a training run, and the one place where all parts are composed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
