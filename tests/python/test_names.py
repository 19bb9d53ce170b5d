"""What packages export, and how their modules are called."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import mempool

PACKAGES = ["mempool", *(m.name for m in pkgutil.walk_packages(mempool.__path__, "mempool.") if m.ispkg)]


# Exported as the modules that they are.
MODULES = {"mempool": {"checkpoint", "compress", "nn", "observe", "ops", "serving"}}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_what_its_package_exports(package: str) -> None:
    """``from mempool import x`` would give the module once it is loaded, and calling that says "not callable"."""
    whole = importlib.import_module(package)
    exported = set(getattr(whole, "__all__", [name for name, value in vars(whole).items() if callable(value)]))
    modules = {m.name for m in pkgutil.iter_modules(whole.__path__)}
    assert exported & modules == MODULES.get(package, set())


@pytest.mark.parametrize("package", ["mempool", *(f"mempool.{name}" for name in sorted(MODULES["mempool"]))])
def test_all_that_is_exported_is_there(package: str) -> None:
    whole = importlib.import_module(package)
    assert set(whole.__all__) <= set(dir(whole))
    for name in whole.__all__:
        getattr(whole, name)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match=r"module 'mempool' has no attribute 'snaphsot'"):
        mempool.snaphsot  # type: ignore[attr-defined]  # noqa: B018
