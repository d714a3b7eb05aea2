"""Clusters of equal size for a centroid head: k-means in which every cluster holds as many rows.

Knows only a table of vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def balanced_clusters(
    table: NDArray[np.float32], num_clusters: int, seed: int
) -> NDArray[np.int64]:
    """Row indices of `table` [V, D], cluster after cluster. [V]

    Cost: V x num_clusters distances a round, and a sort of them.
    """
    assert len(table) % num_clusters == 0, "DrafterConfig asks for clusters of equal size"
    rows = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)
    size = len(rows) // num_clusters
    random = np.random.default_rng(seed)
    means = rows[random.choice(len(rows), num_clusters, replace=False)]
    owner = _assign(rows @ means.T, size)
    for _ in range(ROUNDS):
        order = np.argsort(owner, kind="stable")
        means = rows[order].reshape(num_clusters, size, -1).mean(axis=1)
        owner = _assign(rows @ means.T, size)
    return np.argsort(owner, kind="stable").astype(np.int64)


def _assign(similarity: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Give every row a cluster with room, the surest choices first. [V, C] -> [V]

    In each pass every row without a cluster asks for its best one that has room, and a cluster
    takes those that fit it best.
    """
    rows, clusters = similarity.shape
    owner = np.full(rows, -1, dtype=np.int64)
    room = np.full(clusters, size)
    wanting = np.arange(rows)
    open_similarity = similarity.copy()
    while len(wanting):
        choice = open_similarity[wanting].argmax(axis=1)
        strength = open_similarity[wanting, choice]
        order = np.lexsort((-strength, choice))
        ranked = choice[order]
        place = np.arange(len(order)) - np.searchsorted(ranked, ranked)
        taken = order[place < room[ranked]]
        owner[wanting[taken]] = choice[taken]
        room -= np.bincount(choice[taken], minlength=clusters)
        open_similarity[:, room == 0] = -np.inf
        wanting = np.delete(wanting, taken)
    return owner
