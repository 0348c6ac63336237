"""What the machine can do."""

import torch


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
