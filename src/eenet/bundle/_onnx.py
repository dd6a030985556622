"""The stages of a bundle in ONNX Runtime."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.bundle._manifest import Manifest
from eenet.errors import FileFormatError, InvalidInputError
from eenet.runtime._backend import Array, Boundaries, Ints, Live


def usual_threads() -> int | None:
    """The threads of a stage where none are given: OMP_NUM_THREADS, as for PyTorch; None for one for each core.

    ONNX Runtime itself does not read that variable, which machines and containers are limited with.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


class OnnxBackend:
    """Runs a bundle's stages in ONNX Runtime: one session for each stage, and one for each exit head.

    A head is a graph of its own, so that where an exit is not observed its head does not run. `stages` are those to
    load, by default all; only they can be run. `threads` and `providers` are those that it runs with. See
    `StageBackend`.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        stages: Collection[int] | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise InvalidInputError(
                f"threads is {threads}, expected 1 or more, or None for OMP_NUM_THREADS or one for each core"
            )
        runtime = require("onnxruntime", "onnx")
        chosen = list(providers or ("CPUExecutionProvider",))
        unknown = [name for name in chosen if name not in runtime.get_available_providers()]
        if unknown:
            raise InvalidInputError(
                f"this onnxruntime has no provider {unknown[0]!r}; it has {runtime.get_available_providers()}"
            )
        self._boundaries = Boundaries([stage.inputs for stage in manifest.stages])
        self._num_classes = manifest.num_classes
        numbered = [(k, stage) for k, stage in enumerate(manifest.stages) if stages is None or k in stages]
        self._runtime, self.threads, self.providers = runtime, threads, tuple(chosen)

        precision = manifest.precision

        def graph_of(name: str | None, part: str, marks: Marks) -> Session:
            assert name is not None, "the manifest of an ONNX bundle names a graph for each stage"
            content, file = manifest.read(name), str(manifest.root / name)
            return self._graph(content, file, marks if precision[part] == "int8" else None)

        dims = [[spec.batch_dim for spec in stage.inputs] for stage in manifest.stages]
        made = [*dims[1:], []]  # and after these a feature or, of the last stage, the logits
        self._graphs = {
            k: graph_of(stage.graph, f"stages.{k}", Marks(dims[k], [*made[k], 0], entering=k == 0))
            for k, stage in numbered
        }
        self._features = [stage.passed_feature for stage in manifest.stages]
        self._passed = [len(stage.inputs) for stage in manifest.stages[1:]]
        last = len(self._passed)
        self._heads = {k: graph_of(stage.head, f"heads.{k}", Marks([0], [0])) for k, stage in numbered if k < last}
        for k, graph in self._graphs.items():
            outputs = 1 if k == last else self._passed[k] + (self._features[k] is None)
            graph.require(len(manifest.stages[k].inputs), outputs)
        for head in self._heads.values():
            head.require(1, 1)

    def _graph(self, content: bytes, file: str, marks: Marks | None = None) -> Session:
        return Session(self._runtime, content, file, self.threads, self.providers, marks=marks)

    def whole(self, content: bytes) -> Callable[[Live], Any]:
        """Runs a network that is one graph, with the settings of the stages, on what `enter` gives."""
        return self._graph(content, "the plain network")

    @property
    def num_exits(self) -> int:
        """K, the last exit included."""
        return len(self._features)

    @property
    def num_classes(self) -> int:
        """C."""
        return self._num_classes

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError`, naming the input, where one does not fit."""
        return self._boundaries.enter(inputs)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """The live tensors before stage k + 1, and the logits of exit k; see `StageBackend.run`."""
        if k not in self._graphs:
            raise InvalidInputError(f"stage {k} was not loaded, only {sorted(self._graphs)}; load the bundle with it")
        outputs = self._graphs[k](live)
        if k == len(self._passed):
            return (), outputs[0]
        passed = outputs[: self._passed[k]]
        if not observe:
            return tuple(passed), None
        feature = self._features[k]
        (logits,) = self._heads[k]((outputs[-1] if feature is None else passed[feature],))
        return tuple(passed), logits

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        return self._boundaries.size(k, live)

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        return self._boundaries.take(k, live, rows)

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        return self._boundaries.join(k, parts)


_WORTH_BINDING = 2**16  # numbers in the largest output

_DTYPES = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """Makes what a graph in int8 gives for inputs that are not finite NaN, as in fp32; int8 makes numbers of them.

    `inputs` and `outputs` are the dimensions along which samples lie, None for a constant; `entering` where the inputs
    are those of the network.
    """

    inputs: Sequence[int | None]
    outputs: Sequence[int | None]
    entering: bool = False

    def lost(self, arrays: Sequence[Array]) -> NDArray[np.bool_] | None:
        """Which samples (n,) have NaN or infinity in the inputs; None where none has.

        Between stages -inf does not count: masks of attention are made of it.
        """
        found: NDArray[np.bool_] | None = None
        for array, batch_dim in zip(arrays, self.inputs, strict=True):
            if batch_dim is None or array.dtype.kind != "f" or not array.size:
                continue
            # The maximum of NaN is NaN. Of all samples first, which takes less time.
            if array.max() < np.inf and not (self.entering and array.min() == -np.inf):
                continue
            others = tuple(dim for dim in range(array.ndim) if dim != batch_dim)
            lost = ~(array.max(axis=others) < np.inf)
            if self.entering:
                lost |= array.min(axis=others) == -np.inf
            found = lost if found is None else found | lost
        return found

    def marked(self, arrays: Sequence[Array], lost: NDArray[np.bool_]) -> list[Array]:
        """The outputs with NaN in those of these samples."""
        found = []
        for array, batch_dim in zip(arrays, self.outputs, strict=False):  # where a feature is passed on there is none
            if batch_dim is not None and array.dtype.kind == "f":
                array = array.copy()
                np.moveaxis(array, batch_dim, 0)[lost] = np.nan
            found.append(array)
        return found


