from __future__ import annotations

from typing import Any

import pytest

import medseg.registry
from medseg.errors import ConfigError
from medseg.registry import Registry


class Point:
    """Stands for an installed package's entry point."""

    def __init__(self, loaded: Any, value: str = "plugin:register") -> None:
        self.loaded, self.value = loaded, value

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def animals() -> Registry[int]:
    registry: Registry[int] = Registry("animal")
    for index, name in enumerate(["zebra", "cat", "catfish"]):
        assert registry.add(name, index) == index
    return registry


def test_get_and_sorted_names(animals: Registry[int]) -> None:
    assert animals.get("cat") == 1
    assert animals.names() == ["cat", "catfish", "zebra"]
    assert animals.names("cat*") == ["cat", "catfish"]
    assert animals.names("dog*") == []


def test_a_clash_is_loud_and_changes_nothing(animals: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"animal 'cat' is registered twice\. Choose another"):
        animals.add("cat", 7)
    assert animals.get("cat") == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zebar", r"Did you mean 'zebra'\? There are 3 animals\."),
        ("ca", r"Did you mean 'cat' or 'catfish'\?"),
        ("xy", r"Known animals: cat, catfish, zebra\."),
    ],
)
def test_a_miss_names_those_near_or_all(animals: Registry[int], name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown animal '{name}'\. {hint}"):
        animals.get(name)


def _with_points(monkeypatch: pytest.MonkeyPatch, *points: Point) -> list[str]:
    asked: list[str] = []

    def entry_points(group: str) -> list[Point]:
        asked.append(group)
        return list(points)

    monkeypatch.setattr(medseg.registry, "entry_points", entry_points)
    return asked


def test_installed_packages_join_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("animal", entry_point="zoo")
    asked = _with_points(monkeypatch, Point(lambda: registry.add("okapi", 5)), Point(object()))
    registry.add("cat", 1)
    assert registry.get("cat") == 1
    assert asked == []
    assert registry.get("okapi") == 5
    assert registry.names() == ["cat", "okapi"]
    assert asked == ["zoo"]


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("animal", entry_point="zoo")
    _with_points(monkeypatch, Point(ImportError("no module named fur"), "hairy.models"))
    with pytest.raises(
        ConfigError, match=r"'hairy\.models' cannot add its animals \(ImportError: no module named fur"
    ):
        registry.names()
