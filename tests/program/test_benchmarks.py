"""Every benchmark still starts: none imports a name that has moved, none has an option that breaks its help."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_starts(name, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    if not hasattr(module, "main"):
        return  # a part of another one
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out
