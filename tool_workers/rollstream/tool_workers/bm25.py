"""Okapi BM25 over a corpus in memory (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K1 = 1.2
B = 0.75
WORD = re.compile(r"\w+")


class Bm25Index:
    """Scores documents for queries. Immutable; safe to use from several threads.

    Args:
        texts: one per document.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float32)
        mean = float(lengths.mean()) if len(lengths) and lengths.any() else 1.0
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for number, count in enumerate(counts):
            for word, times in count.items():
                documents, frequencies = postings.setdefault(word, ([], []))
                documents.append(number)
                frequencies.append(times)
        self.size = len(texts)
        self._weights: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
        for word, (documents, frequencies) in postings.items():
            held_in = np.array(documents, dtype=np.int32)
            times = np.array(frequencies, dtype=np.float32)
            rarity = np.log(1 + (self.size - len(held_in) + 0.5) / (len(held_in) + 0.5))
            damped = times * (K1 + 1) / (times + K1 * (1 - B + B * lengths[held_in] / mean))
            self._weights[word] = (held_in, (rarity * damped).astype(np.float32))

    def best(self, query: str, top_k: int) -> list[tuple[int, float]]:
        """The documents that score highest, best first, with their scores; the earlier one where scores are equal."""
        scores = np.zeros(self.size, dtype=np.float32)
        for word in set(words(query)):
            if word in self._weights:
                held_in, weights = self._weights[word]
                scores[held_in] += weights
        found = np.flatnonzero(scores)
        ranked = found[np.lexsort((found, -scores[found]))][:top_k]
        return [(int(number), float(scores[number])) for number in ranked]


def words(text: str) -> list[str]:
    """Lower-case words."""
    return WORD.findall(text.lower())
