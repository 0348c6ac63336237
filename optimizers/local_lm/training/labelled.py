"""TRL's preference losses from the logits of labelled positions alone, where its own kernel scores every position.

TRL's fused head leaves out what no label asks for on Triton devices only; on a CPU it lays the vocabulary over the
whole prompt, contract and all, forward and back.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from optimizers.local_lm.weights import Weights


def keeps_logits(weights: Weights, model: Any) -> bool:
    """Whether the model can leave out logits that nobody asks for; virtual tokens would shift the places."""
    return not learns_prompt(model) and "logits_to_keep" in signature(type(weights.model).forward).parameters


def learns_prompt(model: Any) -> bool:
    """Whether keys and values come from outside the network, which recomputing a layer would not see."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


class OnLabels:
    """For a DPOTrainer or KTOTrainer: while `on_labels` is true, its loss asks `labelled(model)` instead of the model.

    Not for a mixture of experts, whose routing loss comes from the fused head.
    """

    def __init__(self, *args: Any, on_labels: bool, **kwargs: Any) -> None:
        self.on_labels = on_labels  # before the rest: the reference is asked while the trainer is being made
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        return super()._compute_loss(self._asked(model, return_outputs), inputs, return_outputs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """As the trainer's."""
        return super().compute_ref_log_probs(self._asked(model), inputs)

    def _asked(self, model: Any, return_outputs: bool = False) -> Any:
        return labelled(model) if self.on_labels and not return_outputs and not self.aux_loss_enabled else model


def labelled(model: Any) -> Callable[..., FusedCausalLMOutput]:
    """`model` as TRL's fused head answers: per next token (B x T-1), 0 where the label is -100.

    Log probabilities carry gradients; entropy, mean logit and whether the label is the likeliest token do not.
    """

    def call(*, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> FusedCausalLMOutput:
        wanted_B_T = labels[:, 1:] != -100
        places_K = wanted_B_T.any(dim=0).nonzero().squeeze(1)
        logits_B_K_V = model(**inputs, logits_to_keep=places_K).logits
        wanted_B_K = wanted_B_T[:, places_K]
        targets_N, logits_N_V = labels[:, 1:][:, places_K][wanted_B_K], logits_B_K_V[wanted_B_K].float()
        logps_N_V = logits_N_V.log_softmax(-1)
        with torch.no_grad():
            told = {
                "entropy": -(logps_N_V.exp() * logps_N_V).sum(-1), "mean_logits": logits_N_V.mean(-1),
                "is_top1": logits_N_V.argmax(-1) == targets_N,
            }  # fmt: skip
        told["log_probs"] = logps_N_V.gather(-1, targets_N[:, None])[:, 0]
        zeros = {name: value.new_zeros(wanted_B_T.shape) for name, value in told.items()}
        spread = {name: zeros[name].masked_scatter(wanted_B_T, value) for name, value in told.items()}
        return FusedCausalLMOutput(**spread, label_mask=wanted_B_T)

    return call
