"""A model card and a data card, written from what a release's manifest says.

`MODEL_CARD.md` and `DATA_CARD.md` stand in the release; the model card is each adapter folder's `README.md`, too,
which is what the hub shows of one that is uploaded. Nothing is said that is not known: no licence, and a base model
in the header only where it is one of the hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from program.releases.types import CARDS


def text_environment() -> Environment:
    """Jinja over this folder's templates, for plain text: nothing is escaped, a name not given raises."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"cell": _cell, "share": _share, "quoted": json.dumps, "fenced": _fenced}
    return environment


def write_cards(folder: Path, told: Mapping[str, Any]) -> list[str]:
    """Write the cards of the release in `folder`, whose manifest will say `told`; their paths below it."""
    base = told["config"].get("lm", "")
    given = {
        "told": told,
        "base": base if "/" not in base or _is_hub_id(base) else Path(base).name,
        "hub_base": base if _is_hub_id(base) else None,
        "prompts": prompts_of(folder),
    }
    templates = text_environment()
    pages = {card: templates.get_template(f"{card.lower()}.j2").render(given) for card in CARDS}
    for adapter in told["program"]["adapters"]:
        readme = f"program/adapters/{adapter}/README.md"
        if not (folder / readme).exists():
            pages[readme] = pages[CARDS[0]]
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")
    return list(pages)


def prompts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Instructions and demonstrations of each predictor, of `program/program.json` in a run or release."""
    state = json.loads((folder / "program" / "program.json").read_text(encoding="utf-8"))
    if "signature" in state:  # a lone predictor's state stands at the top
        state = {"self": state}
    return {
        name: {"instructions": told["signature"]["instructions"], "demos": told.get("demos", [])}
        for name, told in state.items()
        if isinstance(told, dict) and "signature" in told
    }


def _is_hub_id(name: str) -> bool:
    """`owner/model`, and no folder here: a path would say where it lies on this machine, and nothing to others."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    mean = f"{100 * found['mean']:.1f}"
    return mean if found["low"] is None else f"{mean} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
