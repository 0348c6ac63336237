"""Causal LMs with random weights and a byte-level tokenizer, written to a folder: for tests and benchmarks.

Their answers are noise; their code path, chat template and control tokens have the shape of a released family's:
`write_tiny_model(folder, kind="mistral")`. FAMILIES lists the kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

_CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
# An answer stands behind an empty block of thoughts, and so does the place where one is asked for.
_NO_THOUGHT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n<think>\n\n</think>\n"
    "{{ m.content }}<|im_end|>\n{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
# The system text goes in front of the last turn if that is the user's, and nowhere if it is not.
_MISTRAL = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}{{ bos_token }}"
    "{% for m in (messages[1:] if system else messages) %}" + _ALTERNATE + "{% if m.role == 'user' %}"
    "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
_GEMMA_TURNS = (
    _ALTERNATE + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n%s{{ m.content | trim }}"
    "<end_of_turn>\n{%% endfor %%}{%% if add_generation_prompt %%}<start_of_turn>model\n{%% endif %%}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + _GEMMA_TURNS.replace("%s", "").replace("%%", "%")
)
_GEMMA3 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}{{ bos_token }}"
    "{% for m in (messages[1:] if system else messages) %}"
    + _GEMMA_TURNS.replace("%s", "{% if loop.first and system %}{{ system }}\n\n{% endif %}").replace("%%", "%")
)
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A released family's shape: architecture, chat template and control tokens.

    Of the control tokens a released tokenizer names but some (`pad`, `eos`, `bos`); `end`, which ends a turn, may be
    none of them and then stands only in the generation config.
    """

    config: type
    template: str = CHAT_TEMPLATE
    control: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    pad: str = "<|endoftext|>"
    eos: str = "<|im_end|>"
    end: str = "<|im_end|>"
    bos: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


_GEMMA_TOKENS: dict[str, Any] = {
    "control": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    "pad": "<pad>", "eos": "<eos>", "end": "<end_of_turn>", "bos": "<bos>",
}  # fmt: skip
_SLIDING: dict[str, Any] = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, Family] = {
    "qwen3": Family(Qwen3Config),
    "qwen2": Family(Qwen2Config, _DEFAULT_SYSTEM + CHAT_TEMPLATE, eos="<|endoftext|>"),
    "smollm3": Family(SmolLM3Config, _NO_THOUGHT),
    "llama": Family(
        LlamaConfig, _LLAMA3, pad="<|end_of_text|>", eos="<|eot_id|>", end="<|eot_id|>", bos="<|begin_of_text|>",
        control=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral": Family(
        MistralConfig, _MISTRAL, control=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), pad="<unk>", eos="</s>",
        end="</s>", bos="<s>", options={"sliding_window": None},
    ),
    "mistral-sliding": Family(
        MistralConfig, _MISTRAL, control=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), pad="<unk>", eos="</s>",
        end="</s>", bos="<s>", options={"sliding_window": 24},
    ),
    "gemma": Family(GemmaConfig, _GEMMA, **_GEMMA_TOKENS),
    "gemma2": Family(Gemma2Config, _GEMMA, **_GEMMA_TOKENS, options={**_SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3": Family(Gemma3TextConfig, _GEMMA3, **_GEMMA_TOKENS, options={**_SLIDING, "query_pre_attn_scalar": 8}),
    "phi3": Family(
        Phi3Config, _PHI3, eos="<|endoftext|>", end="<|end|>",
        control=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "gpt2": Family(GPT2Config, options={"n_inner": None, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}),
    "gpt_neox": Family(GPTNeoXConfig),
}  # fmt: skip


def byte_tokenizer(kind: str = "qwen3") -> PreTrainedTokenizerFast:
    """One token per byte, the family's control tokens and its chat template; encoding text adds `bos` if it has one."""
    family = FAMILIES[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.control])
    if family.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )


def write_tiny_model(
    folder: str | Path,
    *,
    kind: str = "qwen3",
    hidden: int = 32,
    layers: int = 2,
    context_tokens: int = 2048,
    seed: int = 0,
) -> Path:
    """Write a random model of the family `kind` (a key of FAMILIES) to `folder` and return the folder.

    `hidden` is a multiple of 8. The families with sliding windows alternate them with full attention, layer by layer.
    """
    folder, family = Path(folder), FAMILIES[kind]
    tokenizer = byte_tokenizer(kind)
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(family.end)})
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": context_tokens,
        "tie_word_embeddings": True,
        "initializer_range": 0.2 if hidden < 128 else 0.05,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    } | dict(family.options)
    if "layer_types" in options:
        options["layer_types"] = [options["layer_types"][i % 2] for i in range(layers)]
    known = set(family.config().to_dict()) | set(family.config.attribute_map)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            family.config(**{name: value for name, value in options.items() if name in known})
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
