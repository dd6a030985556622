"""What is compared: each system as one function from a batch to logits, and what is known of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet._timing import waiting_for
from eenet.benchmarking._onnx_file import OnnxFile
from eenet.benchmarking._samples import Array, Inputs
from eenet.costs import Budget
from eenet.errors import CutError, FallbackWarning, InfeasibleBudgetError, InfeasibleError, InvalidInputError, kind_of
from eenet.runtime import AdaptiveOutput, CallCascade, run_arrays
from eenet.scheduler import Scheduler

if TYPE_CHECKING:
    from eenet.bundle import LoadedBundle

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""

PLAIN = "plain network"
_KINDS = (
    "a torch module, an AdaptiveModel, (model, scheduler), (model, scheduler, budgets), (model, 0) for exit 0 alone, a "
    "CallCascade, a bundle, (bundle, budgets), (bundle, 0), "
    "the folder of a bundle, an .onnx file, or a function from inputs to logits"
)
# What a network raises for inputs that do not fit is not one family; the caller's code runs in it.
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def _unchanged(inputs: Inputs) -> Inputs:
    return inputs


def _unknown(inputs: Inputs) -> str | None:
    """Of a network of which no more is known than how it is called."""


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    `prepare` brings a batch into the form that `call` takes, before the clock runs: on the device, in the dtype.
    `exits` is K, or None for a system without exits; `module` the torch module that has to be in inference mode;
    `content` says what the plain graph of a bundle is and how it runs: equal ones are one row. `failures` are what a
    call raises for inputs that do not fit, and `not_taken` says of prepared ones whether their sizes are the reason.
    `fast` is the AdaptiveModel whose stages were optimized, and `note` what a reader should know.
    """

    name: str
    call: Callable[..., Any]
    prepare: Callable[[Inputs], Inputs] = _unchanged
    budget: str | None = None
    exits: int | None = None
    scheduler: Scheduler | None = None
    task: Any = None
    module: Any = None
    device: Any = "cpu"
    weight_bytes: int | None = None
    untrained: bool = False
    origin: Any = None
    content: tuple[Any, ...] | None = None
    failures: tuple[type[Exception], ...] = _FAILURES
    not_taken: Callable[[Inputs], str | None] = _unknown
    fast: Any = None
    note: str = ""

    @property
    def title(self) -> str:
        """The name with the budget."""
        return self.name if self.budget is None else f"{self.name} {self.budget}"

    @property
    def wait(self) -> Callable[[], Any] | None:
        """What waits for the device; None for the CPU."""
        return None if self.device == "cpu" else waiting_for(self.device)

    def answer(self, inputs: Inputs) -> Any:
        """The answers to prepared inputs."""
        return self.call(*inputs[0], **inputs[1])


def systems_of(
    given: Mapping[str, Any], *, tensors: bool, threads: int | None, untrained: Collection[str]
) -> list[System]:
    """The systems of a mapping, one for each budget, the reference first.

    Where the first has exits, its plain network is the reference, and is added or put first. A bundle brings the plain
    network that it carries, in fp32 and where it has that in int8, and is also run with its exits off. Where stages
    were optimized, the plain network is optimized alike, and is the reference in place of the plain network as it is.
    """
    if not isinstance(given, Mapping) or not given:
        raise InvalidInputError(f"systems are {given!r}, expected a mapping of at least one: {{'plain': network, ...}}")
    unknown = set(untrained) - set(given)
    if unknown:
        raise InvalidInputError(f"untrained names {sorted(unknown)[0]!r}, which is no system; there are {list(given)}")
    found: list[System] = []
    for name, value in given.items():
        made = _expanded(str(name), _loaded(str(name), value, threads), tensors)
        if made[0].module is None and made[0].origin is not None:
            # What its runtime gains must not be taken for a gain of early exit.
            graphs = _plain_graphs(made[0])
            for graph in [*graphs]:  # bundles of one network carry the same graph, and may run it alike
                same = next((n for n, one in enumerate(found) if one.content and one.content == graph.content), None)
                if same is not None:
                    found[same] = replace(found[same], name=_of_both(found[same].name, graph.name))
                    graphs.remove(graph)
            made = [*graphs, *(one for one in (_plain(made[0]),) if one is not None), *made]
        found += [replace(one, untrained=name in untrained) for one in made]
    first = _plain(found[0])
    if first is not None:
        given_too = next((n for n, one in enumerate(found) if one.exits is None and one.module is first.module), None)
        found.insert(0, first if given_too is None or first.module is None else found.pop(given_too))
    found = _with_plain_optimized(found)
    titles = [system.title for system in found]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"two systems are called {twice!r}; give each a name and a budget of its own")
    return found


