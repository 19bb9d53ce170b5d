"""Finds the layers whose weight a model's code reads, in its source: a packed layer has no dense weight to read."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from torch import nn

Path = tuple[str, ...]  # attributes from a module on, "*" for any child: ("layers", "*", "fc")
_ANY = "*"


def read_weights(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """The names of those ``layers`` whose ``weight`` is read by a ``forward``, or by a method that a ``forward`` calls.

    It sees ``self.fc.weight``, ``getattr`` and ``hasattr`` of a weight, and ``isinstance`` of a Linear, which have
    another result with a packed layer; it follows assignments to local variables and loops over children. It does not
    see code without source and in other functions, and skips torch's own modules.
    """
    names = {id(layer): name for name, layer in layers.items()}
    found: set[str] = set()
    for module in model.modules():
        kind: Any = type(module)
        for path in _paths_of(kind):
            found.update(names[id(read)] for read in _reached(module, path) if id(read) in names)
    return found


def _reached(module: nn.Module, path: Path) -> Iterator[nn.Module]:
    if not path:
        yield module
        return
    children = module._modules.values() if path[0] == _ANY else [module._modules.get(path[0])]
    for child in children:
        if child is not None:
            yield from _reached(child, path[1:])


@functools.lru_cache(maxsize=4096)
def _paths_of(kind: type[nn.Module]) -> frozenset[Path]:
    """The paths, from an instance, of the modules whose weight the code of its class reads."""
    methods = {
        name: member
        for base in reversed(kind.__mro__)
        for name, member in vars(base).items()
        if type(member) is FunctionType and (base.__module__ or "").partition(".")[0] not in ("torch", "mempool")
    }
    found: set[Path] = set()
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        reads = _Reads.of(methods.get(waiting.pop()))
        found |= reads.weights
        for name in reads.attributes & methods.keys() - seen:
            seen.add(name)
            waiting.append(name)
    return frozenset(found)


class _Reads(ast.NodeVisitor):
    """Visits the code of a method: which attributes of ``self`` it reads, and which modules' weights."""

    def __init__(self) -> None:
        self.weights: set[Path] = set()
        self.attributes: set[str] = set()
        self._variables: dict[str, Path] = {"self": ()}

    @classmethod
    def of(cls, method: FunctionType | None) -> _Reads:
        reads = cls()
        if method is not None:
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
            except (OSError, TypeError, SyntaxError, ValueError):
                return reads
            reads.visit(tree)
        return reads

    def _path(self, node: ast.AST) -> Path | None:
        """The path that an expression takes from ``self``: to children by attribute, by index, by key."""
        if isinstance(node, ast.Name):
            return self._variables.get(node.id)
        if isinstance(node, ast.Attribute):
            path = self._path(node.value)
            return None if path is None else (*path, node.attr)
        if isinstance(node, ast.Subscript):
            path = self._path(node.value)
            return path if path is None or isinstance(node.slice, ast.Slice) else (*path, _ANY)
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node.value)
        if path == ():
            self.attributes.add(node.attr)
        if path and node.attr == "weight" and isinstance(node.ctx, ast.Load):
            self.weights.add(path)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and len(node.args) >= 2:
            of, asked = self._path(node.args[0]), node.args[1]
            if node.func.id in ("getattr", "hasattr"):
                is_read = isinstance(asked, ast.Constant) and asked.value == "weight"
            else:
                is_read = node.func.id == "isinstance" and _is_linear(asked)
            if of and is_read:
                self.weights.add(of)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._loop(node.target, node.iter)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def _assign(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, of in zip(target.elts, value.elts, strict=True):
                self._assign(one, of)
        elif isinstance(target, ast.Name):
            self._let(target.id, self._path(value))

    def _loop(self, target: ast.AST, over: ast.AST) -> None:
        """``for layer in self.layers``, ``enumerate(…)``, ``zip(…)``, ``….values()``, ``….items()``."""
        called = over.func if isinstance(over, ast.Call) else None
        elements = target.elts if isinstance(target, ast.Tuple) else [target]
        if isinstance(called, ast.Name) and called.id == "enumerate" and len(elements) == 2:
            self._loop(elements[1], over.args[0])  # type: ignore[attr-defined]
        elif isinstance(called, ast.Name) and called.id == "zip":
            for one, of in zip(elements, over.args, strict=False):  # type: ignore[attr-defined]
                self._loop(one, of)
        elif isinstance(called, ast.Attribute) and called.attr in ("values", "items", "children"):
            self._loop(elements[-1], called.value)
        elif isinstance(target, ast.Name):
            path = self._path(over)
            self._let(target.id, None if path is None else (*path, _ANY))

    def _let(self, name: str, path: Path | None) -> None:
        if path is not None:
            self._variables[name] = path
        elif name != "self":
            self._variables.pop(name, None)


def _is_linear(asked: ast.AST) -> bool:
    """Whether the second argument of ``isinstance`` is torch's Linear, or has it among others."""
    if isinstance(asked, ast.Tuple):
        return any(map(_is_linear, asked.elts))
    if isinstance(asked, ast.BinOp):
        return _is_linear(asked.left) or _is_linear(asked.right)
    return "Linear" in (getattr(asked, "id", None), getattr(asked, "attr", None))
