"""What earlier runs of a benchmark wrote with `--out`, to be shown together; `results/` keeps the README's."""

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The JSON of each file, of one that ends in .xz unpacked."""
    contents = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes() for path in paths)
    return [json.loads(content) for content in contents]
