"""Registries of named items: a name that is taken is an error, an unknown name gets suggestions."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from medseg.errors import ConfigError

T = TypeVar("T")
_MOST_NEAR = 3


class Registry(Generic[T]):
    """Items of one kind by name.

    Args:
        kind: What the items are, for messages ("model").
        plural: Plural of `kind`; None appends an ``s``.
        modules: Modules whose import registers the built-in items; imported at the first look-up.
        entry_point: Entry-point group through which installed packages add items. Each entry point is a module or a
            callable that registers them when imported or called. They are loaded at the first unknown name or listing.

    >>> shapes = Registry("shape")
    >>> shapes.add("cube", 6)
    6
    >>> shapes.get("cube"), shapes.names("c*")
    (6, ['cube'])
    >>> shapes.get("cub")
    Traceback (most recent call last):
        ...
    medseg.errors.ConfigError: unknown shape 'cub'. Did you mean 'cube'? There are 1 shapes.
    """

    def __init__(
        self,
        kind: str,
        *,
        plural: str | None = None,
        modules: tuple[str, ...] = (),
        entry_point: str | None = None,
    ) -> None:
        self.kind = kind
        self._plural = plural or f"{kind}s"
        self._modules = modules
        self._entry_point = entry_point
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register an item.

        Args:
            name: Its name.
            item: The item.

        Returns:
            The item, so that the method may be used in an assignment.

        Raises:
            ConfigError: The name is taken.
        """
        if name in self._items:
            raise ConfigError(f"{self.kind} {name!r} is registered twice. Choose another name.")
        self._items[name] = item
        return item

    def get(self, name: str) -> T:
        """Return the item called `name`.

        Args:
            name: A registered name.

        Returns:
            The registered item; built-in modules and entry points of other packages are loaded if they are needed to
            find it.

        Raises:
            ConfigError: The name is unknown; the message suggests known names.
        """
        if name not in self._items:
            self._load_modules()
        if name not in self._items:
            self._load_entry_points()
        if name not in self._items:
            raise ConfigError(f"unknown {self.kind} {name!r}.{self.hint(name)}")
        return self._items[name]

    def hint(self, name: str) -> str:
        """Suggest registered names for an unknown one.

        Args:
            name: The unknown name; names that begin with it come first.

        Returns:
            A sentence, with a leading space, with the most similar names, or with all names if none is similar.
        """
        longer = sorted(known for known in self._items if known.startswith(name))
        near = list(dict.fromkeys([*longer, *get_close_matches(name, self._items, n=_MOST_NEAR)]))
        if not near:
            return f" Known {self._plural}: {', '.join(sorted(self._items))}."
        return f" Did you mean {' or '.join(map(repr, near[:_MOST_NEAR]))}? There are {len(self._items)} {self._plural}."

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a pattern.

        Args:
            pattern: Shell-style pattern.

        Returns:
            Names in alphabetical order, those of other packages' entry points included.
        """
        self._load_modules()
        self._load_entry_points()
        return sorted(name for name in self._items if fnmatchcase(name, pattern))

    def _load_modules(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            import_module(module)

    def _load_entry_points(self) -> None:
        if self._entry_point is None:
            return
        group, self._entry_point = self._entry_point, None
        for point in entry_points(group=group):
            try:
                loaded = point.load()
                if callable(loaded):
                    loaded()
            except Exception as error:
                raise ConfigError(
                    f"installed package {point.value!r} cannot add its {self._plural} ({type(error).__name__}: "
                    f"{error}). Update or uninstall it."
                ) from error
