"""MultiExitModel: a cut network with an exit head at the end of each stage; made by `attach`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet._progress import by_itself
from eenet.errors import CutError, FileFormatError, InvalidInputError, kind_of
from eenet.models._backbones import Backbone
from eenet.models._cascade_network import CascadeNetwork
from eenet.models._exits import default_heads, require_head, warn_of_padding
from eenet.models._first_exits import Exits, kept
from eenet.models._folder import WEIGHTS
from eenet.models._io import NamedForward, check_labels, inferring, joint_loss, logits_in
from eenet.models._networks import Source, remember
from eenet.models._placement import Placement, by_time, paying, place_exits, warn_of_unseen
from eenet.models._saving import read_model, require_same_answers, write_model
from eenet.models._ties import share_buffers, shared_buffers
from eenet.networks._weights import load_weights
from eenet.records import kept_numbers
from eenet.stages import Dynamic, Example, SplitPoint, StagedModel, cut_for_heads
from eenet.stages._binding import dtype_of
from eenet.stages._samples import several_precisions
from eenet.tasks import Classification, Segmentation, Task

_ONE_EXIT = (
    "one exit alone, for all samples, is AdaptiveModel(model, Static(k).fit(records, costs)), and (model, k) in "
    "eenet.benchmark"
)


class MultiExitModel(nn.Module):
    """A network with K exits; calling it gives the logits of all of them. Made by `attach` or `from_pretrained`.

    Parameters
    ----------
    staged
        The network, cut at the exits; its weights are those of the network it was made from.
    heads
        The K-1 heads of the early exits: feature in, logits (N, C) out.
    num_classes
        C, the classes.
    source
        How the network can be built again, where that is known.
    task
        What the logits mean, by default `eenet.tasks.Classification()`.

    Attributes
    ----------
    staged, heads, num_classes, source, task
        As given; `heads` is a `torch.nn.ModuleList`.
    placement
        Where `attach` placed the exits, with the measured shares, if it did; None after loading.

    Examples
    --------
    >>> import torch, eenet
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> [tuple(logits.shape) for logits in model(torch.randn(5, 4))]
    [(5, 3), (5, 3)]
    """

    def __init__(
        self,
        staged: StagedModel,
        heads: Sequence[nn.Module],
        num_classes: int,
        *,
        source: Source | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.staged = staged
        self.heads = nn.ModuleList(heads)
        self.num_classes = num_classes
        self.source = source
        self.task: Task = task or Classification()
        self.placement: Placement | None = None

    def _apply(self, *args: Any, **kwargs: Any) -> MultiExitModel:
        # PyTorch converts parameters in place, but gives each module a buffer of its own.
        shared = shared_buffers(self)
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
        share_buffers(shared)
        return self

    @property
    def num_exits(self) -> int:
        """K, the last exit included."""
        return len(self.heads) + 1

    @property
    def backbone(self) -> nn.Module:
        """The network the exits were attached to."""
        return self.staged.backbone

    @property
    def plain(self) -> nn.Module:
        """What a user would run without exits: the backbone, or of a cascade its last member alone."""
        return self.backbone.last if isinstance(self.backbone, CascadeNetwork) else self.backbone

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules at whose ends the exits are; the last is "output". Of a cascade with names, its members'."""
        at = (*self.staged.at, "output")
        return tuple(map(self.backbone.exit_name, at)) if isinstance(self.backbone, CascadeNetwork) else at

    accepts_loss_kwargs = False  # the Trainer of transformers asks whether forward takes num_items_in_batch

    @NamedForward
    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> list[Tensor] | dict[str, Any]:
        """Logits of every exit, K tensors (N, C), or (N, C, H, W) where every pixel has a class.

        With `labels`, (N,) or (N, H, W), a dictionary of these `"logits"` and the joint `"loss"` of all exits, a
        scalar: what a training loop minimizes. It is the default of `eenet.train`: the loss of exit k counts k / K.
        """
        if labels is not None and "labels" in self.staged.arguments:
            return self._logits(*args, labels=labels, **kwargs)
        logits = self._logits(*args, **kwargs)
        if labels is None:
            return logits
        labels = torch.as_tensor(labels, device=logits[-1].device)
        if not torch.compiler.is_compiling():
            check_labels(self.task, logits[-1], labels)
        return {"loss": joint_loss(self.task, logits, labels), "logits": logits}

    def _logits(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        if torch.compiler.is_compiling():
            return self._logits_of_exits(*args, **kwargs)
        with saying_precisions(self):
            return self._logits_of_exits(*args, **kwargs)

    def _logits_of_exits(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        steps = self.staged.walk(self.staged.flatten_inputs(*args, **kwargs))
        logits = [head(next(steps).feature) for head in self.heads]
        return [*logits, self.final_logits(next(steps).outputs)]

    def final_logits(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The logits (N, C) in the tensors that the last stage gives."""
        return logits_in(self.staged.unflatten_output(outputs), self.num_classes)

    def keep_exits(self, exits: Sequence[int]) -> MultiExitModel:
        """The model with these exits only, in the order of the network; it shares its weights and heads with this one.

        The network ends at the last exit that is kept. In a cascade a member ends at the last of its own exits that is
        kept, so that what comes after it there does not run before the next member, and a member without any is left
        out. Exits count from 0 again: take `records.keep_exits`, measure the costs again and fit a scheduler to both.

        Parameters
        ----------
        exits
            The numbers of at least two exits, from 0: such as those that are on in a scheduler's policy, and the last.

        Returns
        -------
        MultiExitModel
            The model with fewer exits, in the mode of this one.

        Raises
        ------
        InvalidInputError
            For numbers that are not those of exits, and for stages written by hand.

        Examples
        --------
        >>> import torch, eenet
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> model = eenet.attach(network, ["0", "1"], example=torch.randn(2, 4))
        >>> model.keep_exits([1, 2]).exit_names, model.keep_exits([0, 1]).exit_names
        (('1', 'output'), ('network.0', 'output'))
        """
        chosen = kept_numbers(exits, self.num_exits, fewest=2, hint=_ONE_EXIT)
        if not self.staged.traced:
            raise InvalidInputError(
                "the stages of this model were written by hand, and cannot be joined or left out; give fewer of them "
                "to StagedModel.from_stages"
            )
        stages = self.staged.inference_stages
        dims = [stage.outputs[stage.feature_index or 0].batch_dim or 0 for stage in stages]
        parts = kept(
            self.backbone, Exits((*self.staged.at, "output"), list(self.heads), dims), chosen, self.staged.arguments
        )
        args, kwargs = self.staged.example
        return attach(
            parts.network,
            parts.exits,
            self.num_classes,
            kwargs if kwargs and not args else args,
            heads=parts.heads,
            dynamic=self.staged.dynamic,
            source=self.source if parts.network is self.backbone else None,
            task=self.task,
        )

    def save_pretrained(self, folder: str | Path, *, backbone: bool | Backbone = True) -> None:
        """Write the model to a folder of JSON and safetensors files, nothing that runs code.

        The network must be one that can be built again from a name: made by `build_network`, given `source` in
        `attach`, or a Hugging Face model. The example that the model was cut with is stored too, two samples of it.

        Parameters
        ----------
        folder
            A new folder, or one that holds a saved model, which is replaced. It appears whole or not at all.
        backbone
            True writes everything. Otherwise the file is small, and whoever loads it gives the network: False writes
            the exit heads alone, for a network that was not changed. The network as it was before it was fine-tuned
            also writes what has changed since: a module, "timm:NAME", "package:NAME" of an installed package, a folder
            or a .safetensors file of its weights.

        Raises
        ------
        InvalidInputError
            Where the model cannot be described, or the folder cannot be written.
        """
        write_model(folder, self, backbone)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        allow: Iterable[str] = (),
        heads: Sequence[nn.Module] | None = None,
        backbone: Backbone | None = None,
    ) -> MultiExitModel:
        """The model that `save_pretrained` wrote, in inference mode.

        A network of torchvision, timm, Hugging Face or eenet is built by its name.

        Parameters
        ----------
        folder
            The folder of the model, or the name of one that ships, such as "digits".
        allow
            The import paths, such as "mypackage.networks:make", that may be called to build any other network.
        heads
            New heads of the same kind, where those of the model were the caller's own; their weights are loaded.
        backbone
            The network with its weights, for a model that was saved without it: as for `save_pretrained`. A module
            becomes part of the model; a copy of it, where the file has tensors that were fine-tuned, or another dtype.

        Returns
        -------
        MultiExitModel
            The model on the CPU, with the dtype it was saved in.

        Raises
        ------
        FileFormatError
            Where the folder is damaged, or its weights are of another architecture; the message lists the first names
            that differ.
        InvalidInputError
            Where something has to be allowed or given, the backbone has other weights, or there is no such model.
        """
        saved = read_model(folder, allow=list(allow), heads=heads, backbone=backbone)
        args, kwargs = saved.example
        try:
            model = attach(
                saved.network,
                saved.exits,
                saved.num_classes,
                kwargs if kwargs and not args else args,
                heads=saved.heads,
                dynamic=saved.dynamic,
                source=saved.source if saved.source.name else None,
                task=saved.task,
            )
        except CutError as error:
            raise FileFormatError(
                f"{str(saved.root)!r} was saved with exits at {saved.exits}, but the network that "
                f"{saved.source.name!r} gives here cannot be cut there ({error}); install the version of the library "
                "that it was saved with"
            ) from error
        load_weights(model, saved.root / WEIGHTS, rename=_name_in_model, optional=saved.given)
        require_same_answers(model, saved.answers)
        return model.eval()


def attach(
    backbone: nn.Module,
    exits: Sequence[str] | str | None = None,
    num_classes: int | None = None,
    example: Example | None = None,
    *,
    heads: Sequence[nn.Module] | None = None,
    dynamic: Dynamic | None = None,
    source: str | Source | None = None,
    task: Task | None = None,
) -> MultiExitModel:
    """Give a network exits at the ends of the named modules; the network's weights are shared, not copied.

    Parameters
    ----------
    backbone
        The network. One that was cut already, or whose stages were written by hand (`StagedModel.from_stages`), needs
        neither `exits` nor `example`.
    exits
        Names of modules, or "auto:3" for three exits in all, the network's own included: the early ones are spread
        evenly over the measured time of the network, where few values cross the boundary ("auto:3:flops": over its
        counted FLOPs), and those whose default heads cost too much to pay are left out, with a warning. "auto" chooses
        the number too, at most four. `model.placement` says what was placed where.
    num_classes
        C, the classes; read off the network's output where it is not given.
    example
        An input the network takes: a tensor, a tuple of arguments or a mapping of keyword arguments, with the batch on
        dimension 0. The stages are compared with the network at its batch size too, so a few samples are enough.
    heads
        One module for each early exit in place of the default heads: feature in, with the batch on dimension 0, and
        logits (N, C) out. A default head fits the feature: a vector (N, D), tokens (N, T, D), channels over time
        (N, D, T), a map (N, D, H, W) or (N, H, W, D), and a map for a network that gives every pixel a class. Which
        dimension is which, and which token has seen the whole input, is observed on the example. A head of yours that
        works in place on the feature, as `nn.ReLU(inplace=True)` does, gets a copy of it, by a hook.
    dynamic
        Further dimensions of the inputs whose size may change, by name, such as `{1: "sequence"}`; where inputs differ,
        for each by its name: `{"signal": {2: "time"}, "mask": {1: "time"}}`.
    source
        How the network can be built again, such as "torchvision:resnet18", where it does not say so itself.
    task
        What the logits mean, by default `eenet.tasks.Classification()`, or `Segmentation()` for a class per pixel.

    Returns
    -------
    MultiExitModel
        The model with K exits, in the mode of the network.

    Raises
    ------
    CutError
        Where the network cannot be cut there.
    InvalidInputError
        Where outputs, features or heads do not fit; the message names the module.

    Examples
    --------
    >>> import torch, eenet
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> model = eenet.attach(network, exits=["1"], example=torch.randn(2, 4))
    >>> model.exit_names
    ('1', 'output')
    """
    classes: Any = num_classes
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, Integral)):
        raise InvalidInputError(
            f"num_classes is {kind_of(num_classes)}, expected a whole number; the order is attach(network, "
            "exits, num_classes, example): name what follows where one is left out, as in example=x"
        )
    if num_classes is not None and num_classes < 2:
        raise InvalidInputError(f"num_classes is {num_classes}, expected at least 2")
    sizes: Any = dynamic
    if sizes is not None and not isinstance(sizes, Mapping):
        raise InvalidInputError(f"dynamic is {dynamic!r}, expected a mapping of dimensions to names: {{1: 'sequence'}}")
    if task is not None and not callable(getattr(task, "evidence", None)):
        raise InvalidInputError(f"task is {task!r}, expected one of eenet.tasks, such as eenet.tasks.Classification()")
    if isinstance(backbone, MultiExitModel):
        raise InvalidInputError(
            f"the network is a MultiExitModel: it has exits already, at {list(backbone.staged.at)}; to place others, "
            "attach them to the network it was made from, `model.backbone`"
        )
    with by_itself("cutting the network at its exits and checking the cuts"):
        places = _places(backbone, exits, example, dynamic)
        staged = _staged(backbone, exits if places is None else [place.name for place in places], example, dynamic)
    with inferring(staged):
        features, outputs = staged.take_run()
        logits = logits_in(staged.unflatten_output(outputs), num_classes)
    last = staged.inference_stages[-1].outputs
    answers = next((live for live, t in zip(last, outputs, strict=True) if t is logits), None)
    if answers is not None and answers.batch_dim != 0:
        raise InvalidInputError(
            f"the network gives logits of shape ({', '.join(map(str, answers.shape))}), expected (batch, "
            f"{', '.join(map(str, logits.shape[1:]))}): it drops, repeats or mixes samples; give one that answers each "
            "sample by itself"
        )
    num_classes = logits.shape[1]
    dense = logits.ndim == 4
    if heads is not None:
        if not isinstance(heads, (list, tuple, nn.ModuleList)):
            raise InvalidInputError(f"heads is {kind_of(heads)}, expected a list of one module for each exit")
        for name, head in zip(staged.at, heads, strict=False):
            if not isinstance(head, nn.Module):
                raise InvalidInputError(f"the head at {name!r} is {kind_of(head)}, expected a torch.nn.Module")
    if heads is not None and len(heads) != len(features):
        raise InvalidInputError(f"{len(heads)} heads for {len(features)} exits; give one head for each name in exits")
    measured = places is not None and heads is None and by_time(str(exits))
    named = places is None and heads is None and not isinstance(backbone, StagedModel)
    if heads is None:
        size = (logits.shape[2], logits.shape[3]) if dense else None
        heads = default_heads(staged, features, num_classes, dense=size)
    reference = next((p for p in staged.parameters() if p.is_floating_point()), torch.empty(0))
    known_source = Source.parse(source) if isinstance(source, str) else source or Source.of(staged.backbone)
    if known_source is not None:
        remember(staged.backbone, known_source)  # for `keep_exits` and cascades, which make other networks of it
    heads = [head.to(reference.device, reference.dtype) for head in heads]
    if task is not None and isinstance(task, Segmentation) != dense:
        raise InvalidInputError(
            f"the task is {task.name}, but the network gives logits of shape {tuple(logits.shape)}; leave task out"
        )
    task = task or (Segmentation() if dense else Classification())
    model = MultiExitModel(staged, heads, num_classes, source=known_source, task=task)
    model.training = staged.training
    model.heads.train(staged.training)
    for name, head, feature in zip(staged.at, heads, features, strict=True):
        require_head(name, head, feature, logits)
    warn_of_padding(staged, heads, features, num_classes)
    if named:
        warn_of_unseen(staged)
    if places is not None and measured:
        placement = paying(heads, features, places)
        if placement.dropped:
            names = [place.name for place in placement.kept]
            model = attach(backbone, names, num_classes, example, dynamic=dynamic, source=source, task=task)
        model.placement = placement
    return model


@contextmanager
def saying_precisions(model: MultiExitModel) -> Iterator[None]:
    """Say where something fails because only a part of the model was converted to another dtype.

    Not before it fails: a head may convert its feature itself, and a network what goes from one module to the next.
    """
    try:
        yield
    except (RuntimeError, InvalidInputError) as error:
        if isinstance(error, InvalidInputError) and " dtype " not in str(error):
            raise
        several = several_precisions(model.backbone, error)
        if several:
            raise InvalidInputError(f"the network fails: {error}; {several}") from error
        of_network = dtype_of(model.backbone)
        for name, head in zip(model.exit_names, model.heads, strict=False):
            of_head = dtype_of(head)
            if of_network is not None and of_head is not None and of_head != of_network:
                raise InvalidInputError(
                    f"the network is {of_network} and the head at {name!r} is {of_head}: one was converted without the "
                    f"other. Convert the model, which has both: model.to({of_network}) ({error})"
                ) from error
        raise


def require_exits(model: Any) -> MultiExitModel:
    """The model, if it has exits; raises InvalidInputError for anything else, such as a plain network."""
    if isinstance(model, MultiExitModel):
        return model
    raise InvalidInputError(
        f"model is {kind_of(model)}, expected a MultiExitModel; give a network exits with eenet.attach, or "
        "join networks without exits with eenet.cascade"
    )


def _places(
    backbone: nn.Module, exits: Sequence[str] | str | None, example: Example | None, dynamic: Dynamic | None
) -> list[SplitPoint] | None:
    """Where the exits go, if that is to be found out; None where they are named."""
    if isinstance(backbone, StagedModel) or example is None:
        return None
    if not isinstance(exits, str) or not exits.startswith("auto"):
        return None
    return place_exits(backbone, exits, example, dynamic=dynamic)


def _staged(
    backbone: nn.Module, exits: Sequence[str] | str | None, example: Example | None, dynamic: Dynamic | None
) -> StagedModel:
    if isinstance(backbone, StagedModel):
        if exits is not None and list(exits) != list(backbone.at):
            raise InvalidInputError(
                f"exits is {exits!r}, but the network is cut at {list(backbone.at)} already; leave exits out, or cut "
                "the network again"
            )
        if not backbone.at:
            raise InvalidInputError("the network has one stage only, so there is no place for an early exit; cut it")
        return backbone
    if example is None:
        raise InvalidInputError("example is None, expected an input that the network takes")
    if isinstance(exits, str) or not exits:
        raise InvalidInputError(
            f"exits is {exits!r}, expected a list of module names such as ['layer1', 'layer2'], or 'auto:3'"
        )
    return cut_for_heads(backbone, list(exits), example, dynamic=dynamic)


def _name_in_model(name: str) -> str:
    return f"staged.{name}" if name.startswith("backbone.") else name
