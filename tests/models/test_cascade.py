"""`eenet.cascade`: several networks as one multi-exit model, through all that a multi-exit model goes through."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optional import import_or_skip
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.models import AnswerHead, InputMap, MultiExitModel

X = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


def network(width: int, classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, classes),
        ).eval()  # fmt: skip


SMALL, BIG = network(4), network(16)


class FirstRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:1]


@pytest.fixture(scope="module")
def pair() -> MultiExitModel:
    return eenet.cascade([SMALL, BIG], example=X[:2])


@pytest.fixture(scope="module")
def named() -> tuple[MultiExitModel, list[nn.Module]]:
    """A network of the paper with its exits before a plain one, both known by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = eenet.models.multi_exit("resnet20", num_classes=4)
        last = eenet.build_network("resnet20", num_classes=4)
        return eenet.cascade([first.eval(), last.eval()], example=X[:2]), [first, last]


def fitted(model: MultiExitModel, budget: str = "80% of last") -> tuple[Any, Any]:
    records = eenet.collect(model, [(X, Y)])
    costs = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1))
    return eenet.MaxProbability().fit(records, costs, budget, fallback=False), records


class TestAnswers:
    def test_each_member_s_own_answer_is_an_exit_s(self, pair: MultiExitModel) -> None:
        early, last = pair(X)
        torch.testing.assert_close(early, SMALL(X))
        torch.testing.assert_close(last, BIG(X))
        assert pair.exit_names == ("members.0", "output")
        assert pair.plain(X).equal(BIG(X))
        assert type(pair.heads[0]) is AnswerHead
        assert not pair.training

    def test_the_exits_of_a_multi_exit_member_count_one_by_one(
        self, named: tuple[MultiExitModel, list[nn.Module]]
    ) -> None:
        model, (first, last) = named
        assert model.exit_names == (
            "members.0.network.layers.0", "members.0.network.layers.1", "members.0", "output",
        )  # fmt: skip
        for got, expected in zip(model(X), [*first(X), last(X)], strict=True):
            torch.testing.assert_close(got, expected)

    def test_a_member_that_says_nan_does_not_spoil_the_next(self) -> None:
        class Broken(nn.Module):
            def forward(self, image: Tensor) -> Tensor:
                logits = SMALL(image)
                return torch.where(image[:, :1, 0, 0] > 0, logits, torch.nan)

        model = eenet.cascade([Broken(), BIG], example=X[:2])
        early, last = model(X)
        assert early.isnan().any()
        assert last.isfinite().all()
        scheduler, records = fitted(model)
        out = eenet.AdaptiveModel(model, scheduler)(X)
        np.testing.assert_array_equal(out.exits, scheduler.replay(records).exits)
        assert (out.exits[early.isnan().any(dim=1)] == 1).all()

    def test_gradients_reach_every_member(self, pair: MultiExitModel) -> None:
        model = copy.deepcopy(pair).train()
        model(X, labels=Y)["loss"].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