class Session:
    """One ONNX graph, of a file whose checksum was verified; called with arrays in the order of its inputs.

    A graph in int8 has `marks`.
    """

    def __init__(
        self,
        runtime: Any,
        content: bytes,
        file: str,
        threads: int | None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        marks: Marks | None = None,
    ) -> None:
        self._file, self._marks = file, marks
        try:
            # From the bytes that were verified, not from the path: what is checked is what is run.
            self._session = opened(runtime, content, threads, providers)
        except errors_of(runtime) as error:
            raise FileFormatError(
                f"onnxruntime {runtime.__version__} cannot load {self._file!r}: {error}; use a newer onnxruntime, or "
                "export for an older one with opset=18"
            ) from error
        self.inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._quiet = quiet(runtime)
        self._shapes = _Shapes(self._session) if set(providers) == {"CPUExecutionProvider"} else None

    def require(self, inputs: int, outputs: int) -> None:
        """Raise `FileFormatError` unless the graph has this many inputs and outputs."""
        if (len(self.inputs), len(self._outputs)) != (inputs, outputs):
            raise FileFormatError(
                f"{self._file!r} has {len(self.inputs)} inputs and {len(self._outputs)} outputs, its manifest expects "
                f"{inputs} and {outputs}; export the bundle again"
            )

    def __call__(self, arrays: Sequence[Array]) -> list[Any]:
        lost = None if self._marks is None else self._marks.lost(arrays)
        found = self._run(arrays)
        return found if self._marks is None or lost is None else self._marks.marked(found, lost)

    def _run(self, arrays: Sequence[Array]) -> list[Any]:
        made = None if self._shapes is None else self._shapes.room_for(arrays)
        if made is None:
            found: list[Any] = self._session.run(
                self._outputs, dict(zip(self.inputs, arrays, strict=True)), self._quiet
            )
            return found
        # Into arrays of ours: `run` would copy what is in the session's memory, which for live tensors takes its time.
        binding = self._session.io_binding()
        for name, array in zip(self.inputs, arrays, strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, array in zip(self._outputs, made, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding, self._quiet)
        return made


class _Shapes:
    """What the outputs of a graph look like, for given inputs: their named sizes are those of the inputs."""

    def __init__(self, session: Any) -> None:
        self._inputs = [one.shape for one in session.get_inputs()]
        named = {size for shape in self._inputs for size in shape if isinstance(size, str)}
        outputs = [(one.shape, _DTYPES.get(one.type)) for one in session.get_outputs()]
        known = all(
            dtype is not None and all(isinstance(size, int) or size in named for size in shape)
            for shape, dtype in outputs
        )
        self._outputs = outputs if known else None

    def room_for(self, arrays: Sequence[Array]) -> list[Array] | None:
        """Arrays for the outputs; None where they are small, so that copying them takes no longer, or not known."""
        if self._outputs is None:
            return None
        sizes: dict[Any, int] = {}
        for shape, array in zip(self._inputs, arrays, strict=True):
            sizes.update(zip(shape, array.shape, strict=True))
        shapes = [[size if isinstance(size, int) else sizes[size] for size in shape] for shape, _ in self._outputs]
        if max(math.prod(shape) for shape in shapes) < _WORTH_BINDING:
            return None
        return [np.empty(shape, dtype) for shape, (_, dtype) in zip(shapes, self._outputs, strict=True)]


def opened(
    runtime: Any, graph: bytes | str, threads: int | None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Any:
    """A session of ONNX Runtime for a graph, of its bytes or its path; raises what is among `errors_of`."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # warnings are about how a graph could be written better
    threads = usual_threads() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads = threads
    # Graphs take turns: threads that go on spinning after one would hinder those of the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(graph, options, providers=list(providers))


def quiet(runtime: Any) -> Any:
    """Options of a run that logs nothing: errors are raised, and need not be logged too."""
    options = runtime.RunOptions()
    options.log_severity_level = 4
    return options


def errors_of(runtime: Any) -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime, which have no common base."""
    known = vars(runtime.capi.onnxruntime_pybind11_state).values()
    return tuple(one for one in known if isinstance(one, type) and issubclass(one, Exception))


@contextmanager
def errors_alone(logger: str | None = None) -> Iterator[None]:
    """Within the block a logger, by default the root logger, passes on errors alone."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def operator_sets_once(onnx: Any, graph: Any) -> None:
    """Name each operator set once, and none that is not used: ONNX Runtime's quantizers refuse a graph otherwise."""
    used = {node.domain for node in graph.graph.node} | {""}
    versions = {one.domain: one.version for one in graph.opset_import if one.domain in used}
    del graph.opset_import[:]
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, number) for domain, number in versions.items())
