"""The torch drafter: K query-only steps over the target's KV cache (reference section 3).

Nothing here can change the text, only how much of a draft is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from paceline.config import DrafterConfig, LayerSpec
from paceline.runtime.protocols import Draft, DraftRequest
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.cached import attend_cached
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.sampling import draw

DraftPosition = Literal["last_written", "next"]
"""Where a round's draft steps stand when the cache holds N positions: N-1 or N (section 3.4)."""

MAX_DRAFT_TOKENS = 15


class TorchDrafter:
    """Runs a `DrafterModel` beside its target (protocol `runtime.protocols.Drafter`)."""

    max_draft_tokens = MAX_DRAFT_TOKENS

    def __init__(
        self, model: DrafterModel, target: TargetModel, position: DraftPosition = "last_written"
    ) -> None:
        self.model = model.eval()
        self.target = target
        self.position = position
        self.donors = {kind: target.config.kv_layer(kind) for kind in set(model.config.layer_kinds)}

    @property
    def config(self) -> DrafterConfig:
        return self.model.config

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        return [self._draft_one(request) for request in requests]

    @torch.inference_mode()
    def _draft_one(self, request: DraftRequest) -> Draft:
        cache = request.cache
        assert isinstance(cache, TorchKVCache)
        assert isinstance(request.hidden, Tensor)
        length = cache.length
        attend = DraftAttention(cache, self.donors)
        position = length - 1 if self.position == "last_written" else length
        rope = self.model.rope_tables(torch.tensor([position]), request.hidden.dtype)
        token, hidden = request.last_token, request.hidden[None]
        tokens: list[int] = []
        confidences: list[float] = []
        for step in range(request.max_draft_tokens):
            x = self.model.step(self.target.embed(torch.tensor([token])), hidden, rope, attend)
            token_ids, scores = self.model.head(x[0])
            token, confidence = draw(
                scores.float().numpy(),
                length + 1 + step,
                request.draw,
                None if token_ids is None else token_ids.numpy(),
            )
            if step < len(request.stop.min_confidences) and (
                confidence < request.stop.min_confidences[step]
            ):
                break
            tokens.append(token)
            confidences.append(confidence)
            if token in request.stop.end_token_ids:
                break
            hidden = self.model.post_projection(x)
        return Draft(tokens=tuple(tokens), confidences=tuple(confidences))



class DraftAttention:
    """Reads the target's donor layer of each kind; one query row, every key is in its past."""

    def __init__(self, cache: TorchKVCache, donors: dict[str, int]) -> None:
        self.cache = cache
        self.donors = donors
        # Visibility counts from the newest key, whatever the query's rotary position.
        self.positions = torch.tensor([cache.length - 1])

    def __call__(
        self, spec: LayerSpec, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> Tensor:
        store = self.cache.layers[self.donors[spec.kind]]
        return attend_cached(
            query, store, self.positions, self.cache.length - 1, spec.window
        )