def _with_plain_optimized(systems: list[System]) -> list[System]:
    """With the plain network as a row, made faster in the same way, for each system whose stages were optimized."""
    found, done = list(systems), set()
    for system in systems:
        if system.fast is None:
            continue
        key = (id(system.fast.model), system.fast._optimize)
        if key in done:
            continue
        done.add(key)
        from eenet.runtime._adaptive import optimized_plain

        place = found.index(system)
        network = system.fast.model.plain
        try:
            call = optimized_plain(system.fast)
        except (CutError, *_FAILURES) as error:  # the user's network runs in it
            reason = (str(error) or type(error).__name__).splitlines()[0]
            found[place] = replace(
                system,
                note=f"{system.name} runs stages that were optimized. The plain network could not be optimized as a "
                f"whole ({reason}), so a part of the difference is that of the optimization.",
            )
            continue
        if call is None:
            continue
        first = found[0]
        alike = replace(
            system, call=call, budget=None, exits=None, scheduler=None, fast=None, origin=None,
            weight_bytes=_bytes_of(network),
        )  # fmt: skip
        if first.exits is None and first.module is network:
            note = f"{system.name} runs stages that were optimized, so the plain network optimized alike is the first."
            found.insert(0, replace(alike, name=f"{first.name}, optimized", note=note))
        else:
            found.insert(place, replace(alike, name=f"{system.name}, plain optimized"))
    return found


def _loaded(name: str, value: Any, threads: int | None) -> Any:
    """What a path names; anything else as it is. Of a tuple the first entry may be a path."""
    if isinstance(value, tuple) and value and isinstance(value[0], (str, Path)):
        return (_loaded(name, value[0], threads), *value[1:])
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value)
    if path.suffix == ".onnx" and path.is_file():
        return OnnxFile(path, threads)
    if path.is_dir() and (path / "manifest.json").is_file():
        from eenet.bundle import load

        return load(path, threads=threads)
    there = "holds no bundle" if path.is_dir() else "is no .onnx file" if path.exists() else "does not exist"
    raise InvalidInputError(
        f"system {name!r}: {str(path)!r} {there}; a path names the folder of a bundle or an .onnx file. Load a saved "
        "model with MultiExitModel.from_pretrained, a scheduler with load_scheduler"
    )


