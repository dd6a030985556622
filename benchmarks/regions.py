"""Whether exits per region can pay on a processor: HRNet-W18-small-v1 at 240 x 180, one picture at a time.

A tile whose answer is sure at an early exit would be final, and the deeper stages would go on with the other tiles. The
first tables need no trained network: the time of the remaining stages on the whole picture, on tiles of several sizes
at several shares of live tiles (gathering and scattering included), without halo and with one, and with convolutions
that are computed at live places only. The halo that keeps the answer exact is measured by gradients.

With `--model`, the folder of a trained `camvid-hrnet` (`OUT/work/model` of `eenet reproduce`, or of a shorter
`eenet train`), the other tables say how many tiles must go on for the last exit's mean IoU, what tiles without halo
cost in mean IoU, and whether agreement with the answer to the frame before is a better evidence than max probability.
`--records` asks the last question of the records of a recipe's folder, frame by frame.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet._timing import describe_machine, in_turns, machine, timed
from eenet.models import MultiExitModel, SegmentationHead
from eenet.networks import hrnet

ROOT = Path(__file__).resolve().parents[1]
SIZE = (180, 240)
EXITS = ("stage1", "stage2", "stage3")
STRIDES = (4, 8, 16)
TILES = (32, 64, 96)
HALOS = (0, 32)
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
TARGET = 0.75
BLOCK = 4
EVIDENCE = ("max probability", "previous frame", "labels")
Maps = tuple[Tensor, ...]
Floats = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a trained network, for the tables of mean IoU")
    parser.add_argument("--data-root", type=Path, default=ROOT.parent / "shared" / "datasets", metavar="FOLDER")
    parser.add_argument("--records", type=Path, metavar="FILE", help="a recipe's test.safetensors, frames in order")
    parser.add_argument("--seconds", type=float, default=90, help="of measuring (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="at least (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine()}
    print(describe_machine(found["machine"]) + "\n", flush=True)
    if options.model is not None:
        model = MultiExitModel.from_pretrained(options.model).eval()
        network, heads = model.backbone, list(model.heads)
    else:
        network = hrnet("w18-small-v1", 19).eval()
        heads = [SegmentationHead(width, 19, stride=4).eval() for width in network.exit_widths]
    with torch.inference_mode():
        found |= times(network, heads, options.seconds, options.rounds)
    found["allowed"] = allowed(found["ms"])
    found["exact"] = extents(hrnet("w18-small-v1", 19).eval())
    if options.model is not None:
        with torch.inference_mode():
            found |= quality(network, heads, options.data_root, found)
    if options.records is not None:
        found["frames"] = frames(eenet.ExitRecords.load(options.records))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


# Time.


def steps_of(network: Any) -> list[Callable[[Any], Any]]:
    """The four stages: each takes what the one before gives, the last gives logits."""
    return [
        lambda x: (network.stage1(network.stem(x)),),
        network.stage2,
        network.stage3,
        lambda maps: network.head(network.stage4(maps)),
    ]


def rest(network: Any, maps: Maps, exit_: int) -> Tensor:
    """The logits of the network from what it has at an exit."""
    for step in steps_of(network)[exit_ + 1 :]:
        maps = step(maps)
    return maps  # type: ignore[return-value]


def grid(tile: int) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-SIZE[0] // tile), -(-SIZE[1] // tile)


def on_tiles(network: Any, maps: Maps, exit_: int, live: Tensor, tile: int, halo: int, answer: Tensor) -> Tensor:
    """The rest of the network on the live tiles of all maps as one batch, written into the early exit's logits."""
    rows, columns = grid(tile)
    crops = []
    for x, stride in zip(maps, STRIDES, strict=False):
        t, h = tile // stride, halo // stride
        height, width = x.shape[-2:]
        padded = F.pad(x, (h, columns * t + h - width, h, rows * t + h - height))
        windows = padded.unfold(2, t + 2 * h, t).unfold(3, t + 2 * h, t)[0]
        crops.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1)[live].contiguous())
    logits = rest(network, tuple(crops), exit_)[:, :, halo : halo + tile, halo : halo + tile]
    whole = F.pad(answer, (0, columns * tile - SIZE[1], 0, rows * tile - SIZE[0]))[0]
    tiles = whole.reshape(-1, rows, tile, columns, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)
    tiles[live] = logits
    back: Tensor = tiles.view(rows, columns, -1, tile, tile).permute(2, 0, 3, 1, 4).reshape(whole.shape)
    return back[None, :, : SIZE[0], : SIZE[1]]


