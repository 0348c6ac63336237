"""What a recipe's trainings take of memory, by the provider's own dry run, before anything is trained.

    need = training_memory(program, config, train)
    memory_words(need)     # "0.9 GiB of memory on cpu: 0.1 for the weights, 0.8 to train them beside (14 GiB are free)"

On CUDA it is the GPU's memory, else the machine's. The longest of a few dozen prompts stands for all: passages are
bounded, so that prompts are much alike. Not handled: the teacher's longer prompts of step d; what generation takes,
which a training waits for; an embedder on another device than the LM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from sentence_transformers import SentenceTransformer

from modules.retriever import PassageIndex
from modules.signatures import NOT_FOUND, join_quotes, number_passages
from optimizers.embedder import EmbedderSettings, training_bytes
from optimizers.local_lm.training.estimate import bytes_free
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.guarding import tuner_options

GIB = 2**30
_PROMPTS = 32
_OTHER_CHARS = 100
_TRAINS = {"s", "a", "d"}


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the weights that are loaded, of what training takes beside them, and what is free on `device` now."""

    weights_bytes: int
    training_bytes: int
    free_bytes: int
    device: str


def training_memory(
    program: ContractReview, config: CompileConfig, examples: Sequence[dspy.Example], adapter: dspy.ChatAdapter
) -> MemoryNeed | None:
    """The most that one training of the recipe takes, on prompts of these examples; None where no weights are trained.

    A step a counts with its own method, whose rows hold two answers. Raises TrainingError and ModelError as the
    training itself would: for settings that are none, and rows of which too many are too long.
    """
    steps, lm, embedder = set(config.recipe.split(" -> ")), program.get_lm(), program.retrieve.index.embedder
    if not examples or not hasattr(lm.provider, "dry_run"):
        return None
    weights, takes = lm.engine.weights, []
    if steps & _TRAINS:
        takes.append(_of_the_lm(program, config, examples, adapter))
    if "r" in steps and isinstance(embedder, SentenceTransformer):  # another is none that can be trained
        takes.append(training_bytes(embedder, EmbedderSettings(), passage_texts(program.retrieve.index)))
    if not takes:
        return None
    beside = embedder.parameters() if isinstance(embedder, SentenceTransformer) else ()
    return MemoryNeed(
        weights_bytes=weights.model.get_memory_footprint() + sum(p.numel() * p.element_size() for p in beside),
        training_bytes=max(takes),
        free_bytes=bytes_free(weights),
        device=str(weights.device),
    )


def memory_words(need: MemoryNeed) -> str:
    """The need in a line."""
    total = (need.weights_bytes + need.training_bytes) / GIB
    return (
        f"{total:.2g} GiB of memory on {need.device}: {need.weights_bytes / GIB:.2g} for the weights, "
        f"{need.training_bytes / GIB:.2g} to train them beside ({need.free_bytes / GIB:.3g} GiB are free)"
    )


def _of_the_lm(
    program: ContractReview, config: CompileConfig, examples: Sequence[dspy.Example], adapter: dspy.ChatAdapter
) -> int:
    """Bytes that the language model's largest training takes beside the weights."""
    steps, lm = config.recipe.split(" -> "), program.get_lm()
    prompts = [_prompt(program, example, adapter) for example in examples[:: max(1, len(examples) // _PROMPTS)]]
    kwargs = tuner_options(config) | {"seed": config.seed, "batch_size": config.batch_size, "progress": False}
    methods = (["sft"] if {"s", "d"} & set(steps) else []) + ([config.preference_method] if "a" in steps else [])
    told = []
    for method in methods:
        rows = [_row(method, *one, number) for number, one in enumerate(prompts)]
        told.append(lm.provider.dry_run(lm.model, rows, kwargs | {"method": method}))
    return max(one.bytes_needed for one in told)


def passage_texts(index: PassageIndex) -> list[str]:
    """What a contract's passages are to the embedder; contracts are cut alike."""
    return [index.embedded_text(one) for one in index.passages(index.contract_ids[0])]


def _prompt(
    program: ContractReview, example: dspy.Example, adapter: dspy.ChatAdapter
) -> tuple[list[dict[str, Any]], str, str]:
    """What the reviewer is asked, its label as it would say it, and another answer: a pair of equal ones is none."""
    predict = program.reviewer.predict
    passages = program.retrieve(question=example.question, contract_id=example.contract_id).passages
    inputs = {"passages": number_passages([one.text for one in passages]), "question": example.question}
    messages = adapter.format(predict.signature, predict.demos, inputs)
    gold = {"quotes": join_quotes(list(example.quotes)), "answer": example.answer}
    words = " ".join(passages[0].text.split())[:_OTHER_CHARS]
    other = {"quotes": join_quotes([]), "answer": NOT_FOUND} if example.found else {"quotes": words, "answer": words}
    said = (adapter.format_assistant_message_content(predict.signature, one) for one in (gold, other))
    return messages, *said


def _row(method: str, prompt: list[dict[str, Any]], gold: str, other: str, number: int) -> dict[str, Any]:
    """A training row of the method (training/rows.py), as near in length to the real ones as labels are."""
    answers = [[{"role": "assistant", "content": said}] for said in (gold, other)]
    if method == "sft":
        return {"messages": [*prompt, *answers[0]]}
    if method == "kto":
        return {"prompt": prompt, "completion": answers[number % 2], "label": number % 2 == 0}
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
