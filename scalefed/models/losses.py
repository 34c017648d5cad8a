"""What does each of many clients lose? Their cross entropies, with all logits in one piece of memory.

In a batched step of small models the logits are the largest tensors by far. Autograd keeps four of them (logits, log
probabilities, and the gradients of both), and at sixteen clients each falls out of the cache. Here the log
probabilities take the logits' place and their gradient takes theirs, with the kernels that autograd would have called,
so that losses and gradients are equal to the last bit to those of each client alone.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from scalefed.models.layout import Tensor


def client_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each client in nats per token: ``(m, n, vocab), (m, n) -> (m,)``.

    Args:
        logits: unnormalised, of ``n`` tokens a client; their memory is used up where they lie on the processor.
        targets: token ids.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return _InPlace.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


class _InPlace(torch.autograd.Function):
    """Cross entropy whose backward can run once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logs = logits.detach()
        torch.log_softmax(logs, -1, out=logs)
        ctx.logs, ctx.targets = logs, targets[..., None]
        return torch.stack(
            [F.nll_loss(*own) for own in zip(logs, targets, strict=True)]
        )  # summed as one alone would be

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Client by client, so that the gradient of the log probabilities, zero but at the targets, stays in cache."""
        of_logits, ctx.logs = ctx.logs, None
        of_logs = torch.zeros_like(of_logits[0])
        shares = (gradients[0] / -of_logits.shape[1]).tolist()
        for own, targets, share in zip(of_logits, ctx.targets, shares, strict=True):
            of_logs.scatter_(1, targets, share)
            torch._log_softmax_backward_data(of_logs, own, -1, own.dtype, out=own)
            of_logs.scatter_(1, targets, 0.0)
        return of_logits, None
