"""Compiled programs on disk: prompts as JSON, adapters as safetensors, nothing pickled.

    <folder>/  program.json  (stock dspy state; loads with program.load too, without its LMs)
               local_lm.json (base, and per predictor its adapter and call settings)
               adapters/sft-3f2a91c0de/...
               COMPLETE

Does not handle: predictors on two different local bases in one program.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dspy

from optimizers.errors import ModelError
from optimizers.local_lm.sealed import check_seal, draft_beside, move_into_place, seal
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.tuning.adapters import check_adapter

SPEC_KEYS = ("name_or_path", "quantize", "dtype", "max_tokens")


def save_program(program: dspy.Module, folder: str | Path) -> Path:
    """Write `program` and the adapters its predictors use to `folder` (replaced whole if it exists); returns it.

    Predictors with another kind of LM, or none, are saved as DSPy saves them. Raises ModelError for two bases or a
    broken adapter.
    """
    folder = Path(folder)
    local = {name: lm for name, lm in _lms(program).items() if isinstance(lm.engine, LocalEngine)}
    engines = {id(lm.engine.weights): lm.engine for lm in local.values()}
    if len(engines) > 1:
        bases = sorted(engine.weights.base for engine in engines.values())
        raise ModelError(f"the program's predictors use {len(bases)} local bases {bases}; save_program takes one")
    with draft_beside(folder.parent) as draft:
        program.save(draft / "program.json")
        _drop_lms(draft / "program.json", set(local))
        told = {"predictors": {name: _call_settings(lm) for name, lm in local.items()}}
        for engine in engines.values():
            told |= {"base": engine.weights.base, "digest": engine.weights.digest}
            told |= {"spec": {key: engine.spec.get(key) for key in SPEC_KEYS}}
            for name in {lm.engine.adapter_of(lm.model) for lm in local.values()} - {None}:
                check_adapter(engine.adapters_dir / name, engine.weights)
                shutil.copytree(engine.adapters_dir / name, draft / "adapters" / name)
        (draft / "local_lm.json").write_text(json.dumps(told, indent=1))
        seal(draft, {"kind": "program"})
        move_into_place(draft, folder)
    return folder


def load_program(program: dspy.Module, folder: str | Path, **local_lm_kwargs: Any) -> dspy.Module:
    """Load `folder` into `program` (of the class that was saved) and return it, able to answer and to train on.

    `local_lm_kwargs` go to `local_lm`; `name_or_path` among them if the base has moved. Adapters are copied into the
    engine's work_dir. Raises ModelError if a file changed, or the base is not the one the program was compiled on.
    """
    from optimizers.local_lm import local_lm

    folder = Path(folder)
    check_seal(folder)
    told = json.loads((folder / "local_lm.json").read_text())
    program.load(folder / "program.json")
    if not told["predictors"]:
        return program
    lm = local_lm(**{**told["spec"], **local_lm_kwargs})
    if lm.engine.weights.digest != told["digest"]:
        raise ModelError(
            f"the program in {folder.name!r} was compiled on {told['base']!r}, and {lm.engine.weights.base!r} has "
            "other weights; give name_or_path= of the base it was compiled on"
        )
    lms = {}
    for name, call in told["predictors"].items():
        adapter = call.pop("adapter")
        if adapter is not None:
            _bring(folder / "adapters" / adapter, lm.engine)
        cache, retries, kwargs = call["cache"], call["num_retries"], call["kwargs"]
        key = json.dumps([adapter, call], sort_keys=True)
        if key not in lms:
            lms[key] = lm.copy(model=lm.engine.model_string(adapter), cache=cache, num_retries=retries)
            lms[key].kwargs = dict(kwargs)
        dict(program.named_parameters())[name].lm = lms[key]
    return program


def _lms(program: dspy.Module) -> dict[str, dspy.LM]:
    """Each predictor's own dspy.LM, by the name DSPy saves it under."""
    named = ((name, getattr(parameter, "lm", None)) for name, parameter in program.named_parameters())
    return {name: lm for name, lm in named if isinstance(lm, dspy.LM)}


def _drop_lms(path: Path, names: set[str]) -> None:
    # Their state would name a folder of this machine and need allow_unsafe_lm_state to load.
    state = json.loads(path.read_text())
    for name in names:
        (state if name == "self" else state[name])["lm"] = None  # a lone predictor's state stands at the top
    path.write_text(json.dumps(state, indent=1, ensure_ascii=False))


def _call_settings(lm: dspy.LM) -> dict[str, Any]:
    adapter = lm.engine.adapter_of(lm.model)
    return {"adapter": adapter, "cache": lm.cache, "num_retries": lm.num_retries, "kwargs": lm.kwargs}


def _bring(source: Path, engine: LocalEngine) -> None:
    target = engine.adapters_dir / source.name
    if (target / "COMPLETE").is_file():
        check_adapter(target, engine.weights)
        return
    check_adapter(source, engine.weights)
    with draft_beside(engine.adapters_dir) as draft:
        shutil.copytree(source, draft, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