class TestInputs:
    def test_one_network_at_two_resolutions(self, tmp_path: Path) -> None:
        backbone = eenet.build_network("test_cascade:network", width=4).eval()
        model = eenet.cascade([backbone, backbone], example=X[:2], inputs=[{"size": (16, 16)}, None])
        early, last = model(X)
        smaller = F.interpolate(X, size=(16, 16), mode="bilinear")
        torch.testing.assert_close(early, backbone(smaller))
        torch.testing.assert_close(last, backbone(X))
        model.save_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        members: Any = again.backbone.members
        assert members[0].network is members[1].network, "its weights are there once"
        for got, expected in zip(again(X), (early, last), strict=True):
            torch.testing.assert_close(got, expected)

    def test_a_network_with_exits_at_two_resolutions(self, tmp_path: Path) -> None:
        backbone = eenet.build_network("test_cascade:network", width=4).eval()
        exits = eenet.attach(backbone, ["2"], example=X[:2]).eval()
        model = eenet.cascade([exits, exits], example=X[:2], inputs=[{"size": (16, 16)}, None])
        assert model.exit_names == ("members.0.network.2", "members.0", "members.1.network.2", "output")
        smaller = F.interpolate(X, size=(16, 16), mode="bilinear")
        early = nn.Sequential(*backbone.children())[:3]
        expected = [run(image) for image in (smaller, X) for run in (nn.Sequential(early, exits.heads[0]), backbone)]
        for got, wanted in zip(model(X), expected, strict=True):
            torch.testing.assert_close(got, wanted)
        members: Any = model.backbone.members
        for one, other in zip(members[0].network.parameters(), members[1].network.parameters(), strict=True):
            assert one is other, "the weights are shared"
        scheduler, records = fitted(model)
        np.testing.assert_array_equal(eenet.AdaptiveModel(model, scheduler)(X).exits, scheduler.replay(records).exits)
        model.save_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        for got, wanted in zip(again(X), expected, strict=True):
            torch.testing.assert_close(got, wanted)

    def test_members_that_share_their_weights_still_do_after_saving_and_conversion(self, tmp_path: Path) -> None:
        backbone = eenet.build_network("test_cascade:network", width=4)
        exits = eenet.attach(backbone, ["2"], example=X[:2])
        model = eenet.cascade([exits, exits], example=X[:2], inputs=[{"size": (16, 16)}, None]).to(torch.float64)
        model.save_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        again.to(torch.float32).train()
        count = sum(parameter.numel() for parameter in exits.parameters())
        assert sum(parameter.numel() for parameter in again.parameters()) == count
        before = copy.deepcopy(again.state_dict())
        optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
        again(X, labels=Y)["loss"].backward()
        optimizer.step()
        members: Any = again.backbone.members
        parts = [(members[0].network, members[1].network), (again.heads[0], again.heads[2])]
        for one, other in parts:
            for name, tensor in one.state_dict().items():
                torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0)
        changed = [name for name, tensor in again.state_dict().items() if not torch.equal(tensor, before[name])]
        assert "staged.backbone.members.0.network.1.running_mean" in changed
        assert any(name.startswith("heads.0.") for name in changed)

    def test_networks_of_equal_weights_stay_two(self, tmp_path: Path) -> None:
        networks = [eenet.build_network("test_cascade:network", width=4).eval() for _ in range(2)]
        model = eenet.cascade(networks, example=X[:2])
        model.save_pretrained(tmp_path / "model")
        assert "ties" not in json.loads((tmp_path / "model" / "model.json").read_text())
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        assert len(list(again.parameters())) == 2 * len(list(networks[0].parameters()))

    def test_a_cascade_saved_before_ties_were_written_is_loaded(self, tmp_path: Path) -> None:
        exits = eenet.attach(eenet.build_network("test_cascade:network", width=4).eval(), ["2"], example=X[:2])
        model = eenet.cascade([exits, exits], example=X[:2], inputs=[{"size": (16, 16)}, None])
        model.save_pretrained(tmp_path / "model")
        path = tmp_path / "model" / "model.json"
        description = json.loads(path.read_text())
        del description["ties"]
        path.write_text(json.dumps(description))
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        for got, wanted in zip(again(X), model(X), strict=True):
            torch.testing.assert_close(got, wanted)

    def test_another_normalization(self) -> None:
        mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
        model = eenet.cascade([SMALL, BIG], X[:2], inputs=[InputMap(mean=mean, std=std), {"mean": [0.5], "std": [0.5]}])
        early, last = model(X)
        shape = (1, 3, 1, 1)
        torch.testing.assert_close(
            early, SMALL((X - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape))
        )
        torch.testing.assert_close(last, BIG((X - 0.5) / 0.5))

    def test_tensors_by_name_as_of_two_tokenizers(self) -> None:
        class Words(nn.Module):
            def __init__(self, words: int) -> None:
                super().__init__()
                self.table = nn.Embedding(words, 8)
                self.out = nn.Linear(8, 4)

            def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
                words = self.table(ids)
                if mask is not None:
                    words = words * mask[:, :, None]
                logits: Tensor = self.out(words.sum(dim=1))
                return logits

        small, big = Words(10).eval(), Words(50).eval()
        given = {"small": torch.randint(10, (6, 5)), "ids": torch.randint(50, (6, 9)), "mask": torch.ones(6, 9)}
        names = [{"names": {"ids": "small"}}, {"names": {"ids": "ids", "mask": "mask"}}]
        model = eenet.cascade([small, big], {name: value[:2] for name, value in given.items()}, inputs=names)
        early, last = model(**given)
        torch.testing.assert_close(early, small(given["small"]))
        torch.testing.assert_close(last, big(given["ids"], given["mask"]))
        assert model.staged.arguments == ("small", "ids", "mask")
        assert len(model.staged.inference_stages[1].inputs) == 3, "the small one's words do not go on"
        with pytest.raises(InvalidInputError, match=r"the cascade has no input 'nowhere', .*it has \['small', 'ids', "):
            eenet.cascade([small, big], given, inputs=[{"names": {"ids": "nowhere"}}, names[1]])

    def test_a_module_of_the_caller_s_own(self) -> None:
        class Gray(nn.Module):
            def forward(self, image: Tensor) -> tuple[Tensor]:
                return (image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1),)

        model = eenet.cascade([SMALL, BIG], X[:2], inputs=[Gray(), None])
        torch.testing.assert_close(model(X)[0], SMALL(X.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)))


