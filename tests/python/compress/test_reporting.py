"""The table of a model's layers."""

from __future__ import annotations

from torch import nn

from mempool import compress
from mempool._text import render


def rows(model: nn.Module) -> list[list[str]]:
    """The cells of each row, but for its ends."""
    text = render(compress.report(model).table(grouped=True), width=160)
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def block(width: int) -> nn.Module:
    return nn.ModuleDict({"query": nn.Linear(width, width), "1x1": nn.Linear(width, 2 * width)})


def test_layers_that_differ_in_their_numbers_share_a_row() -> None:
    model = nn.ModuleDict({"layer": nn.ModuleList([block(8) for _ in range(12)]), "head[b]": nn.Linear(8, 2)})
    found = rows(model)
    assert [row[0] for row in found[:3]] == ["layer.{0-11}.query x 12", "layer.{0-11}.1x1 x 12", "head[b]"]
    assert found[0][1:5] == ["float32", "8 x 8", "1.00", "3.38 KiB"]
    assert len(found) <= 4  # and the sum


def test_other_shapes_and_gaps_are_told_apart() -> None:
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)]
    assert [row[0] for row in rows(nn.Sequential(*layers))[:3]] == ["{0,4-5} x 3", "2", "3"]
    nested = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
    assert rows(nested)[0][0] == "{0-2}.{0-1} x 6"


def test_densities_that_differ_are_a_range() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    model[1].weight[:2] = 0  # type: ignore[index, operator, union-attr]
    assert rows(model)[0][3] == "0.50-1.00"
