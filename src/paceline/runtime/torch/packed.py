"""Linear layers in oneDNN's own weight layout: for the eight rows of a tile 1.4 to 4 times as fast
as PyTorch's own float32 products (docs/decisions/0001-row-tiles.md).

For inference on x86 only; the weights are held once, in the new layout.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine and this PyTorch have the kernels."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A frozen linear layer without bias.

    Args:
        weight: [out, in]; copied.
        num_rows: the number of rows that the layout is chosen for.
    """

    def __init__(self, weight: Tensor, num_rows: int) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return out

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight.to_dense()


def pack_linears(module: nn.Module, num_rows: int) -> None:
    """Replace every linear layer below `module`, one by one, so that memory holds one copy."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, num_rows))
        else:
            pack_linears(child, num_rows)