class TestEverythingFollows:
    def test_samples_that_have_an_answer_ask_no_further_member(self, pair: MultiExitModel) -> None:
        scheduler, records = fitted(pair, "70% of last")
        replayed = scheduler.replay(records)
        for optimize in (None, "auto"):
            out = eenet.AdaptiveModel(pair, scheduler, optimize=optimize, batch_sizes=(4,), seconds=0.01)(X)
            np.testing.assert_array_equal(out.exits, replayed.exits)
            np.testing.assert_array_equal(out.predictions, replayed.predictions)

    def test_the_plain_network_of_a_profile_is_the_last_member(self, pair: MultiExitModel) -> None:
        costs = eenet.profile(pair, X[:2], unit="flops", batch_size=2, seconds=0.01)
        assert costs.plain is not None
        assert costs[-1] == pytest.approx(costs[0] + costs.plain)

    @pytest.mark.filterwarnings("ignore:the costs at batch size")  # a test machine may be busy
    @pytest.mark.parametrize("backend", ["onnx", "torch"])
    def test_a_bundle(self, tmp_path: Path, backend: str) -> None:
        if backend == "onnx":
            for library in ("onnx", "onnxscript", "onnxruntime"):
                import_or_skip(library)
        model = eenet.cascade([SMALL, BIG], X[:2], inputs=[{"size": (15, 20), "mean": [0.5], "std": [0.5]}, None])
        if backend == "torch":
            names = {"width": 4}, {"width": 16}
            model = eenet.cascade([eenet.build_network("test_cascade:network", **one).eval() for one in names], X[:2])
        scheduler, records = fitted(model)
        out = tmp_path / "bundle"
        bundle = eenet.export(
            model, scheduler, out, example=X[:2], backend=backend, records=records, seconds=0.02, batch_sizes=(1,)
        )
        answers = bundle(X.numpy())
        np.testing.assert_array_equal(answers.exits, bundle.scheduler.replay(records).exits)
        assert bundle.scheduler.costs.plain is not None
        if backend == "onnx":
            backend_of: Any = bundle.backend
            (answer,) = backend_of.whole(bundle.manifest.read(bundle.manifest.data["plain"]))((X.numpy(),))
            np.testing.assert_allclose(answer, BIG(X).detach(), atol=1e-5)

    def test_it_is_saved_whole_and_loaded(self, named: tuple[MultiExitModel, list[nn.Module]], tmp_path: Path) -> None:
        model = named[0]
        model.save_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model")
        assert again.exit_names == model.exit_names
        assert again.source == model.source
        for got, expected in zip(again(X), model(X), strict=True):
            torch.testing.assert_close(got, expected)

    def test_what_cannot_be_saved_is_named(self, tmp_path: Path) -> None:
        known = eenet.build_network("test_cascade:network", width=16).eval()
        model = eenet.cascade([SMALL, known], X[:2])
        with pytest.raises(
            InvalidInputError, match=r"how member 0 of the cascade, a Sequential, is built; make it with"
        ):
            model.save_pretrained(tmp_path / "model")
        with pytest.raises(InvalidInputError, match=r"member 1 of the cascade: it is not known how member 0 of the"):
            eenet.cascade([known, model], X[:2]).save_pretrained(tmp_path / "model")
        mapped = eenet.cascade([known, known], X[:2], inputs=[nn.AvgPool2d(2), None])
        with pytest.raises(
            InvalidInputError, match=r"inputs of member 0 of the cascade are made by an AvgPool2d, .*Input"
        ):
            mapped.save_pretrained(tmp_path / "model")

    def test_a_saved_cascade_runs_no_code_that_is_not_allowed(self, tmp_path: Path) -> None:
        member = eenet.build_network("test_cascade:network", width=4)
        model = eenet.cascade([member.eval(), eenet.build_network("test_cascade:network", width=16).eval()], X[:2])
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(InvalidInputError, match=r"built by calling 'test_cascade:network', which may be any code"):
            MultiExitModel.from_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        torch.testing.assert_close(again(X)[0], model(X)[0])
        path = tmp_path / "model" / "model.json"
        description = json.loads(path.read_text())
        del description["source"]["options"]["members"]
        path.write_text(json.dumps(description))
        with pytest.raises((InvalidInputError, FileFormatError), match=r"describes no members"):
            MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])

    def test_a_cascade_can_be_a_member(self, pair: MultiExitModel) -> None:
        model = eenet.cascade([pair, network(32)], X[:2])
        assert model.exit_names == ("members.0.network.members.0", "members.0", "output")
        torch.testing.assert_close(model(X)[1], BIG(X))


