"""Finds objects beside a model's modules that hold its modules or tensors, by following the modules' references."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import (
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any, TypeVar

from torch import Tensor, nn

from mempool.compress.module_tree import is_compiled

Held = TypeVar("Held", nn.Module, Tensor)
# Limits of the search: enough to find a holder that a model's forward would use, and not to walk a whole process.
_DEPTH = 8
_MOST_OBJECTS = 200_000
_PLAIN, _CONTAINERS = {bool, int, float, str, type(None)}, {dict, OrderedDict, list, tuple, set}
_NO_HOLDERS = (ModuleType, FrameType, CodeType, GeneratorType, CoroutineType, GetSetDescriptorType)
# Attributes that are not followed: a module's own, and compiled code of the module, which looks its submodules up.
_OF_MODULES = {"_modules", "_parameters", "_buffers", "_compiled_call_impl"}
_OF_OTHERS = {"torch", "mempool", *sys.stdlib_module_names} - {"__main__"}


def found_elsewhere(model: nn.Module, kind: type[Held]) -> Iterator[tuple[str, Held]]:
    """The objects of a kind that attributes of a model's modules, or of their classes, lead to, and from where.

    The search goes through containers, closures, bound methods, partial functions, objects and weak references, to a
    bounded depth and number: it does not see what is further away. It does not follow the tree of submodules.
    """
    inside = {id(module) for module in model.modules()}
    seen: set[int] = set()
    classes: dict[type, list[MemberDescriptorType]] = {}
    for path, module in model.named_modules():
        if is_compiled(module):  # holds what it calls, and is made anew
            continue
        own = type(module)
        if own not in classes:
            classes[own] = _slots_of(own)
        attributes = [item for item in vars(module).items() if item[0] not in _OF_MODULES]
        attributes += [(slot.__name__, _in_slot(slot, module)) for slot in classes[own]]
        for name, value in _worth_a_look(attributes):
            for found in _reached_from(value, inside, seen):
                if found is not module and isinstance(found, kind):
                    yield f"{path or own.__name__}.{name}", found
        if len(seen) > _MOST_OBJECTS:
            return
    bases = dict.fromkeys(base for own in classes for base in own.__mro__ if _is_own(base))
    for base in bases:
        for name, value in _worth_a_look(vars(base).items()):
            for found in _reached_from(value, inside, seen):
                if isinstance(found, kind):
                    yield f"{base.__name__}.{name}", found


def _slots_of(kind: type) -> list[MemberDescriptorType]:
    with_slots = (base for base in kind.__mro__ if "__slots__" in vars(base) and _is_own(base))
    return [slot for base in with_slots for slot in vars(base).values() if isinstance(slot, MemberDescriptorType)]


def _in_slot(slot: MemberDescriptorType, module: nn.Module) -> Any:
    try:
        return slot.__get__(module)
    except AttributeError:  # nothing is in it
        return None


def _worth_a_look(attributes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes:
        if type(value) in _PLAIN or (type(value) in _CONTAINERS and not value):
            continue
        value = _strong(value)
        if isinstance(value, Tensor) or _is_holder(value):
            yield name, value


def _is_own(kind: type) -> bool:
    """Whether a class is of the model's authors or their libraries: classes of torch and Python hold no layers."""
    return str(kind.__module__).partition(".")[0] not in _OF_OTHERS


def _reached_from(root: Any, inside: set[int], seen: set[int]) -> Iterator[nn.Module | Tensor]:
    level = [root]
    for _ in range(_DEPTH):
        following = []
        for value in level:
            if isinstance(value, Tensor):
                yield value
                continue
            if isinstance(value, nn.Module):
                yield value
                if id(value) in inside:
                    continue
            if id(value) in seen:
                continue
            seen.add(id(value))
            if len(seen) > _MOST_OBJECTS:
                return
            held = map(_strong, _held_by(value))
            following += [one for one in held if isinstance(one, Tensor) or _is_holder(one)]
        level = following


def _is_holder(value: Any) -> bool:
    """Whether a module may be reached through a value: not through numbers, strings and containers of these alone."""
    if isinstance(value, type):
        return _is_own(value)
    if isinstance(value, (Tensor, *_NO_HOLDERS)):
        return False
    return gc.is_tracked(value)


def _strong(value: Any) -> Any:
    """The object behind a weak proxy, which has the object's class but is another one; None where it is gone."""
    if type(value) not in weakref.ProxyTypes:
        return value
    try:
        return value.__dir__.__self__
    except (ReferenceError, AttributeError):
        return None


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):  # not its globals: they are not the model's
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
    if isinstance(value, type):
        return [*vars(value).values(), *value.__bases__]
    if isinstance(value, weakref.ref):
        return [value(), *gc.get_referents(value)]
    return gc.get_referents(value)
