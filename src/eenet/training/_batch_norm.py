"""Re-estimating the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import BatchNorm, pytree
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel, unpack
from eenet.stages import feature_at, modes_kept


def reestimate_batch_norm(model: MultiExitModel, loader: Iterable[Any], batches: int) -> int:
    """Replace the running statistics of all batch norms by plain means over `batches` batches of the loader.

    The running averages of training lag behind the weights, and those of a frozen or averaged network may be of other
    weights altogether. Dropout and the rest stay in inference mode, no weight changes. Gives the number of batch norms;
    raises `InvalidInputError`, and changes nothing, where the loader has fewer batches.
    """
    if batches < 1:
        raise InvalidInputError(f"batches is {batches}, expected at least 1")
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    done = 0
    features: dict[int, Tensor] = {}

    def keeping(index: int) -> Any:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            features[index] = feature_at(module, output).clone()  # a later in-place operator would change it

        return hook

    # The network itself runs, not its stages: a momentum of None, for a plain mean, is counted in Python, which a
    # trace would fix at its first value.
    with modes_kept(model), ExitStack() as stack, torch.no_grad():
        for index, name in enumerate(model.staged.at):
            handle = model.backbone.get_submodule(name).register_forward_hook(keeping(index))
            stack.callback(handle.remove)
        try:
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None
            for batch in loader:
                args, kwargs, _ = unpack(batch)
                args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(device), (args, kwargs))
                model.backbone(*args, **kwargs)
                for index, head in enumerate(model.heads):
                    head(features[index])
                done += 1
                if done == batches:
                    break
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if done < batches:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
        raise InvalidInputError(f"the loader gave {done} batches, expected {batches}; ask for fewer, or give more data")
    return len(norms)