class LiveConvolution(nn.Module):
    """A convolution at live places only: their neighborhoods are gathered, multiplied, and scattered back."""

    def __init__(self, convolution: nn.Conv2d, live: dict[tuple[int, int], Tensor]) -> None:
        super().__init__()
        self.kernel, self.stride = convolution.kernel_size[0], convolution.stride[0]
        self.padding = self.kernel // 2
        self.matrix = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()
        self.live = live

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel, self.stride
        x = F.pad(x, (self.padding,) * 4) if self.padding else x
        height, width = x.shape[2:]
        size = ((height - k) // s + 1, (width - k) // s + 1)
        places = self.live[size]
        first = (places // size[1]) * s * width + (places % size[1]) * s
        flat = x[0].flatten(1)
        around = torch.cat([flat.index_select(1, first + (dy * width + dx)) for dy in range(k) for dx in range(k)])
        out = x.new_zeros(len(self.matrix), size[0] * size[1])
        out.index_copy_(1, places, self.matrix @ around)
        return out.view(1, -1, *size)


def live_network(live: dict[tuple[int, int], Tensor]) -> Any:
    """The network with convolutions at live places."""
    network: Any = hrnet("w18-small-v1", 19).eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, LiveConvolution(child, live))
    return network


def live_places(live: Tensor, tile: int) -> dict[tuple[int, int], Tensor]:
    """The live places of every resolution: those in a live tile."""
    rows, columns = grid(tile)
    tiles = live.view(1, 1, rows, columns).float()
    places = {}
    size = (SIZE[0] // 4, SIZE[1] // 4)
    stride = 4
    while stride <= 32:
        whole = F.interpolate(tiles, size=(rows * tile // stride, columns * tile // stride))
        places[size] = whole[0, 0, : size[0], : size[1]].flatten().nonzero()[:, 0]
        size, stride = ((size[0] + 1) // 2, (size[1] + 1) // 2), stride * 2
    return places


def chosen(share: float, count: int, seed: int = 0) -> Tensor:
    """Which of the tiles are live, drawn by lot."""
    live = torch.zeros(count, dtype=torch.bool)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    live[order[: max(1, round(share * count))]] = True
    return live


def times(network: Any, heads: Sequence[nn.Module], seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of stages, heads, and the rest of the network on the whole picture and on tiles."""
    picture = torch.randn(1, 3, *SIZE)
    maps: list[Any] = [picture]
    for step in steps_of(network)[:-1]:
        maps.append(step(maps[-1]))
    tasks: dict[str, Callable[[], Any]] = {}
    for number, (step, at) in enumerate(zip(steps_of(network), maps, strict=True)):
        tasks[f"stage {number}"] = partial(step, at)
    answers = []
    for number, head in enumerate(heads):
        feature = feature_of(network, maps[number + 1])
        answers.append(head(feature))
        tasks[f"head {number}"] = partial(answered, network, head, maps[number + 1])
    for exit_ in range(len(EXITS)):
        tasks[f"rest {exit_}"] = partial(rest, network, maps[exit_ + 1], exit_)
        for tile in TILES:
            count = grid(tile)[0] * grid(tile)[1]
            for halo in HALOS:
                for share in SHARES:
                    tasks[f"tiles {exit_} {tile} {halo} {share}"] = partial(
                        on_tiles, network, maps[exit_ + 1], exit_, chosen(share, count), tile, halo, answers[exit_]
                    )
        count = grid(32)[0] * grid(32)[1]
        for share in SHARES:
            other = live_network(live_places(chosen(share, count), 32))
            tasks[f"places {exit_} {share}"] = partial(rest, other, maps[exit_ + 1], exit_)
    timing = in_turns([partial(timed, task) for task in tasks.values()], seconds=seconds, least=rounds, seed=0)
    ms = dict(zip(tasks, (1000 * np.median(timing.cpu, axis=0)).tolist(), strict=True))
    whole = sum(ms[f"stage {k}"] for k in range(4))
    print(f"CPU ms, the median of {len(timing.cpu)} rounds. The whole network without early heads: {whole:.1f}\n")
    print(f"{'':<10}{'stage':>8}{'head':>8}{'so far':>9}{'rest':>8}")
    for exit_ in range(4):
        so_far = sum(ms[f"stage {k}"] for k in range(exit_ + 1))
        spent, after = (ms[f"head {exit_}"], ms[f"rest {exit_}"]) if exit_ < 3 else (0.0, 0.0)
        print(f"exit {exit_:<5}{ms[f'stage {exit_}']:>8.1f}{spent:>8.1f}{so_far:>9.1f}{after:>8.1f}")
    print("\nThe rest of the network on tiles, as a share of the rest on the whole picture, at shares of live tiles:")
    print(f"{'after':<8}{'tile':>5}{'halo':>6}{'tiles':>7}" + "".join(f"{f'{100 * s:.0f} %':>8}" for s in SHARES))
    for exit_ in range(len(EXITS)):
        for tile in TILES:
            for halo in HALOS:
                shares = [ms[f"tiles {exit_} {tile} {halo} {s}"] / ms[f"rest {exit_}"] for s in SHARES]
                shown = "".join(f"{v:>8.2f}" for v in shares)
                print(f"exit {exit_:<3}{tile:>5}{halo:>6}{grid(tile)[0] * grid(tile)[1]:>7}{shown}")
        shares = [ms[f"places {exit_} {s}"] / ms[f"rest {exit_}"] for s in SHARES]
        print(f"exit {exit_:<3}   32  places only" + "".join(f"{v:>8.2f}" for v in shares))
    print(flush=True)
    return {"ms": ms, "rounds": len(timing.cpu)}


def answered(network: Any, head: nn.Module, maps: Maps) -> Tensor:
    """The answer of an exit, and how sure its tiles are."""
    return sure(head(feature_of(network, maps)), 32)


def feature_of(network: Any, maps: Maps) -> Tensor:
    """What the head of an exit sees."""
    return maps[0] if len(maps) == 1 else network.stage2.exit_feature(maps)


def sure(logits: Tensor, tile: int) -> Tensor:
    """Mean max probability of every tile, at every fourth row and column: what would decide."""
    top = logits[:, :, ::4, ::4].softmax(1).amax(1, keepdim=True)
    return F.avg_pool2d(top, tile // 4, ceil_mode=True, count_include_pad=False).flatten()


def allowed(ms: dict[str, float]) -> list[dict[str, Any]]:
    """The largest share of live tiles with which the whole still costs at most TARGET of the network."""
    rows = []
    print(f"The largest share of live tiles, without halo, for {TARGET:.0%} of the network's cost:")
    for exit_ in range(len(EXITS)):
        for tile in TILES:
            within = [share for share in np.linspace(0, 1, 101) if total(ms, exit_, tile, float(share)) <= TARGET]
            share = max(within, default=None)
            least = total(ms, exit_, tile, SHARES[0])
            rows.append({"exit": exit_, "tile": tile, "share": share, "cost_at_a_tenth": least})
            shown = "none" if share is None else f"{share:.0%}"
            print(f"exit {exit_:<3}{tile:>5}{shown:>8}; with {SHARES[0]:.0%} of the tiles live it costs {least:.0%}")
    print(flush=True)
    return rows


def extents(network: Any) -> dict[str, list[int]]:
    """How many pixels around a pixel in the middle its answer depends on, by gradients: rows and columns."""
    network = network.double()
    maps: list[Any] = [torch.randn(1, 3, 2 * 512, 2 * 512, dtype=torch.float64)]
    with torch.no_grad():
        for step in steps_of(network)[:-1]:
            maps.append(step(maps[-1]))
    found = {}
    for exit_, name in enumerate(EXITS):
        given = tuple(x.detach().requires_grad_() for x in maps[exit_ + 1])
        grads = torch.autograd.grad(rest(network, given, exit_)[0, :, 512, 512].sum(), given)
        reach = []
        for dim in (1, 0):
            ends = []
            for grad, stride in zip(grads, STRIDES, strict=False):
                seen = (grad[0] != 0).any(0).any(dim).nonzero()[:, 0]
                ends += [abs(512 - int(seen[0]) * stride), abs((int(seen[-1]) + 1) * stride - 512)]
            reach.append(max(ends))
        found[name] = reach
        print(f"exit {exit_}: an answer depends on {reach[0]} pixels above and below and {reach[1]} beside it")
    print(f"The picture has {SIZE[0]} x {SIZE[1]}.\n", flush=True)
    return found


# Mean IoU.


def quality(network: Any, heads: Sequence[nn.Module], data_root: Path, found: dict[str, Any]) -> dict[str, Any]:
    """How many tiles must go on, and what they cost."""
    from eenet.experiments.data import load

    data = load("camvid", str(data_root), split="val")
    answers: list[list[Tensor]] = [[] for _ in range(4)]
    logits_of: list[list[Tensor]] = [[] for _ in range(3)]
    cropped: dict[tuple[int, int, int], list[Tensor]] = {}
    labels: list[Tensor] = []
    for number in range(len(data)):
        pictures, wanted = data.batch([number])
        labels.append(torch.as_tensor(wanted)[0])
        maps: Any = pictures
        for exit_, step in enumerate(steps_of(network)):
            maps = step(maps)
            logits = maps if exit_ == 3 else heads[exit_](feature_of(network, maps))
            answers[exit_].append(logits[0].argmax(0))
            if exit_ == 3:
                break
            logits_of[exit_].append(logits[0].softmax(0).amax(0))
            for tile in TILES:
                count = grid(tile)[0] * grid(tile)[1]
                for halo in HALOS:
                    got = on_tiles(network, maps, exit_, torch.ones(count, dtype=torch.bool), tile, halo, logits)
                    cropped.setdefault((exit_, tile, halo), []).append(got[0].argmax(0))
    truth = torch.stack(labels)
    last = torch.stack(answers[3])
    result: dict[str, Any] = {"miou": [miou(torch.stack(a), truth) for a in answers], "cropped": {}, "needed": []}
    print("Mean IoU of the exits: " + "  ".join(f"{100 * v:.2f}" for v in result["miou"]))
    print("\nMean IoU of the last exit where all its tiles are computed by themselves:")
    print(f"{'after':<8}{'tile':>5}" + "".join(f"{f'halo {h}':>10}" for h in HALOS))
    for exit_ in range(3):
        for tile in TILES:
            values = [miou(torch.stack(cropped[exit_, tile, halo]), truth) for halo in HALOS]
            result["cropped"][f"{exit_} {tile}"] = values
            print(f"exit {exit_:<3}{tile:>5}" + "".join(f"{100 * v:>10.2f}" for v in values))
    print(
        "\nThe smallest share of tiles that must go on for the last exit's mean IoU (within 0.1 points), where each"
        "\nthat goes on gets the answer of the whole picture, by evidence; and what it costs in all, of the whole"
        "\nnetwork's cost, where tiles cost what is measured above without halo:"
    )
    print(f"{'after':<8}{'tile':>5}" + "".join(f"{name:>17}{'cost':>6}" for name in EVIDENCE))
    for exit_ in range(3):
        early, certain = torch.stack(answers[exit_]), torch.stack(logits_of[exit_])
        # The frame before is the last exit's answer to it; the first frame has none and agrees nowhere.
        before = torch.cat([torch.full_like(last[:1], -1), last[:-1]])
        right = (early == truth).float() - (last == truth).float()
        for tile in TILES:
            row: dict[str, Any] = {"exit": exit_, "tile": tile}
            line = f"exit {exit_:<3}{tile:>5}"
            agrees = (early == before).float() + 1e-3 * certain
            for name, map_ in zip(EVIDENCE, (certain, agrees, right), strict=True):
                share = needed(pooled(map_, tile), early, last, truth, tile, result["miou"][3] - 0.001)
                cost = total(found["ms"], exit_, tile, share)
                row[name] = {"share": share, "cost": cost}
                line += f"{100 * share:>16.0f}%{cost:>6.2f}"
            result["needed"].append(row)
            print(line, flush=True)
    return result


def pooled(map_: Tensor, tile: int) -> Tensor:
    """The mean of each tile, (N, tiles)."""
    rows, columns = grid(tile)
    margin = (0, columns * tile - SIZE[1], 0, rows * tile - SIZE[0])
    weight = F.avg_pool2d(F.pad(torch.ones(1, 1, *SIZE), margin), tile)
    return (F.avg_pool2d(F.pad(map_[:, None], margin), tile) / weight).flatten(1)


def needed(scores: Tensor, early: Tensor, last: Tensor, truth: Tensor, tile: int, wanted: float) -> float:
    """The smallest share of tiles, the least sure of all pictures first, at which the mean IoU is reached."""
    rows, columns = grid(tile)
    order = scores.flatten().sort().values
    for share in np.linspace(0.0, 1.0, 101):
        limit = order[min(len(order) - 1, round(share * len(order)))]
        live = scores < limit if share < 1 else torch.ones_like(scores, dtype=torch.bool)
        pixels = live.view(-1, rows, columns).repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        if miou(torch.where(pixels[:, : SIZE[0], : SIZE[1]], last, early), truth) >= wanted:
            return float(live.float().mean())
    return 1.0


def total(ms: dict[str, float], exit_: int, tile: int, share: float) -> float:
    """The cost of an early exit and the rest on a share of the tiles, as a share of the whole network's cost."""
    measured = [ms[f"tiles {exit_} {tile} 0 {s}"] for s in SHARES]
    spent = sum(ms[f"stage {k}"] for k in range(exit_ + 1)) + ms[f"head {exit_}"]
    if share > 0:  # the first tile costs most of what a tenth of them does
        spent += float(np.interp(share, SHARES, measured))
    return spent / sum(ms[f"stage {k}"] for k in range(4))


def miou(answers: Tensor, truth: Tensor) -> float:
    """Mean IoU over the classes in the labels, all pictures together."""
    counted = truth != 255
    a, t = answers[counted], truth[counted].long()
    both = torch.bincount(t * 19 + a, minlength=19 * 19).view(19, 19).double()
    joint = both.diag() / (both.sum(0) + both.sum(1) - both.diag()).clamp(min=1)
    return float(joint[both.sum(1) > 0].mean())


def frames(records: eenet.ExitRecords) -> list[dict[str, Any]]:
    """What evidence says which frames gain by the last exit: mean utility where a share of the frames goes on."""
    utility = np.asarray(records.require_utility(), dtype=np.float64)
    probabilities = np.asarray(records.probabilities, dtype=np.float64)
    top = records.pooled["max_probability"]
    rows = []
    print("Frames in order: the gain over a random choice of frames that go on to the last exit, in points of pixel")
    print("accuracy, mean over shares of 5 to 95 %:")
    for exit_ in range(len(utility) - 1):
        gain = utility[-1] - utility[exit_]
        distance = np.abs(probabilities[exit_, 1:] - probabilities[-1, :-1]).sum(1)
        evidence = {
            "max probability": -top[exit_, 1:],
            "distance to the last exit's answer to the frame before": distance,
            "how much the frame before changed from this exit to the last": np.abs(
                probabilities[-1, :-1] - probabilities[exit_, :-1]
            ).sum(1),
            "labels": gain[1:],
        }
        for name, score in evidence.items():
            mean, error = ranked(gain[1:], score)
            rows.append({"exit": exit_, "evidence": name, "gain": mean, "error": error})
            print(f"exit {exit_}  {name:<62}{100 * mean:>7.3f} ± {100 * error:.3f}")
        # What can be run: the first frame of each block is answered by the last exit, and how much it changed from the
        # early exit to the last decides over the others.
        count = len(gain) // BLOCK
        changed = np.abs(probabilities[-1] - probabilities[exit_]).sum(1)[: count * BLOCK : BLOCK]
        others = gain[: count * BLOCK].reshape(count, BLOCK)[:, 1:].mean(axis=1)
        mean, error = ((BLOCK - 1) / BLOCK * value for value in ranked(others, changed))
        name = f"the same of the first of {BLOCK} frames, for the other {BLOCK - 1}"
        rows.append({"exit": exit_, "evidence": name, "gain": mean, "error": error})
        print(f"exit {exit_}  {name:<62}{100 * mean:>7.3f} ± {100 * error:.3f}")
    return rows


def ranked(gain: Floats, score: Floats, seed: int = 0) -> tuple[float, float]:
    """The mean gain of taking the highest scores first over taking samples by lot, with its bootstrap error."""

    def area(at: NDArray[np.int64]) -> float:
        order = np.argsort(-score[at], kind="stable")
        sums = np.cumsum(gain[at][order]) / len(at)
        shares = np.arange(1, len(at) + 1) / len(at)
        kept = (shares >= 0.05) & (shares <= 0.95)
        return float((sums - shares * gain[at].mean())[kept].mean())

    rng = np.random.default_rng(seed)
    draws = [area(rng.integers(0, len(gain), len(gain))) for _ in range(500)]
    return area(np.arange(len(gain))), float(np.std(draws))


if __name__ == "__main__":
    sys.exit(main())
