"""Keys and values of one sequence: rings for sliding layers, growing tables for global ones.

A position p lives in slot p (global) or p mod the ring's size (sliding). Slots come in blocks of
`BLOCK` positions, the fixed unit in which attention reads them (contract C1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.config import LayerSpec, TargetConfig
from paceline.errors import CacheError

BLOCK = 64


def blocks_for(positions: int) -> int:
    return -(-positions // BLOCK)


class LayerStore:
    """K and V of one layer, each [G, slots, H], zero where never written.

    Args:
        ring_slots: slots of a sliding layer's ring; None for a table that grows.
    """

    def __init__(
        self, spec: LayerSpec, ring_slots: int | None, max_length: int, dtype: torch.dtype
    ) -> None:
        self.window = spec.window
        self.is_ring = ring_slots is not None
        self.max_slots = blocks_for(max_length) * BLOCK
        slots = blocks_for(ring_slots) * BLOCK if ring_slots else BLOCK
        shape = (spec.num_kv_heads, min(slots, self.max_slots), spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    @property
    def num_slots(self) -> int:
        return self.keys.shape[1]

    @property
    def kv_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; doubles, so that copying stays linear in total."""
        if self.is_ring or length <= self.num_slots:
            return
        slots = min(max(2 * self.num_slots, blocks_for(length) * BLOCK), self.max_slots)
        self.keys, self.values = (self._grown(x, slots) for x in (self.keys, self.values))

    @staticmethod
    def _grown(old: Tensor, slots: int) -> Tensor:
        new = old.new_zeros((old.shape[0], slots, old.shape[2]))
        new[:, : old.shape[1]] = old
        return new

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store rows [T, G, H] at positions `start`, +1, ... in the stored type."""
        slots = torch.arange(start, start + keys.shape[0]) % self.num_slots
        self.keys[:, slots] = keys.transpose(0, 1).to(self.keys.dtype)
        self.values[:, slots] = values.transpose(0, 1).to(self.values.dtype)

    def read_blocks(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Blocks `first` to `last` of absolute positions, in float32. Each [G, n, BLOCK, H]"""
        return self._blocks(self.keys, first, last), self._blocks(self.values, first, last)

    def _blocks(self, stored: Tensor, first: int, last: int) -> Tensor:
        folded = stored.unflatten(1, (-1, BLOCK))
        if last < folded.shape[1]:
            return folded[:, first : last + 1].float()
        indices = torch.arange(first, last + 1) % folded.shape[1]
        return folded[:, indices].float()


class TorchKVCache:
    """The KV cache of one sequence (protocol `runtime.protocols.KVCache`).

    Args:
        slack: positions that sliding rings hold beyond the window. A pass of up to `slack` rows
            leaves the whole window before it in place, so any of its rows can be taken back.
    """

    def __init__(
        self, config: TargetConfig, *, max_length: int, slack: int, dtype: torch.dtype
    ) -> None:
        self._slack = slack
        self._max_length = max_length
        self._length = 0
        self._written = 0  # highest position ever written + 1: what the rings have overwritten
        # One more block than the window needs: the oldest block is only partly visible.
        ring = config.sliding_window + slack + BLOCK
        self.layers = {
            spec.index: LayerStore(spec, ring if spec.window else None, max_length, dtype)
            for spec in config.layers
            if spec.owns_kv
        }

    @property
    def length(self) -> int:
        return self._length

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def shortest_truncation(self) -> int:
        rings = [store.num_slots for store in self.layers.values() if store.is_ring]
        nothing_lost = self._written <= min(rings, default=self._written)
        return 0 if nothing_lost else self._written - self._slack

    @property
    def kv_bytes(self) -> int:
        return sum(store.kv_bytes for store in self.layers.values())

    def truncate(self, length: int) -> None:
        if length and not self.shortest_truncation <= length <= self._length:
            raise CacheError(
                f"cannot truncate the KV cache to {length}: it holds {self._length} positions and "
                f"its sliding layers reach back to {self.shortest_truncation}. Empty it with "
                "truncate(0) and feed the tokens again."
            )
        self._length = length
        if length == 0:
            self._written = 0

    def reserve(self, num_rows: int) -> None:
        """Make room for a pass of `num_rows` more positions.

        Raises:
            CacheError: the sequence would outgrow `max_length`.
        """
        length = self._length + num_rows
        if length > self._max_length:
            raise CacheError(
                f"{length} positions do not fit: this KV cache was made for {self._max_length}. "
                "Shorten the prompt or ask for fewer tokens."
            )
        for store in self.layers.values():
            store.reserve(length)

    def advance(self, num_rows: int) -> None:
        """Count rows that every KV layer has stored."""
        self._length += num_rows
        self._written = max(self._written, self._length)
