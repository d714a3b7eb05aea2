"""The torch target: passes over rows of several sequences, in tiles of a fixed number of rows.

PyTorch's matrix products round differently for one row than for several, but for one shape a
row's bits depend neither on its place nor on its neighbours (docs/decisions/0001-row-tiles.md,
tests/test_row_invariance.py). So every pass runs in tiles of `TILE` rows, the last one padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paceline.config import LayerSpec, TargetConfig, check_range
from paceline.runtime.protocols import ArrayOutput, KVCache, PassOutput, Rows
from paceline.runtime.torch.cache import TorchKVCache
from paceline.runtime.torch.cached import VisibleKeys, attend_cached, visible_keys
from paceline.runtime.torch.models import TargetModel

TILE = 8


@dataclass(frozen=True)
class Span:
    """Consecutive rows of one sequence inside a tile, at `offset`, +1, ... of the tile."""

    cache: TorchKVCache
    token_ids: Sequence[int]
    num_outputs: int
    source: int  # index of the `Rows` it came from
    start: int  # position of its first row
    offset: int

    @property
    def rows(self) -> slice:
        return slice(self.offset, self.offset + len(self.token_ids))

    @property
    def output_rows(self) -> slice:
        return slice(self.rows.stop - self.num_outputs, self.rows.stop)


class TorchTarget:
    """Runs a `TargetModel` for inference (protocol `runtime.protocols.Target`).

    Args:
        head: the output matrix in a faster layout; None uses the embedding itself.
    """

    def __init__(self, model: TargetModel, head: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model.eval()
        self.head = head or model.head
        self.dtype = model.embed_tokens.weight.dtype

    @property
    def config(self) -> TargetConfig:
        return self.model.config

    def new_cache(self, max_length: int, max_draft_tokens: int) -> TorchKVCache:
        check_range("max_length", max_length, 1, self.config.context_length)
        check_range("max_draft_tokens", max_draft_tokens, 0, self.config.context_length)
        slack = max(max_draft_tokens + 1, TILE)
        return TorchKVCache(self.config, max_length=max_length, slack=slack, dtype=self.dtype)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Rows]) -> list[PassOutput]:
        """One pass over the rows of one or more sequences.

        Raises:
            CacheError: a sequence would outgrow its cache. No cache has changed then.
        """
        for share in rows:
            assert share.token_ids
            assert 0 <= share.num_outputs <= len(share.token_ids)
            _as_torch(share.cache).reserve(len(share.token_ids))
        parts: list[list[Tensor]] = [[] for _ in rows]
        for tile in pack_tiles(rows):
            hidden = self._run_tile(tile)
            for span in tile:
                span.cache.advance(len(span.token_ids))
                if hidden is not None and span.num_outputs:
                    parts[span.source].append(hidden[span.output_rows])
        return self._outputs(parts)

    def _run_tile(self, tile: list[Span]) -> Tensor | None:
        """Final-normed hidden rows [TILE, D], or None where no row's output is wanted: then the
        layers that own no KV are skipped, for they would leave nothing behind."""
        token_ids = [self.config.pad_token_id] * TILE
        positions = [0] * TILE
        for span in tile:
            token_ids[span.rows] = span.token_ids
            positions[span.rows] = range(span.start, span.start + len(span.token_ids))
        wanted = any(span.num_outputs for span in tile)
        num_layers = None if wanted else self.config.first_shared_layer
        x = self.model.run_layers(
            torch.tensor(token_ids), torch.tensor(positions), TileAttention(tile), num_layers
        )
        return self.model.norm(x) if wanted else None

    def _outputs(self, parts: list[list[Tensor]]) -> list[PassOutput]:
        """Logits of the wanted rows, in tiles that sequences share again."""
        counts = [sum(len(part) for part in share) for share in parts]
        if not any(counts):
            empty = np.empty((0, self.config.vocab_size), dtype=np.float32)
            return [ArrayOutput.without_candidates(empty, ()) for _ in parts]
        hidden = torch.cat([part for share in parts for part in share])
        logits = torch.cat([self._tiled_logits(tile) for tile in torch.split(hidden, TILE)]).float()
        return [
            ArrayOutput.without_candidates(scores.numpy(), states.unbind())
            for scores, states in zip(
                torch.split(logits, counts), torch.split(hidden, counts), strict=True
            )
        ]

    def _tiled_logits(self, hidden: Tensor) -> Tensor:
        padded = hidden.new_zeros((TILE, hidden.shape[1]))
        padded[: len(hidden)] = hidden
        return self.model.soft_cap(self.head(padded)[: len(hidden)])


class TileAttention:
    """Stores a tile's keys and values, then lets each sequence's rows read their own cache."""

    def __init__(self, tile: list[Span]) -> None:
        self.tile = tile
        self.visible: dict[tuple[int, int | None], VisibleKeys] = {}

    def __call__(
        self, spec: LayerSpec, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> Tensor:
        assert spec.kv_layer is not None
        outputs = []
        for index, span in enumerate(self.tile):
            store = span.cache.layers[spec.kv_layer]
            if key is not None and value is not None:
                store.write(span.start, key[span.rows], value[span.rows])
            # All rows of the tile ask, so that the shape is fixed; only the span's own count.
            outputs.append(attend_cached(query, store, self._visible(index, spec.window)))
        if len(outputs) == 1:
            return outputs[0]
        mixed = torch.zeros_like(query)
        for span, output in zip(self.tile, outputs, strict=True):
            mixed[span.rows] = output[span.rows]
        return mixed

    def _visible(self, index: int, window: int | None) -> VisibleKeys:
        """Computed once for all layers of a kind. Foreign rows stand where the span begins."""
        if (index, window) not in self.visible:
            span = self.tile[index]
            count = len(span.token_ids)
            positions = torch.full((TILE,), span.start)
            positions[span.rows] += torch.arange(count)
            last_key = span.start + count - 1
            self.visible[index, window] = visible_keys(positions, last_key, window)
        return self.visible[index, window]


def pack_tiles(rows: Sequence[Rows]) -> list[list[Span]]:
    """Cut every sequence's rows into spans and fill tiles with them, in order."""
    tiles: list[list[Span]] = [[]]
    used = 0
    for source, share in enumerate(rows):
        cache = _as_torch(share.cache)
        begin, count = 0, len(share.token_ids)
        while begin < count:
            if used == TILE:
                tiles.append([])
                used = 0
            end = min(count, begin + TILE - used)
            tiles[-1].append(
                Span(
                    cache=cache,
                    token_ids=share.token_ids[begin:end],
                    num_outputs=max(0, min(end - begin, end - (count - share.num_outputs))),
                    source=source,
                    start=cache.length + begin,
                    offset=used,
                )
            )
            used += end - begin
            begin = end
    return tiles


def _as_torch(cache: KVCache) -> TorchKVCache:
    assert isinstance(cache, TorchKVCache)
    return cache
