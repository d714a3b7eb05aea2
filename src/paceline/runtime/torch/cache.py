"""Keys and values of one sequence: rings for sliding layers, growing tables for global ones.

A position p lives in slot p (global) or p mod the ring's size (sliding). Slots come in blocks of
`BLOCK` positions, the fixed unit in which attention reads them (contract C1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.config import LayerSpec, TargetConfig
from paceline.runtime.bounds import check_room, check_truncation

BLOCK = 64


def blocks_for(positions: int) -> int:
    return -(-positions // BLOCK)


class LayerStore:
    """K and V of one layer, each [blocks, G, BLOCK, H], zero where never written.

    Args:
        ring_slots: slots of a sliding layer's ring; None for a table that grows.
    """

    def __init__(
        self, spec: LayerSpec, ring_slots: int | None, max_length: int, dtype: torch.dtype
    ) -> None:
        self.is_ring = ring_slots is not None
        self.max_blocks = blocks_for(max_length)
        blocks = min(blocks_for(ring_slots) if ring_slots else 1, self.max_blocks)
        shape = (blocks, spec.num_kv_heads, BLOCK, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[0]

    @property
    def num_slots(self) -> int:
        return self.num_blocks * BLOCK

    @property
    def kv_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; doubles, so that copying stays linear in total."""
        if self.is_ring or length <= self.num_slots:
            return
        blocks = min(max(2 * self.num_blocks, blocks_for(length)), self.max_blocks)
        self.keys, self.values = (self._grown(x, blocks) for x in (self.keys, self.values))

    @staticmethod
    def _grown(old: Tensor, blocks: int) -> Tensor:
        new = old.new_zeros((blocks, *old.shape[1:]))
        new[: old.shape[0]] = old
        return new

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store rows [T, G, H] at positions `start`, +1, ... in the stored type."""
        begin, count = 0, keys.shape[0]
        while begin < count:
            block, slot = divmod((start + begin) % self.num_slots, BLOCK)
            end = min(count, begin + BLOCK - slot)
            slots = slice(slot, slot + end - begin)
            self.keys[block, :, slots] = keys[begin:end].transpose(0, 1)
            self.values[block, :, slots] = values[begin:end].transpose(0, 1)
            begin = end

    def read_blocks(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Blocks `first` to `last` of absolute positions, in float32. Each [n, G, BLOCK, H]"""
        return self._blocks(self.keys, first, last), self._blocks(self.values, first, last)

    def read(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Positions `first` to `last`, in float32. Each [G, last - first + 1, H]"""
        first_block = first // BLOCK
        kept = slice(first - first_block * BLOCK, last + 1 - first_block * BLOCK)
        keys, values = self.read_blocks(first_block, last // BLOCK)
        return (
            keys.transpose(0, 1).flatten(1, 2)[:, kept],
            values.transpose(0, 1).flatten(1, 2)[:, kept],
        )

    def _blocks(self, stored: Tensor, first: int, last: int) -> Tensor:
        begin = first % self.num_blocks
        end = begin + last + 1 - first
        if end <= self.num_blocks:
            return stored[begin:end].float()
        return stored[torch.arange(begin, end) % self.num_blocks].float()


class TorchKVCache:
    """The KV cache of one sequence (protocol `runtime.protocols.KVCache`).

    Args:
        slack: positions that sliding rings hold beyond the window. A pass of up to `slack` rows
            leaves the whole window before it in place, so any of its rows can be taken back.
    """

    def __init__(
        self, config: TargetConfig, *, max_length: int, slack: int, dtype: torch.dtype
    ) -> None:
        self._max_length = max_length
        self._window = config.sliding_window
        self._length = 0
        self._written = 0  # highest position ever written + 1: what the rings have overwritten
        # One more block than the window needs: the oldest block is only partly visible.
        ring = config.sliding_window + slack + BLOCK
        self.layers = {
            spec.index: LayerStore(spec, ring if spec.window else None, max_length, dtype)
            for spec in config.layers
            if spec.owns_kv
        }
        self._ring_slots = min(
            (store.num_slots for store in self.layers.values() if store.is_ring), default=None
        )

    @property
    def length(self) -> int:
        return self._length

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def shortest_truncation(self) -> int:
        """The next row must find the `window - 1` positions before it in the rings."""
        if self._ring_slots is None or self._written <= self._ring_slots:
            return 0
        return self._written - self._ring_slots + self._window - 1

    @property
    def kv_bytes(self) -> int:
        return sum(store.kv_bytes for store in self.layers.values())

    def truncate(self, length: int) -> None:
        check_truncation(self, length)
        self._length = length
        if length == 0:
            self._written = 0

    def reserve(self, num_rows: int) -> None:
        """Make room for a pass of `num_rows` more positions, and count them as written: a pass
        that is interrupted may have overwritten what their ring slots held.

        Raises:
            CacheError: the sequence would outgrow `max_length`.
        """
        check_room(self, num_rows)
        length = self._length + num_rows
        self._written = max(self._written, length)
        for store in self.layers.values():
            store.reserve(length)

    def advance(self, num_rows: int) -> None:
        """Count rows that every KV layer has stored."""
        self._length += num_rows