def _expanded(name: str, value: Any, tensors: bool) -> list[System]:
    """The systems of one entry: several where a list of budgets is given."""
    from eenet.bundle import LoadedBundle

    one, rest = (value[0], value[1:]) if isinstance(value, tuple) and value else (value, ())
    if isinstance(one, OnnxFile):
        _require(not rest, name, value)
        return [System(name, one, weight_bytes=one.size)]
    if isinstance(one, CallCascade):
        _require(not rest, name, value)
        scheduler = one.scheduler if isinstance(one.scheduler, Scheduler) else None
        return [System(name, one, exits=one.scheduler.policy.num_exits, scheduler=scheduler)]
    if isinstance(one, LoadedBundle) and _is_exit(rest):
        return [_of_bundle_exit(name, one, _exit_of(rest[0], one.backend.num_exits, name))]
    if isinstance(one, LoadedBundle):
        _require(len(rest) <= 1, name, value)
        budgets = _budgets(name, rest[0]) if rest else None
        with _naming(name):
            bundles = {None: one} if budgets is None else {_text(budget): one.at(budget) for budget in budgets}
        return [_of_bundle(name, bundle, budget) for budget, bundle in bundles.items()]
    if "torch" in sys.modules:
        from torch import nn

        from eenet.models import MultiExitModel
        from eenet.runtime import AdaptiveModel

        if isinstance(one, (MultiExitModel, AdaptiveModel)) and _is_exit(rest):
            return [_of_exit(name, one, rest[0])]
        if isinstance(one, MultiExitModel):
            _require(1 <= len(rest) <= 2 and isinstance(rest[0], Scheduler), name, value, _MODEL)
            policies: dict[str | None, Scheduler] = {None: rest[0]}
            if len(rest) == 2:
                with warnings.catch_warnings(), _naming(name):
                    warnings.simplefilter("ignore", FallbackWarning)  # a note says it
                    policies = {_text(budget): rest[0].fitted_at(budget) for budget in _budgets(name, rest[1])}
            return [_of_adaptive(name, AdaptiveModel(one, policy), budget) for budget, policy in policies.items()]
        if isinstance(one, AdaptiveModel):
            _require(not rest, name, value)
            return [_of_adaptive(name, one, None)]
        if isinstance(one, nn.Module):
            _require(not rest, name, value)
            device, prepare = _onto(one)
            return [
                System(name, one, prepare, module=one, device=device, weight_bytes=_bytes_of(one), origin=one),
            ]
    _require(callable(one) and not rest, name, value)
    return [System(name, one, _as_tensors if tensors else _unchanged)]


