"""How does our decoder train on a processor without a thousand small kernels? Its step is one C file, made here.

:func:`choose` says which kernels a run trains with, and why; :func:`train_clients` lets clients take their local steps;
:func:`native_losses` and :class:`NativeSession` score and sample a trained model.
"""

from scalefed.federated.native.choice import Kernels, choose
from scalefed.federated.native.reading import NativeSession, Reader, native_losses
from scalefed.federated.native.training import train_clients

__all__ = ["Kernels", "NativeSession", "Reader", "choose", "native_losses", "train_clients"]
