from .files import read as read
from .files import read_grid as read_grid
from .files import read_labels as read_labels
from .files import read_segments as read_segments
from .files import stem_of as stem_of
from .files import suffix_of as suffix_of
from .files import write as write

__all__ = [
    "read",
    "read_grid",
    "read_labels",
    "read_segments",
    "stem_of",
    "suffix_of",
    "write",
]