_MODEL = (
    "a multi-exit model needs a scheduler: give (model, scheduler), (model, 0) for exit 0 alone, or model.backbone for "
    "the network without exits"
)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What cannot be met is refused with the name of the system that it is of."""
    try:
        yield
    except InfeasibleBudgetError as error:
        raise InfeasibleBudgetError(f"system {name!r}: {error}", smallest=error.smallest) from error
    except InfeasibleError as error:
        raise InfeasibleError(f"system {name!r}: {error}") from error


def _require(fits: bool, name: str, value: Any, hint: str = "") -> None:
    if not fits:
        raise InvalidInputError(f"system {name!r} is {_short(value)}, expected {_KINDS}{'; ' if hint else ''}{hint}")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(one).__name__ for one in value)})"
    return kind_of(value)


def _budgets(name: str, budgets: Any) -> Sequence[Budget]:
    if not isinstance(budgets, (list, tuple)) or not budgets:
        raise InvalidInputError(
            f"the budgets of system {name!r} are {budgets!r}, expected a list such as ['40%', '60%']"
        )
    return budgets


def _text(budget: Budget) -> str:
    return budget if isinstance(budget, str) else f"{budget:g}"


def _is_exit(rest: tuple[Any, ...]) -> bool:
    """Whether what follows a model is the number of an exit."""
    return len(rest) == 1 and isinstance(rest[0], (int, np.integer)) and not isinstance(rest[0], bool)


def _exit_of(number: int, count: int, name: str) -> int:
    if not 0 <= number < count:
        raise InvalidInputError(
            f"system {name!r} is exit {number} alone, expected the number of an exit, 0 to {count - 1}"
        )
    return int(number)


def _of_exit(name: str, given: Any, number: int) -> System:
    """One exit of a model for all samples: no other head runs, and nothing decides."""
    from eenet.runtime import AdaptiveModel
    from eenet.runtime._adaptive import one_exit

    fast = given if isinstance(given, AdaptiveModel) else None
    model = given if fast is None else fast.model
    k = _exit_of(number, model.num_exits, name)
    call = one_exit(model, None if fast is None else fast.optimized, k)
    device, moved = _onto(model)
    return System(
        name, call, _by_position(model, moved), module=model, device=device, task=model.task,
        weight_bytes=_bytes_up_to(model, k), not_taken=_refused(model, device),
        fast=fast if fast is not None and fast.optimized is not None else None,
    )  # fmt: skip


def _of_bundle_exit(name: str, bundle: LoadedBundle, number: int) -> System:
    """One exit of a bundle for all samples."""
    backend = bundle.backend

    def call(inputs: Mapping[str, Array]) -> Any:
        live, logits = backend.enter(inputs), None
        for k in range(number + 1):
            live, logits = backend.run(k, live, observe=k == number)
        return logits

    if hasattr(backend, "model"):  # of weights, which are one file
        size = _bytes_up_to(backend.model, number)
    else:
        stages = bundle.manifest.stages[: number + 1]
        run = {*(stage.graph for stage in stages), stages[-1].head}
        size = sum(about["bytes"] for file, about in bundle.manifest.data["files"].items() if file in run)
    return replace(_of_bundle(name, bundle, None), call=call, exits=None, scheduler=None, weight_bytes=size)


def _of_bundle(name: str, bundle: LoadedBundle, budget: str | None) -> System:
    from eenet.bundle._measure import failures_of

    data = bundle.manifest.data
    others = {data.get(key) for key in ("scheduler", "records", "plain", "plain_int8")}
    graphs = (
        size["bytes"]
        for file, size in data["files"].items()
        if file.endswith((".onnx", ".safetensors", ".data")) and file not in others
    )
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in bundle.inputs}

    def prepare(inputs: Inputs) -> Inputs:
        args, named = inputs
        if len(args) == len(dtypes):
            named = dict(zip(dtypes, args, strict=True))
        elif args:
            raise InvalidInputError(f"the bundle takes the inputs {list(dtypes)}, data holds {len(args)}")
        return ({key: _as(array, dtypes.get(key)) for key, array in named.items()},), {}

    return System(
        name, bundle, prepare, budget, bundle.backend.num_exits, bundle.scheduler, bundle.task,
        weight_bytes=sum(graphs), origin=bundle, failures=(*_FAILURES, *failures_of(bundle.manifest.backend)),
        not_taken=lambda inputs: bundle._not_taken(inputs[0][0]),
    )  # fmt: skip


def _of_adaptive(name: str, adaptive: Any, budget: str | None) -> System:
    model, scheduler = adaptive.model, adaptive.scheduler
    device, moved = _onto(model)
    return System(
        name, adaptive, _by_position(model, moved), budget, model.num_exits,
        scheduler if isinstance(scheduler, Scheduler) else None, model.task, model, device, _bytes_of(model),
        origin=model, not_taken=_refused(model, device), fast=adaptive if adaptive.optimized is not None else None,
    )  # fmt: skip


def _by_position(model: Any, moved: Callable[[Inputs], Inputs]) -> Callable[[Inputs], Inputs]:
    """What prepares inputs for a model: by name they may be taken by position, as the model was cut."""
    names = [one.name for one in model.staged.inference_stages[0].inputs]

    def prepare(inputs: Inputs) -> Inputs:
        args, named = moved(inputs)
        if set(named) == set(names):
            args, named = model.staged.call_of(tuple(named[name] for name in names))
        return args, named

    return prepare


def _refused(model: Any, device: Any) -> Callable[[Inputs], str | None]:
    """What says of prepared inputs why a model on the CPU does not take their sizes."""
    from eenet.models._sizes import refusal

    if device != "cpu":
        return _unknown

    def not_taken(inputs: Inputs) -> str | None:
        return refusal(model, model.staged.flatten_inputs(*inputs[0], **inputs[1]))

    return not_taken


def _plain(system: System) -> System | None:
    """The same network without exits, where that is known."""
    origin = system.origin
    if system.exits is None or origin is None:
        return None
    if system.module is not None:
        network = origin.plain
        return replace(
            system, name=PLAIN, call=network, budget=None, exits=None, scheduler=None, module=network,
            weight_bytes=_bytes_of(network), fast=None,
        )  # fmt: skip
    from eenet.scheduler.methods._plain import MaxProbabilityScore

    policy = origin.scheduler.policy
    off = replace(policy, score=MaxProbabilityScore(), enabled=np.zeros_like(policy.enabled), abstains_below=None)

    def call(inputs: Mapping[str, Array]) -> Any:
        answers = run_arrays(origin.backend, off, origin.task, inputs)
        assert answers is not None, "a batch has samples"
        return answers.logits

    return replace(system, name=f"{system.name}, exits off", call=call, budget=None, exits=None, scheduler=None)


def _plain_graphs(system: System) -> list[System]:
    """The plain network that a bundle carries, as one graph in fp32, and in int8 where it has that.

    Its stages, one after another, take longer than that graph, so that they alone would flatter early exit.
    """
    bundle = system.origin
    data = getattr(getattr(bundle, "manifest", None), "data", {})
    made = []
    for key, precision in (("plain", "fp32"), ("plain_int8", "int8")):
        if not data.get(key):
            continue
        content = bundle.manifest.read(data[key])
        backend = bundle.backend
        call = _from_enter(backend, backend.whole(content))
        runs = (sha256(content).hexdigest(), backend.threads, backend.providers)
        name = f"{system.name}, plain {precision}"
        alike = replace(system, name=name, call=call, weight_bytes=len(content), content=runs)
        made.append(replace(alike, budget=None, exits=None, scheduler=None))
    return made


def _of_both(known: str, name: str) -> str:
    """The name of a plain network that two bundles carry: "a and b, plain fp32"."""
    of, _, what = known.rpartition(", ")
    return f"{of} and {name.rpartition(', ')[0]}, {what}"


def _from_enter(backend: Any, graph: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(inputs: Mapping[str, Array]) -> Any:
        return graph(backend.enter(inputs))[0]

    return call


def _onto(module: Any) -> tuple[Any, Callable[[Inputs], Inputs]]:
    """The device of a torch module, and what brings inputs there, in its floating-point type."""
    import torch

    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    device, dtype = parameter.device, parameter.dtype

    def moved(array: Array) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    def prepare(inputs: Inputs) -> Inputs:
        return tuple(map(moved, inputs[0])), {name: moved(array) for name, array in inputs[1].items()}

    return "cpu" if device.type == "cpu" else device, prepare


def _as_tensors(inputs: Inputs) -> Inputs:
    """For functions, where the data came as tensors."""
    import torch

    args, named = inputs
    made = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in args)
    return made, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in named.items()}


def _bytes_of(*modules: Any) -> int:
    """Of the parameters and buffers, each counted once."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _bytes_up_to(model: Any, number: int) -> int:
    """Of what runs for one exit alone: the stages up to it and its head."""
    stages = [stage.module for stage in model.staged.inference_stages[: number + 1]]
    return _bytes_of(*stages, *model.heads[number : number + 1])