class TestNames:
    """Members that are given by name: exits are called by them, modules and weights as those of a list."""

    def test_exits_and_what_shows_them_have_the_members_names(self, pair: MultiExitModel, tmp_path: Path) -> None:
        small, big = (eenet.build_network("test_cascade:network", width=width).eval() for width in (4, 16))
        model = eenet.cascade({"small": small, "big": big}, X[:2])
        assert model.exit_names == ("small", "big")
        assert [row.name for row in eenet.describe(model).rows] == ["small", "big"]
        assert model.state_dict().keys() == pair.state_dict().keys()
        for got, expected in zip(model(X), (small(X), big(X)), strict=True):
            torch.testing.assert_close(got, expected)
        model.save_pretrained(tmp_path / "model")
        again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_cascade:network"])
        assert again.exit_names == ("small", "big")

    def test_exits_inside_a_member_are_called_by_it_and_its_module(self) -> None:
        exits = eenet.attach(network(4), ["2"], example=X[:2]).eval()
        inner = eenet.cascade({"one": exits, "two": SMALL}, X[:2])
        model = eenet.cascade({"first": inner, "last": BIG}, X[:2])
        assert inner.exit_names == ("one.2", "one", "two")
        assert model.exit_names == ("first.one.2", "first.one", "first", "last")
        assert model.keep_exits([1, 3]).exit_names[-1] == "last"
        assert inner.keep_exits([0, 2]).exit_names == ("one", "two")
        three = eenet.cascade({"a": SMALL, "b": exits, "c": BIG}, X[:2])
        assert three.keep_exits([1, 2, 3]).exit_names == ("b.2", "b", "c")
        assert three.keep_exits([0, 3]).exit_names == ("a", "c")

    def test_inputs_may_have_the_same_names(self) -> None:
        members = {"small": BIG, "big": BIG}
        by_number = eenet.cascade(members, X[:2], inputs=[{"size": (16, 16)}, None])
        for inputs in ({"small": {"size": (16, 16)}}, {"big": None, "small": InputMap(size=(16, 16))}):
            model = eenet.cascade(members, X[:2], inputs=inputs)
            for got, expected in zip(model(X), by_number(X), strict=True):
                torch.testing.assert_close(got, expected)
        wrong: list[tuple[Any, Any, str]] = [
            (members, {"smal": None}, r"inputs has the name 'smal', which no member has; expected \['small', 'big'\]"),
            (members, {0: None}, r"inputs has the name 0, which no member has"),
            (members, {"size": (16, 16)}, r"inputs has the name 'size', which no member has"),
            ([SMALL, BIG], {"small": None}, r"inputs is a mapping, and the members are a list, which has no names"),
            (members, {"big": {"hight": 3}}, r"inputs\['big'\] has the option 'hight'; an InputMap has"),
            (members, {"big": 3}, r"inputs\['big'\] is an int, expected an InputMap"),
        ]
        for given, inputs, message in wrong:
            with pytest.raises(InvalidInputError, match=message):
                eenet.cascade(given, X[:2], inputs=inputs)

    @pytest.mark.parametrize("name", ["", "a.b", "a b", "1st", "output", "small,big", 3])
    def test_bad_names_are_refused_by_all_cascades(self, name: Any) -> None:
        records = eenet.ExitRecords.from_logits(np.eye(4), np.arange(4))
        cascades: list[tuple[Any, Any]] = [
            (lambda members: eenet.cascade(members, X[:2]), SMALL),
            (eenet.ExitRecords.cascade, records),
            (eenet.ExitCosts.cascade, 1.0),
            (lambda members: eenet.CallCascade(members, fitted(eenet.cascade([SMALL, BIG], X[:2]))[0]), len),
        ]
        for make, member in cascades:
            with pytest.raises(
                InvalidInputError, match=rf"{name!r} is no name for a member of a cascade; expected lett"
            ):
                make({name: member, "big": member})


