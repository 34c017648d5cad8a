"""Which token comes next? The one at which the cumulative distribution passes a given uniform number.

A large vocabulary is not sorted as a whole: the nucleus nearly always lies within its few hundred likeliest tokens.
"""

import torch

from scalefed.models import Tensor

WIDE = 4096  # vocabularies beyond this look for the nucleus among the likeliest tokens first
# tokens that are sorted first: the shipped vocabulary whole; of larger ones all are where these hold too little
LIKELIEST = 512


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One token a row, on the CPU: ``(n, vocab), (n,) -> (n,)``.

    Args:
        logits: of the next token.
        uniforms: uniform numbers in [0, 1); not used at temperature 0, which takes the likeliest token.
        temperature: divides the logits.
        top_p: smallest set of tokens with this probability is kept.
    """
    if temperature == 0:
        return logits.argmax(-1).cpu()
    if logits.shape[-1] > WIDE:
        return _wide(logits / temperature, uniforms, top_p)
    chances = torch.softmax(logits.double() / temperature, dim=-1).cpu()
    return _invert(nucleus(chances, top_p) if top_p < 1 else chances, uniforms)


def nucleus(chances: Tensor, top_p: float) -> Tensor:
    """Zero all but the most likely tokens that together reach ``top_p``. Source: Holtzman et al. 2020, section 3.1."""
    ordered, index = chances.sort(-1, descending=True)
    ordered[(ordered.cumsum(-1) - ordered) >= top_p] = 0
    return torch.zeros_like(chances).scatter_(-1, index, ordered)


def _wide(scaled: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """The same for a large vocabulary; rows whose nucleus is wider than the likeliest tokens are sorted in full."""
    if top_p == 1:
        return _invert(torch.softmax(scaled, dim=-1).cpu(), uniforms)
    best, index = scaled.topk(LIKELIEST, dim=-1)
    chances = (best.double() - torch.logsumexp(scaled, dim=-1, keepdim=True).double()).exp().cpu()
    reached = chances.cumsum(-1)
    chances[(reached - chances) >= top_p] = 0
    by_id, order = index.cpu().sort(-1)
    chosen = _invert(chances.gather(-1, order), uniforms)
    tokens = by_id.gather(-1, chosen[:, None]).flatten()
    flat = torch.nonzero(reached[:, -1] < top_p).flatten()
    if len(flat):
        all_of_them = torch.softmax(scaled[flat.to(scaled.device)], dim=-1).cpu()
        tokens[flat] = _invert(nucleus(all_of_them, top_p), uniforms[flat])
    return tokens


def _invert(chances: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability is above ``uniforms`` times the total."""
    cumulative = chances.cumsum(-1, dtype=torch.double)
    chosen = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True).flatten()
    return chosen.clamp(max=chances.shape[-1] - 1)
