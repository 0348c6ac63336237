"""The stages of one renewal, each done once: a killed renewal goes on behind the last stage that had ended.

stages = Stages(Path("home/renewals/0003"))
rows = stages.run("skills", lambda: score_the_skills())     # a JSON-able result, kept in stages/skills.json
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from program.failpoints import reach
from program.runs import write_json


class Stages:
    """Runs each stage unless its result is there; what a stage leaves half done is its own to begin anew."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self._say = folder, say
        (folder / "stages").mkdir(parents=True, exist_ok=True)

    def run(self, name: str, make: Callable[[], Any]) -> Any:
        """The stage's result, made now or, where an earlier process ended it, read back."""
        path = self.folder / "stages" / f"{name}.json"
        if self.done(name):
            self._say(f"{name}: done before")
            return json.loads(path.read_text(encoding="utf-8"))["made"]
        reach(f"renew.{name}.begin")
        began = time.perf_counter()
        made = make()
        reach(f"renew.{name}.made")
        write_json(path, {"made": made, "seconds": time.perf_counter() - began})
        reach(f"renew.{name}.kept")
        return json.loads(path.read_text(encoding="utf-8"))["made"]  # as a resumed renewal would read it

    def done(self, name: str) -> bool:
        """Whether the stage has ended, in this process or an earlier one."""
        return (self.folder / "stages" / f"{name}.json").is_file()

    def seconds(self) -> dict[str, float]:
        """How long each stage that has ended took."""
        return {
            path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"]
            for path in sorted((self.folder / "stages").glob("*.json"))
        }
