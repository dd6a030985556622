"""BERT (Devlin et al., NAACL 2019) for text classification, on Hugging Face's implementation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError

Pooling = Literal["first", "mean"]

_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


def bert(
    num_classes: int = 2,
    *,
    checkpoint: str | Path | None = None,
    pooling: Pooling = "first",
    **config: Any,
) -> nn.Module:
    """A `BertForSequenceClassification`: from a checkpoint's folder or, without one, BERT-base with random weights.

    It takes `input_ids` and `attention_mask` (N, T) as keywords. `checkpoint` holds config.json and safetensors, of a
    classifier or of an encoder alone, whose classifier then starts at random. `config` are settings of `BertConfig`,
    such as `num_hidden_layers`. With `pooling="mean"` sentences are judged by the mean of their tokens, not by the
    first: every layer then gives zeros for padding, which no other token sees. Raises `MissingExtraError` without
    transformers, `InvalidInputError` or `FileFormatError` for a folder that holds no such checkpoint.

    Parameters
    ----------
    num_classes : int
        C, the classes.
    checkpoint : path, optional
        A folder of pretrained weights; random ones without it.
    pooling : str
        "first" token, or "mean" of those that are not padding.
    **config
        Fields of transformers' `BertConfig`.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import bert
    >>> small = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64)
    >>> network = bert(3, **small).eval()
    >>> ids = torch.randint(1000, 2000, (2, 7))
    >>> network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape
    torch.Size([2, 3])
    """
    if pooling not in ("first", "mean"):
        raise InvalidInputError(f"pooling is {pooling!r}, expected 'first' or 'mean'")
    transformers = require("transformers", "train")
    # Transformers loads its parts when they are first named.
    require("transformers.models.bert.modeling_bert", "train")
    classifier = transformers.BertForSequenceClassification
    if checkpoint is None:
        model: Any = classifier(transformers.BertConfig(num_labels=num_classes, **config))
    else:
        folder = _checked(checkpoint)
        # Weights in safetensors only: loading a pickle can run code.
        model = classifier.from_pretrained(
            str(folder), num_labels=num_classes, local_files_only=True, use_safetensors=True, **config
        )
        model.float()  # transformers 5 keeps the precision of the file, and training wants float32
    # From-pretrained models come in evaluation mode and fresh ones in training mode.
    model.train()
    if pooling == "mean":
        model.bert.pooler = _MeanPooler(model.bert.pooler.dense)
        for layer in model.bert.encoder.layer:
            layer.register_forward_hook(_zero_padding, with_kwargs=True)
    assert isinstance(model, nn.Module)
    return model


def minilm(
    num_classes: int = 2, *, checkpoint: str | Path | None = None, pooling: Pooling = "mean", **config: Any
) -> nn.Module:
    """The 6-layer MiniLM (Wang et al., NeurIPS 2020), 384 wide, as `bert`; `checkpoint` may be of all-MiniLM-L6-v2.

    The published weights are those of a sentence encoder that takes the mean of its tokens, hence the default.

    Parameters
    ----------
    num_classes : int
        C, the classes.
    checkpoint : path, optional
        A folder of pretrained weights; random ones without it.
    pooling : str
        "first" token, or "mean" of those that are not padding.
    **config
        Fields of transformers' `BertConfig`.

    Examples
    --------
    >>> from eenet.networks import minilm
    >>> network = minilm(4, num_hidden_layers=1, vocab_size=100)  # without a checkpoint: random weights
    >>> sum(p.numel() for p in network.parameters()) > 100_000
    True
    """
    if checkpoint is None:
        config = {**_MINILM, **config}
    return bert(num_classes, checkpoint=checkpoint, pooling=pooling, **config)


def bert_exits(after: Sequence[int]) -> tuple[str, ...]:
    """The names of the modules that end the given encoder layers, counted from 1."""
    return tuple([f"bert.encoder.layer.{layer - 1}" for layer in after])


def bert_options(model: nn.Module) -> dict[str, Any]:
    """The options of `bert` that make a network of this architecture again, with random weights."""
    settings: Any = model.config
    return {"pooling": pooling_of(model)} | {name: getattr(settings, name) for name in _SETTINGS}


def pooling_of(model: nn.Module) -> Pooling:
    """How a network that `bert` made pools its tokens."""
    return "mean" if any(isinstance(module, _MeanPooler) for module in model.modules()) else "first"


def mean_of_tokens(tokens: Tensor) -> Tensor:
    """The mean (N, D) of the tokens (N, T, D) of each sample, without those that are zero in all of D: padding."""
    kept = (tokens != 0).any(-1, keepdim=True)
    return tokens.sum(1) / kept.sum(1).clamp(min=1)


class _MeanPooler(nn.Module):
    """BERT's pooler, on the mean of the tokens; its parameters have the same names."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        pooled: Tensor = self.activation(self.dense(mean_of_tokens(hidden_states)))
        return pooled


def _zero_padding(_layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Set padding to zero in what a layer gives, by the mask (N, 1, T or 1, T) that the layer was given."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is None:  # where no token is padding, Hugging Face leaves the mask out
        return output
    row = mask[:, 0, 0, :]
    # A mask says what to keep, or is what to add to the scores: zero for what is kept.
    kept = row >= 0 if row.dtype.is_floating_point else row
    if isinstance(output, Tensor):
        return output * kept.unsqueeze(-1)
    return (output[0] * kept.unsqueeze(-1), *output[1:])


def _checked(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        holds = f"it holds {', '.join(names[:8]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InvalidInputError(
            f"cannot load a BERT checkpoint from {str(folder)!r}: expected a folder with config.json and "
            f"model.safetensors, and {holds}"
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise FileFormatError(f"{str(folder / 'config.json')!r} is damaged ({error}); get the file again") from error
    if kind != "bert":
        raise FileFormatError(
            f"{str(folder)!r} holds a network of type {kind!r}, expected 'bert'; for other networks build the model "
            "with transformers and give it to eenet.attach"
        )
    return folder
