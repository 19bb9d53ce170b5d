"""Links of the pages, and the files that they name, exist. Needs no build."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
SUFFIXES = "h|cpp|cu|inl|py|pyi|cmake|md"


def anchor_of(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    anchors = {page: set(map(anchor_of, re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE))) for page in PAGES}
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors[target], f"{page.name}: {link}"


def test_files_that_are_named_exist() -> None:
    """A name with a folder is a path from the root; a bare one is that of some file."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}
    bare = {Path(path).name for path in files}
    for page in (ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("[!a]*.md")):
        for name in re.findall(rf"`([\w/.]+\.(?:{SUFFIXES}))`", page.read_text()):
            assert name in (files if "/" in name else bare), f"{page.name}: {name}"


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
