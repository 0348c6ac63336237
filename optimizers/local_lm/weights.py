"""Base weights: found, checked, loaded once per process, and named so that no name ever means two sets of weights.

Does not handle: encoder-decoder models, images or sound, more than one device per model.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from optimizers.errors import ModelError

BUNDLED = {"evergreen-base": Path(__file__).parent / "evergreen-base"}
QUANTIZE = ("auto", "nf4", "none")
NF4_FROM_BYTES = 2 * 2**30  # "auto" on CUDA: a base whose files are at least this large, about a billion parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
DEFINING_FILES = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*.json", "*.jinja")


@dataclass(eq=False)
class Weights:
    """One causal LM in memory, with what serving and training need to know of it.

    `base` is the name in model strings, `<name>:<8 hex>`; the hex covers the files, the quantisation and the dtype,
    so retrained weights never answer from a cache filled by the old ones. `digest` covers the files alone: adapters
    are bound to it. Whoever runs or changes `model` holds `lock`. `attached` holds the adapters in memory, `graft` the
    one that stands in the network now, `tuning` the training in progress (tuning/adapters.py).
    """

    base: str
    digest: str
    folder: Path
    model: Any
    tokenizer: Any
    device: torch.device
    quantize: str | None
    context_tokens: int
    stop_ids: frozenset[int]
    folds_system: bool
    control_tokens: tuple[str, ...]
    lock: threading.RLock = field(default_factory=threading.RLock)
    attached: dict[str, Any] = field(default_factory=dict)
    graft: Any = None
    tuning: Any = None

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self.model.config.get_text_config().hidden_size


def spares_memory(weights: Weights) -> bool:
    """Whether training spends time to save memory (recomputed activations, 8-bit moments): a quantized base on CUDA."""
    return weights.quantize is not None and weights.device.type == "cuda"


_loaded: dict[tuple, Weights] = {}
_loading = threading.Lock()


def load_weights(
    name_or_path: str | Path,
    *,
    quantize: str = "auto",
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> Weights:
    """Load a base model once per process and (folder, quantize, device, dtype); a second call returns the same object.

    `quantize`: "nf4" (4 bits, double quantisation; QLoRA, Dettmers et al. 2023), "none", or "auto": nf4 for a large
    base on CUDA, none elsewhere.
    `dtype` defaults to float32 on the CPU (greedy answers then do not depend on the batch) and bfloat16 on CUDA.
    Raises ModelError for a missing model, a tokenizer without a chat template, absent CUDA, unknown `quantize`/`dtype`.
    """
    if quantize not in QUANTIZE:
        raise ModelError(f"quantize={quantize!r} is not known; use one of {QUANTIZE}")
    where = _device(device)
    kind = _dtype(dtype, where)
    with _loading:
        folder = find_folder(name_or_path)
        bits = _resolve_quantize(quantize, folder, where)
        key = (folder, bits, where, kind)
        if key not in _loaded:
            _loaded[key] = _load(str(name_or_path), folder, bits, where, kind)
        return _loaded[key]


def forget_weights() -> None:
    """Drop every loaded base from the process's registry; engines that hold one keep it."""
    with _loading:
        _loaded.clear()


def find_folder(name_or_path: str | Path) -> Path:
    """The folder a bundled name, a path or a hub id stands for. Raises ModelError saying what is missing."""
    if name_or_path in BUNDLED:
        folder = BUNDLED[str(name_or_path)]
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the bundled model {name_or_path!r} is not in this installation (no config.json in its folder); "
                "reinstall the package, or give a folder or a hub id"
            )
        return folder.resolve()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is a folder without config.json; give a folder written by save_pretrained")
        return path.resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) or str(name_or_path).startswith("."):
        raise ModelError(
            f"model {str(name_or_path)!r} is neither bundled ({', '.join(BUNDLED)}), nor a folder, nor a hub id "
            "(owner/name)"
        )
    return _from_hub(str(name_or_path))


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as err:  # the hub client raises many types; each means "not here"
        raise ModelError(
            f"model {hub_id!r} is not in the local hub cache and could not be fetched ({type(err).__name__}: {err}); "
            "download it once with a network, or give its folder"
        ) from err


def _load(name: str, folder: Path, quantize: str | None, device: torch.device, dtype: torch.dtype) -> Weights:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {name!r} has no chat template; put a chat_template.jinja beside its tokenizer.json "
            "(an -Instruct or -Chat model carries one)"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": str(device)}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
    except (OSError, ValueError) as err:
        raise ModelError(f"the weights of {name!r} cannot be loaded: {err}") from err
    if quantize is None:
        model.to(device)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack a CPU weight when it first serves, for a kernel that has no gradient, and never
            # pack it back: an adapter trained after that would learn, silently, without what flows through the base.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.eval()
    digest = folder_digest(folder)
    told = hashlib.sha256(json.dumps([digest, quantize, str(dtype)]).encode()).hexdigest()[:8]
    return Weights(
        base=f"{_public_name(name)}:{told}",
        digest=digest,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        device=device,
        quantize=quantize,
        context_tokens=int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 4096),
        stop_ids=_stop_ids(model, tokenizer, name),
        folds_system=not _takes_system(tokenizer),
        control_tokens=_control_tokens(tokenizer),
    )


def _public_name(name: str) -> str:
    """A bundled name or hub id as it is; of a path its last part, without characters that mean something here."""
    keep = name in BUNDLED or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).is_dir())
    kept = name if keep else Path(name).name
    return re.sub(r"[^A-Za-z0-9._/-]", "-", kept)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device={device!r} was asked for and torch sees no CUDA device; use device='cpu' or 'auto'")
    return where


def _resolve_quantize(quantize: str, folder: Path, device: torch.device) -> str | None:
    if quantize != "auto":
        return None if quantize == "none" else quantize
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    large = device.type == "cuda" and n_bytes >= NF4_FROM_BYTES
    already = "quantization_config" in json.loads((folder / "config.json").read_text())
    return "nf4" if large and not already else None


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is not known; use one of {tuple(DTYPES)}")
    return DTYPES[dtype]


def _stop_ids(model: Any, tokenizer: Any, name: str) -> frozenset[int]:
    told = model.generation_config.eos_token_id
    ids = set(told if isinstance(told, list) else [told]) | {tokenizer.eos_token_id}
    ids.discard(None)
    if not ids:
        raise ModelError(f"{name!r} names no end-of-turn token (eos_token_id); set it in generation_config.json")
    return frozenset(ids)


def _takes_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system turn; if not, its text goes in front of the first user turn.

    Gemma's raises on one; a template that only knows its own roles leaves it out.
    """
    probe = [{"role": "system", "content": "read with care"}, {"role": "user", "content": "u"}]
    try:
        return "read with care" in tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
    except Exception:  # jinja's error, raised by the template on purpose
        return False


def _control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Every control token, the longest first; a tokenizer names few of them (of Llama's, neither header token)."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


def folder_digest(folder: Path) -> str:
    """sha256 over the files that decide a model's output, in name order."""
    files = sorted({file for pattern in DEFINING_FILES for file in folder.glob(pattern)})
    listing = [(file.name, file_sha256(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex. In the hub's cache a large file is a link whose target is named by it: no reading."""
    target = path.resolve()
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    with target.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
