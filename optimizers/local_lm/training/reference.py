"""Log probabilities of preference rows under a reference that is not the model that training starts from.

TRL's reference is where training starts. In the second of several rounds, or for a program that came in with an
adapter, it is to be the base or the release that came in: then rows bring their reference's log probabilities along.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from optimizers.local_lm.prompts import encode_completion, encode_prompt
from optimizers.local_lm.serving.decoding import score_rows
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.tuning.adapters import serving
from optimizers.machine import cpu_has_bf16

Known = dict[tuple[str, str, str, str], tuple[float, float]]


def with_reference(
    engine: LocalEngine,
    model: str,
    rows: Sequence[Mapping[str, Any]],
    known: Known | None = None,
    *,
    bf16: bool | None = None,
    begun: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """The rows ({"prompt": messages, "chosen", "rejected", …}) with `ref_chosen_logps` and `ref_rejected_logps` (nats).

    Summed over the answer's tokens, its end of turn among them, under the model string `model`, in the precision that
    training computes in (`bf16` as in TrainSettings). `known` remembers them: a pair that comes again, in a later epoch
    or round, is not computed again. `begun` is told how many pairs are. Holds the weights' lock.
    """
    known = {} if known is None else known
    keys = [(model, repr(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    begun(len(missing))
    weights, adapter = engine.weights, engine.adapter_of(model)
    on_cpu = weights.device.type == "cpu"
    halves = (not on_cpu or cpu_has_bf16()) if bf16 is None else bf16
    if missing:
        with (
            weights.lock,
            serving(weights, adapter, engine.adapters_dir) as served,
            torch.autocast(weights.device.type, dtype=torch.bfloat16, enabled=halves),
        ):
            for key, row in missing.items():
                prompt = encode_prompt(weights, row["prompt"])
                answers = [
                    encode_completion(weights, row["prompt"], text, with_end=True)
                    for text in (row["chosen"], row["rejected"] or row["chosen"])
                ]
                if len(prompt) + max(map(len, answers)) > weights.context_tokens:
                    known[key] = (0.0, 0.0)  # rows.py leaves this row out, and counts it
                    continue
                known[key] = tuple(score_rows(served.model, prompt, answers, None, adapter, opening=served.opening))
    return [
        {**row, "ref_chosen_logps": known[key][0], "ref_rejected_logps": known[key][1]}
        for key, row in zip(keys, rows, strict=True)
    ]
