"""Every kernel of the packed layers once, on shapes that end within tiles: what compute-sanitizer watches."""

from __future__ import annotations

import sys

from mempool.doctor import gpu

SHAPES = ((1, 1), (70, 1028), (67, 1027), (300, 141))


def main() -> int:
    result = gpu.examine(shapes=[], ragged=SHAPES)
    wrong = [row for row in result["rows"] if not row["exact"]]
    print(result["problem"] or f"{len(result['rows'])} rows, {len(wrong)} wrong: {wrong[:5]}")
    return 1 if wrong or result["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