def _as(array: Array, dtype: np.dtype[Any] | None) -> Array:
    """Floating-point numbers in the type of the input; what is of another kind is left to be refused."""
    fits = dtype is None or array.dtype == dtype or (array.dtype.kind, dtype.kind) != ("f", "f")
    return array if fits else array.astype(dtype)


def logits_of(output: Any) -> tuple[Array, Array | None, Array | None]:
    """The logits of what a system gave, the exits and which samples were handed back, where it says so."""
    exits = handed = None
    if isinstance(output, AdaptiveOutput) or (hasattr(output, "exits") and hasattr(output, "logits")):
        exits, handed, output = output.exits, getattr(output, "abstained", None), output.logits
    if not isinstance(output, np.ndarray) and "torch" in sys.modules:
        from eenet.models import logits_in

        output = logits_in(output).detach().float().cpu().numpy()
    if not isinstance(output, np.ndarray) or output.ndim not in (2, 4) or output.dtype.kind != "f":
        shown = f"{output.dtype} of shape {output.shape}" if isinstance(output, np.ndarray) else kind_of(output)
        raise InvalidInputError(f"it gives {shown}, expected logits (samples, classes), or (samples, classes, H, W)")
    return output, *(None if one is None else np.asarray(one) for one in (exits, handed))  # type: ignore[return-value]
