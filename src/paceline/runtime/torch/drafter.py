"""The torch drafter: K query-only steps over the target's KV cache (reference section 3).

Nothing here can change the text, only how much of a draft is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, repeat

import torch
from torch import Tensor

from paceline.config import DrafterConfig, LayerKind, LayerSpec
from paceline.runtime.protocols import MAX_DRAFT_TOKENS, Draft, DraftPosition, DraftRequest
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.cached import attend_keys
from paceline.runtime.torch.models import DrafterModel, TargetModel
from paceline.sampling import draw


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
        attend = FrozenAttention(cache, self.donors, self.config.sliding_window)
        place = length - 1 if self.position == "last_written" else length
        rope = self.model.rope_tables(torch.tensor([place]), request.hidden.dtype)
        token, hidden = request.last_token, request.hidden[None]
        tokens: list[int] = []
        confidences: list[float] = []
        bounds = chain(request.stop.min_confidences, repeat(-math.inf))
        for step, bound in zip(range(request.max_draft_tokens), bounds, strict=False):
            x = self.model.step(self.target.embed(torch.tensor([token])), hidden, rope, attend)
            token_ids, scores = self.model.head(x[0])
            token, confidence = draw(
                scores.float().numpy(),
                length + 1 + step,
                request.draw,
                None if token_ids is None else token_ids.numpy(),
            )
            if confidence < bound:
                break
            tokens.append(token)
            confidences.append(confidence)
            if token in request.stop.end_token_ids:
                break
            hidden = self.model.post_projection(x)
        return Draft(tokens=tuple(tokens), confidences=tuple(confidences))


class FrozenAttention:
    """What a draft's queries see of the target: the donor layer of each kind.

    Read once, for it does not change within a round. Visibility counts from the newest key,
    whatever the query's rotary position, so no key needs a mask.
    """

    def __init__(self, cache: TorchKVCache, donors: dict[LayerKind, int], window: int) -> None:
        last = cache.length - 1
        first = {"sliding": max(0, last - window + 1), "global": 0}
        self.seen = {
            kind: cache.layers[donor].read(first[kind], last) for kind, donor in donors.items()
        }

    def __call__(
        self, spec: LayerSpec, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> Tensor:
        return attend_keys(query, *self.seen[spec.kind])
