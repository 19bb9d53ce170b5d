"""Runs a program as ``python`` would: it notices no difference but the allocator of its tensors."""

from __future__ import annotations

import builtins
import importlib.machinery
import os
import pkgutil
import runpy
import sys
import types
from dataclasses import dataclass
from typing import Any, Literal

_RUNPY: Any = runpy  # ``python -m`` calls a function of it that has no public name
_PKGUTIL: Any = pkgutil


@dataclass(frozen=True)
class Target:
    """The program on a command line of ``python``."""

    kind: Literal["file", "module", "code"]  # a file may be "-", a folder or a zip file
    text: str  # the path, the module's name, or the code
    args: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Why the program cannot be run, as far as that is known without running it."""
        if self.kind != "file" or self.text == "-":
            return None
        if not os.path.exists(self.text):
            return f"there is no file '{self.text}'."
        if not os.access(self.text, os.R_OK):
            return f"'{self.text}' cannot be read: {os.strerror(13)}."
        return None


def execute(target: Target) -> None:
    """Runs the program as ``__main__``, which it stays until the interpreter ends: pickling looks classes up there.

    Exceptions are the program's, and their tracebacks show the program's frames alone.
    """
    main = types.ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        vars(main)["__annotations__"] = {}
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = main
    try:
        if target.kind == "module":
            sys.argv = ["-m", *target.args]
            _set_folder(os.getcwd())
            _RUNPY._run_module_as_main(target.text)
        elif target.kind == "code":
            sys.argv = ["-c", *target.args]
            _set_folder("")
            _run(main, compile(target.text + "\n", "<string>", "exec", dont_inherit=True))
        else:
            sys.argv = [target.text, *target.args]
            _execute_file(main, target.text)
    except SystemExit:
        raise
    except BaseException:
        _leave_out_own_frames()
        raise


_kept: list[types.ModuleType] = []  # keeps the command's own __main__ alive, whose globals are still in use


def _execute_file(main: types.ModuleType, path: str) -> None:
    if path == "-":
        _set_folder("")
        source = sys.stdin.buffer.read()
        main.__file__ = "<stdin>"
        vars(main)["__cached__"] = None
        _run(main, compile(source, "<stdin>", "exec", dont_inherit=True))
        return
    absolute = path if os.path.isabs(path) else f"{os.getcwd()}/{path}"
    if pkgutil.get_importer(absolute) is not None:  # a folder or a zip file with a __main__.py
        _set_folder(absolute, also_safe=True)
        _RUNPY._run_module_as_main("__main__", False)
        return
    _set_folder(os.path.dirname(os.path.realpath(path)))
    loader: Any = importlib.machinery.SourceFileLoader
    with open(absolute, "rb") as file:
        code = _PKGUTIL.read_code(file)  # the code of a compiled file; None for source
        if code is not None:
            loader = importlib.machinery.SourcelessFileLoader
        else:
            file.seek(0)
            code = compile(file.read(), absolute, "exec", dont_inherit=True)
    main.__file__ = absolute
    vars(main)["__cached__"] = None
    main.__loader__ = loader("__main__", absolute)
    _run(main, code)


def _run(main: types.ModuleType, code: types.CodeType) -> None:
    if main.__loader__ is None:
        main.__loader__ = importlib.machinery.BuiltinImporter
    exec(code, vars(main))


def _set_folder(first: str, also_safe: bool = False) -> None:
    """Makes this the first folder to look for modules, instead of the command's. ``-P`` and ``-I`` have none."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[:1] = [first]
    elif also_safe:
        sys.path.insert(0, first)


def _leave_out_own_frames() -> None:
    """Makes the next traceback that Python prints begin with the program's frames."""
    hook = sys.excepthook

    def without_own(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        sys.excepthook = hook
        last_own = None
        entry = trace
        while entry is not None:
            if entry.tb_frame.f_code.co_filename == __file__:
                last_own = entry
            entry = entry.tb_next
        rest = trace if last_own is None else last_own.tb_next
        hook(kind, error.with_traceback(rest), rest)

    sys.excepthook = without_own
