"""How large is a client's step? Linear warm-up, then a cosine over all local steps of the run."""

import math

from scalefed.config import RunConfig


def learning_rate(config: RunConfig, round_number: int, step: int) -> float:
    """The clients' learning rate: linear warm-up, then a cosine over all local steps to the final share.

    Args:
        config: gives the peak, the warm-up share and the final share.
        round_number: counted from 0.
        step: local step within the round, counted from 0.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """
    total = config.rounds * config.local_steps
    now = round_number * config.local_steps + step
    warm = config.warmup * total
    if now < warm:
        return config.client_learning_rate * (now + 1) / (math.floor(warm) + 1)
    progress = (now - warm) / max(total - warm, 1)
    end = config.final_learning_rate
    return config.client_learning_rate * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))


def learning_rates(config: RunConfig, round_number: int) -> list[float]:
    """The rate of every local step of a round."""
    return [learning_rate(config, round_number, step) for step in range(config.local_steps)]
