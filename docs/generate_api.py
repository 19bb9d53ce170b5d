"""Prints docs/api.md: what `mempool` exports, as Markdown, from the docstrings.

The sources are read and not run (griffe), so this needs no build. The order is that of each `__all__`; the comments in
`mempool.__all__` are the headings.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120

Found = griffe.Object | griffe.Alias


def main() -> None:
    package = griffe.load(
        "mempool", search_paths=[ROOT], docstring_parser="google", resolve_aliases=True, try_relative_path=False
    )
    print(re.sub(r"\n{3,}", "\n\n", "\n".join(Page(package).lines())).rstrip())


def target_of(found: Found) -> Any:
    return found.final_target if isinstance(found, griffe.Alias) else found


def groups_of(package: Found) -> dict[str, list[str]]:
    """The names of `mempool.__all__` under the comments that stand between them."""
    text = Path(str(package.filepath)).read_text()
    groups: dict[str, list[str]] = {}
    title = "version"
    for line in re.search(r"^__all__ = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1].splitlines():  # type: ignore[index]
        if line.strip().startswith("#"):
            title = line.strip("# ")
        else:
            groups.setdefault(title, []).append(line.strip(' ",'))
    return groups


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


class Page:
    """The page, and which names have a heading on it."""

    def __init__(self, package: Found) -> None:
        self.package = package
        self.groups = groups_of(package)
        self.modules = [str(name) for name in package.exports or [] if package[str(name)].is_module]
        # What two modules export is described where it comes first.
        self.headings: dict[str, str] = {}
        for name in package.exports or []:
            exported = package[str(name)]
            for inner in exported.exports or [] if exported.is_module else [None]:
                heading, found = (str(name), exported) if inner is None else (f"{name}.{inner}", exported[str(inner)])
                self.headings.setdefault(target_of(found).path, heading)

    def lines(self) -> Iterator[str]:
        yield "# API"
        yield ""
        yield "<!-- Written by `make docs` from the docstrings: change those. -->"
        yield from self.docstring(self.package)
        named = [f"`{name}` is `{self.package[f'_device.{name}'].value}`" for name in ("Device", "Size")]
        yield from (f"In signatures {' and '.join(named)}.", "")
        for title, names in self.groups.items():
            links = ", ".join(f"[`{name}`](#{slug(self.title_of(name))})" for name in names)
            yield from textwrap.wrap(f"- {title}: {links}", WIDTH, subsequent_indent="  ", break_long_words=False)
        for title, names in self.groups.items():
            if any(name not in self.modules for name in names):
                yield from ("", f"## {title[0].upper()}{title[1:]}")
            for name in names:
                if name not in self.modules:
                    yield from self.entry(name, self.package[name])
        for name in self.modules:
            yield from self.module(name)

    def title_of(self, name: str) -> str:
        return f"mempool.{name}" if name in self.modules else name

    def module(self, name: str) -> Iterator[str]:
        module = self.package[name]
        yield from ("", f"## {self.title_of(name)}")
        yield from self.docstring(module)
        exported = {str(inner): module[str(inner)] for inner in module.exports or []}
        homes = {target_of(found).module.path for found in exported.values()}
        if len(homes) == 1 and homes != {module.path}:  # a face: what the module behind it says of itself
            yield from self.docstring(target_of(next(iter(exported.values()))).module)
        for inner, found in exported.items():
            heading = self.headings[target_of(found).path]
            if heading == f"{name}.{inner}":
                yield from self.entry(heading, found)
            else:
                yield from ("", f"`{name}.{inner}` is [`{heading}`](#{slug(heading)}).")

    def entry(self, heading: str, found: Found) -> Iterator[str]:
        target = target_of(found)
        yield from ("", f"### {heading}", "")
        yield from ("```python", *self.code_of(heading.rpartition(".")[2], target), "```")
        yield from self.docstring(target)
        if not target.is_class:
            return
        members = {name: target_of(each) for name, each in target.all_members.items() if not name.startswith("_")}
        own = {name: each for name, each in members.items() if each.path.startswith("mempool.")}
        properties = {name: each for name, each in own.items() if "property" in each.labels}
        if properties:
            yield from ("", "Properties:", "")
        for name, each in properties.items():
            annotation = "" if each.annotation is None else f": {each.annotation}"
            yield from self.item(f"`{name}{annotation}`", each.docstring.value if each.docstring else "", target)
        for name, each in own.items():
            if each.is_function and each.docstring:
                yield from ("", f"#### {heading}.{name}", "")
                yield from ("```python", *self.code_of(name, each), "```")
                yield from self.docstring(each)

    def code_of(self, name: str, target: Any) -> list[str]:
        """A signature; of a dataclass its fields, with their comments; of a constant nothing but its type."""
        if target.is_attribute:
            return [f"{name}: {target.annotation}" if target.annotation else f"{name} = {target.value}"]
        if target.is_function:
            decorators = [str(each.value) for each in target.decorators]
            shown = [f"@{each}" for each in decorators if each.rpartition(".")[2] in ("classmethod", "contextmanager")]
            word = "async def" if "async" in target.labels else "def"
            return shown + self.signature(word, name, target, str(target.returns) if target.returns else None)
        bases = [str(base) for base in target.bases if not str(base).rpartition(".")[2].startswith("_")]
        opening = f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"
        if "dataclass" in target.labels:
            source = Path(str(target.filepath)).read_text().splitlines()
            fields = [each for each in target.members.values() if each.is_attribute and "property" not in each.labels]
            return [opening, *(line for each in fields for line in source[each.lineno - 1 : each.endlineno])]
        if "__init__" in target.members:
            return self.signature("class", name, target["__init__"], None)
        return [opening.removesuffix(":")]

    def signature(self, word: str, name: str, function: Any, returns: str | None) -> list[str]:
        shown, star = [], False
        for each in function.parameters:
            if each.name in ("self", "cls"):
                continue
            if each.kind is griffe.ParameterKind.keyword_only and not star:
                shown.append("*")
            star |= each.kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
            prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(str(each.kind and each.kind.value), "")
            text = f"{prefix}{each.name}" + (f": {each.annotation}" if each.annotation else "")
            if each.default is not None and not prefix:
                default = re.sub(r"'([^'\"]*)'", r'"\1"', str(each.default))
                text += f" = {default}" if each.annotation else f"={default}"
            shown.append(text)
        end = f") -> {returns}" if returns else ")"
        line = f"{word} {name}({', '.join(shown)}{end}"
        if len(line) <= WIDTH:
            return [line]
        return [f"{word} {name}(", *(f"    {text}," for text in shown), end]

    def docstring(self, target: Any) -> Iterator[str]:
        if target.docstring is None:
            return
        for section in target.docstring.parse("google", returns_multiple_items=False, returns_named_value=False):
            if isinstance(section.value, str):
                yield from ("", *self.text(section.value, target))
                continue
            yield from ("", f"{section.kind.value.capitalize()}:", "")
            for item in section.value:
                name = getattr(item, "name", None) or item.annotation
                if section.kind is not griffe.DocstringSectionKind.returns:
                    yield from self.item(f"`{name}`", item.description, target)
                elif str(item.annotation) == str(target.returns):  # as in the signature
                    yield from self.item("", item.description, target)
                else:  # its text up to a colon was taken for a type
                    yield from self.item("", f"{item.annotation}: {item.description}", target)

    def text(self, text: str, target: Found) -> Iterator[str]:
        """Paragraphs as they are written; what is shown as typed into Python is code."""
        for paragraph in re.split(r"\n{2,}", text.strip()):
            is_code = paragraph.startswith(">>>")
            yield from (["```python", *paragraph.splitlines(), "```"] if is_code else [self.marked(paragraph, target)])
            yield ""

    def item(self, name: str, description: str, target: Found) -> Iterator[str]:
        description = self.marked(" ".join(description.split()), target)
        text = f"- {name}: {description}" if name and description else f"- {name}{description}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

    def marked(self, text: str, target: Found) -> str:
        """Markdown of what a docstring marks: links to what is on the page, and code."""
        text = re.sub(r":\w+:`([^`]+)`", lambda match: self.link(match[1], target), text)
        return re.sub(r"``([^`]+)``", r"`\1`", text)

    def link(self, name: str, target: Found) -> str:
        owner = target if target.is_class else target.parent
        if owner is not None and owner.is_class and name in owner.all_members:
            heading = f"{self.headings.get(owner.path, owner.name)}.{name}"
            return f"`{name}`" if "property" in owner.all_members[name].labels else f"[`{name}`](#{slug(heading)})"
        named = [heading for heading in self.headings.values() if heading.rpartition(".")[2] == name.rpartition(".")[2]]
        return f"[`{name}`](#{slug(named[0])})" if named else f"`{name}`"


if __name__ == "__main__":
    main()