def test_members_by_name() -> None:
    model = eenet.cascade(["resnet20", "eenet:resnet20"], X[:2], 4)
    assert [tuple(logits.shape) for logits in model(X[:3])] == [(3, 4), (3, 4)]
    assert model.source is not None
    assert model.source.paths == ()


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([SMALL], {}, r"members are a list of 1"),
        ([SMALL, 3], {}, r"member 1 is an int, expected a torch\.nn\.Module.*CallCascade"),
        ([network(4, 5), BIG], {}, r"member 0 has 5 classes, member 1 has 4 classes"),
        (
            [copy.deepcopy(SMALL).double(), BIG],
            {},
            r"member 0 has weights of torch\.float64, member 1 .*float32; convert",
        ),
        (
            [copy.deepcopy(SMALL).to("meta"), BIG],
            {},
            r"member 0 has weights on meta, member 1 has weights on cpu; move",
        ),
        ([nn.Conv2d(1, 4, 1), BIG], {}, r"member 0, a Conv2d, fails on the example .*InputMap"),
        ([nn.Sequential(SMALL, FirstRow()), BIG], {}, r"member 0 answers 1 samples of the example, member 1 answers 2"),
        ([SMALL, BIG], {"inputs": [{"names": {"x": "y"}}, None]}, r"no input 'y', .*; its inputs have no names: give"),
        ([SMALL, BIG], {"inputs": [{"names": "x"}, None]}, r"names is 'x', expected a mapping"),
        ([SMALL, BIG], {"inputs": [{"size": 16}, None]}, r"size is 16, expected height and width"),
        ([nn.Conv2d(3, 4, 1), BIG], {}, r"member 0 has answers of shape"),
        ([nn.Identity(), BIG], {"num_classes": 4}, r"member 0, an Identity, cannot be a member: the network returns"),
        ([SMALL, BIG], {"inputs": [None]}, r"inputs is a list of 1, expected a list with one for each of 2"),
        (
            [SMALL, BIG],
            {"inputs": [None, {"mean": 0.5}]},
            r"mean is 0\.5, expected finite numbers: one for",
        ),
        ([SMALL, BIG], {"inputs": [None, {"std": [float("nan")]}]}, r"std is \[nan\], expected finite numbers"),
        ([SMALL, BIG], {"inputs": [None, {"std": [0, 1]}]}, r"std is \[0\.0, 1\.0\], expected numbers other than 0"),
        ([SMALL, BIG], {"inputs": [None, {"size": (True, 8)}]}, r"size is \(True, 8\), expected height and width"),
        (
            [SMALL, BIG],
            {"inputs": [None, {"hight": 3}]},
            r"inputs\[1\] has the option 'hight'; an InputMap has \['names', 'size'",
        ),
        ([SMALL, BIG], {"inputs": [None, lambda x: x]}, r"inputs\[1\] is a function, expected an InputMap"),
        ([SMALL, BIG], {"inputs": [{"size": (0, 4)}, None]}, r"size is \(0, 4\), expected height and width"),
    ],
)
def test_what_is_no_cascade_is_refused_by_name(members: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.cascade(members, X[:2], **options)


def test_a_member_that_computes_more_than_the_next_is_allowed_and_told() -> None:
    with pytest.warns(ReliabilityWarning, match=r"member 0 computes .* FLOPs on the example, more than member 1"):
        model = eenet.cascade([BIG, SMALL], X[:2])
    torch.testing.assert_close(model(X)[1], SMALL(X))


def test_stages_written_by_hand_are_refused() -> None:
    hand = eenet.StagedModel.from_stages([nn.Sequential(*list(SMALL)[:3]), nn.Sequential(*list(SMALL)[3:])], X[:2])
    with pytest.raises(InvalidInputError, match=r"member 0 has stages written by hand"):
        eenet.cascade([eenet.attach(hand), BIG], X[:2])
