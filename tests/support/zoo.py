"""The networks that cutting is tested on, and the table of them in docs/howto/networks.md.

`python tests/zoo.py` cuts them all and writes the table again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optional import import_or_skip
from torch import Tensor, nn

import eenet
from eenet.stages import LiveTensor

DOCS = Path(__file__).parents[2] / "docs" / "howto" / "networks.md"
BEGIN, END = "<!-- networks: begin -->", "<!-- networks: end -->"
HEADER = ("network", "exits at", "what crosses there, per sample", "default heads")

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A network with random weights, three or four stages of it, and what it is called with."""

    name: str
    build: Callable[[], nn.Module]
    at: tuple[str, ...]
    num_classes: int
    inputs: Callable[[int], Inputs]
    positional: bool = True

    def call(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        """Call a model the way this network is called."""
        return model(*inputs.values()) if self.positional else model(**inputs)

    def example(self, batch: int) -> Any:
        """What `attach` and `cut` take."""
        inputs = self.inputs(batch)
        return tuple(inputs.values()) if self.positional else inputs

    def attach(self) -> eenet.MultiExitModel:
        """The network with exits, in inference mode."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own, such as advice on how weights should start
            model = warm(self.build())
        return eenet.attach(model.eval(), list(self.at), self.num_classes, self.example(2)).eval()


def warm(model: nn.Module) -> nn.Module:
    """Give batch norms running statistics and affine weights that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.8, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    return model


def images(batch: int, size: int = 64) -> Inputs:
    """Noise of the size of a small image."""
    return {"x": torch.randn(batch, 3, size, size)}


def tokens(batch: int, length: int = 12) -> Inputs:
    """Random tokens; the last text is padded."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(5, 90, (batch, length)), "attention_mask": mask}


def _torchvision(name: str, *at: str, of: str | None = None, **options: Any) -> Network:
    segmentation = name.startswith(("deeplab", "lraspp"))
    classes = 5 if segmentation else 10

    def build() -> nn.Module:
        models = import_or_skip("torchvision.models")
        extra = {"weights_backbone": None} if segmentation else {}
        model: nn.Module = models.get_model(of or name, weights=None, num_classes=classes, **extra, **options)
        return model

    return Network(f"torchvision {name}", build, at, classes, images)


def _timm(name: str, *at: str, of: str | None = None, **options: Any) -> Network:
    def build() -> nn.Module:
        import_or_skip("torchvision")
        model: nn.Module = import_or_skip("timm").create_model(of or name, num_classes=10, **options)
        return model

    return Network(f"timm {name}", build, at, 10, images)


_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
    "max_position_embeddings": 40,
}  # fmt: skip
_SMALL_DISTIL = {
    "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100, "max_position_embeddings": 40,
}  # fmt: skip
_MINILM = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 100,
}  # fmt: skip


def _hugging_face(name: str, kind: str, settings: Mapping[str, int], *at: str) -> Network:
    def build() -> nn.Module:
        import_or_skip("torchvision")
        transformers = import_or_skip("transformers")
        config = getattr(transformers, f"{kind}Config")(**settings, num_labels=3)
        model: nn.Module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        return model

    return Network(f"Hugging Face {name}", build, at, 3, tokens, positional=False)


NETWORKS = {
    network.name: network
    for network in (
        _torchvision("resnet18", "layer1", "layer2.0", "layer3"),
        _torchvision("resnet18, inside a block", "layer1.0.bn1", "layer2.0.conv2", of="resnet18"),
        _torchvision("resnet50", "layer1", "layer2", "layer3"),
        _torchvision("densenet121, between blocks", "features.transition1", "features.transition2", of="densenet121"),
        _torchvision(
            "densenet121, inside blocks",
            "features.denseblock1.denselayer2",
            "features.denseblock2.denselayer3",
            "features.denseblock3.denselayer9",
            of="densenet121",
        ),
        _torchvision("mobilenet_v3_large", "features.4", "features.8"),
        _torchvision("efficientnet_b0", "features.3", "features.5"),
        _torchvision("regnet_y_400mf", "trunk_output.block1", "trunk_output.block3"),
        _torchvision("vit_b_16", "encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_7", image_size=64),
        _torchvision("swin_t", "features.1.0.attn", "features.3", "features.5.2"),
        _torchvision("convnext_tiny", "features.1", "features.3"),
        _torchvision("deeplabv3_resnet50", "backbone.layer1", "backbone.layer2", aux_loss=True),
        _torchvision("lraspp_mobilenet_v3_large", "backbone.4", "backbone.7"),
        _timm("resnet50", "layer1", "layer2"),
        _timm("convnext_tiny", "stages.0", "stages.1"),
        _timm("vit_small_patch16_224", "blocks.3", "blocks.7", img_size=64),
        _timm("mixer_s16_224", "blocks.1", "blocks.4", img_size=64),
        _hugging_face("Bert", "Bert", _SMALL, "bert.encoder.layer.0", "bert.encoder.layer.1"),
        _hugging_face(
            "DistilBert",
            "DistilBert",
            _SMALL_DISTIL,
            "distilbert.transformer.layer.0",
            "distilbert.transformer.layer.1",
        ),
        _hugging_face("Roberta", "Roberta", _SMALL, "roberta.encoder.layer.0", "roberta.encoder.layer.1"),
        _hugging_face("MiniLM-L6-H384", "Bert", _MINILM, "bert.encoder.layer.1", "bert.encoder.layer.3"),
    )
}


def row(network: Network, model: eenet.MultiExitModel) -> str:
    """The network's line of the table."""
    crossing = [", ".join(_shown(live) for live in stage.inputs) for stage in model.staged.inference_stages[1:]]
    heads = list(dict.fromkeys(type(head).__name__ for head in model.heads))
    cells = (network.name, ", ".join(f"`{name}`" for name in network.at), "; ".join(crossing), ", ".join(heads))
    return f"| {' | '.join(cells)} |"


def _shown(live: LiveTensor) -> str:
    sizes = [str(size) for dim, size in enumerate(live.shape) if dim != live.batch_dim]
    return "x".join(sizes) + (" (constant)" if live.batch_dim is None else "")


def table(rows: list[str]) -> str:
    """The whole table, between its marks."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|", *rows]
    return "\n".join([BEGIN, *lines, END])


def written_rows() -> list[str]:
    """The rows of the table that is in the docs."""
    text = DOCS.read_text(encoding="utf-8")
    inside = text.partition(BEGIN)[2].partition(END)[0]
    return [line for line in inside.splitlines() if line.startswith("| ")][1:]


def write() -> None:
    """Cut every network and put the table of them into the docs."""
    rows = []
    for network in NETWORKS.values():
        rows.append(row(network, network.attach()))
        print(rows[-1], file=sys.stderr)
    text = DOCS.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCS.write_text(before + table(rows) + after, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
