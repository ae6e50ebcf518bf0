"""What n samples of a prompt, c of them solved, say about k samples of it. Pure."""

from __future__ import annotations

import math


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """The chance that at least one of k samples solves the prompt: 1 - C(n-c, k) / C(n, k), without bias.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1, as a product of factors between
    0 and 1, so that no large binomial is formed. Plugging c/n into 1 - (1 - p)^k instead would be biased.

    Args:
        samples: n, scored samples of the prompt.
        solved: c, those that solve it.
        k: at most n.

    Raises:
        ValueError: the numbers are not 1 <= k <= n and 0 <= c <= n.
    """
    _check(samples, solved, k)
    if samples - solved < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - solved + 1, samples + 1))


def pass_hat_k(samples: int, solved: int, k: int) -> float:
    """The chance that all of k samples solve the prompt (pass^k): C(c, k) / C(n, k), without bias.

    Yao et al. 2024, "tau-bench", section 3: how reliable an agent is, where pass@k says how far it can get.

    Raises:
        ValueError: the numbers are not 1 <= k <= n and 0 <= c <= n.
    """
    _check(samples, solved, k)
    return math.prod((solved - i) / (samples - i) if solved > i else 0.0 for i in range(k))


def default_ks(samples: int) -> tuple[int, ...]:
    """The powers of two up to n, and n."""
    powers = [1 << bit for bit in range(samples.bit_length()) if 1 << bit <= samples]
    return tuple(dict.fromkeys([*powers, samples]))


def _check(samples: int, solved: int, k: int) -> None:
    if not (1 <= k <= samples and 0 <= solved <= samples):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got k={k}, n={samples}, c={solved}")
