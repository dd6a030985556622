"""SST-2 and AG News: parquet, TSV and CSV; tokens, masks and padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch
from optional import import_or_skip

from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import TextCollator, Texts, load, loader

SENTENCES = ["a good film", 'it said "bad " and meant it', "good", "bad film", ""]
LABELS = [1, 0, 1, 0, 0]


def texts(name: str, root: Path, split: str = "train", **options: Any) -> Texts:
    dataset = load(name, root, split, **options)
    assert isinstance(dataset, Texts)
    return dataset


@pytest.mark.parametrize("folder", [".", "data", "sst2", "sst2/data"])
def test_sst2_parquet(tmp_path: Path, folder: str) -> None:
    columns = {"idx": range(5), "sentence": SENTENCES, "label": LABELS}
    files.write_parquet(tmp_path / folder / "validation-00000-of-00001.parquet", columns)
    for split in ("validation", "val", "dev"):
        dataset = texts("sst2", tmp_path, split)
        assert dataset.split == "validation"
        assert [dataset[n] for n in range(5)] == list(zip(SENTENCES, LABELS, strict=True))
    assert dataset.classes == ("negative", "positive")
    assert dataset.empty == 1
    assert dataset.class_sizes() == {"negative": 3, "positive": 2}
    strings, labels = dataset.batch([3, 0])
    assert strings == ["bad film", "a good film"]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("folder", [".", "SST-2", "glue/SST-2"])
def test_sst2_as_glue_tsv_with_quotes_taken_as_they_are(tmp_path: Path, folder: str) -> None:
    rows = [[text, str(label)] for text, label in zip(SENTENCES, LABELS, strict=True)]
    files.write_glue(tmp_path / folder / "train.tsv", ["sentence", "label"], rows)
    files.write_glue(tmp_path / folder / "dev.tsv", ["sentence", "label"], rows[:2])
    assert list(texts("sst2", tmp_path).texts) == SENTENCES
    assert texts("sst2", tmp_path).labels.tolist() == LABELS
    assert len(texts("sst2", tmp_path, "validation")) == 2
    assert len(texts("sst2", tmp_path, limit=3)) == 3


def test_phrases_are_glues_training_file_in_a_folder_of_its_own(tmp_path: Path) -> None:
    sentences, phrases = {"sentence": ["a whole one"], "label": [1]}, {"sentence": ["whole ", "one "], "label": [1, 0]}
    files.write_parquet(tmp_path / "sst2" / "train-00000-of-00001.parquet", sentences)
    with pytest.raises(InvalidInputError, match=r"no SST-2 split 'phrases'.*sst2-phrases/train-\*\.parquet"):
        texts("sst2", tmp_path, "phrases")
    files.write_parquet(tmp_path / "sst2-phrases" / "train-00000-of-00001.parquet", phrases)
    assert texts("sst2", tmp_path, "phrases").texts == ("whole ", "one ")
    assert texts("sst2", tmp_path, "train").texts == ("a whole one",)
    files.write_glue(tmp_path / "tsv" / "SST-2" / "train.tsv", ["sentence", "label"], [["whole ", "1"]])
    assert texts("sst2", tmp_path / "tsv", "phrases").texts == ("whole ",)


def test_splits_are_joined_in_the_order_they_are_named(tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "train-00000-of-00001.parquet", {"text": ["a", "b"], "label": [0, 1]})
    files.write_parquet(tmp_path / "more-train-00000-of-00001.parquet", {"text": ["c"], "label": [3]})
    joined = texts("ag_news", tmp_path, "train+more-train")
    assert joined.texts == ("a", "b", "c")
    assert joined.labels.tolist() == [0, 1, 3]
    assert joined.split == "train+more-train"
    with pytest.raises(InvalidInputError, match="'ag_news' has no split 'extra'"):
        texts("ag_news", tmp_path, "train+extra")
    with pytest.raises(InvalidInputError, match=r"split is 'train\+train', which names one split twice"):
        texts("ag_news", tmp_path, "train+train")


def test_case_and_spaces_make_no_other_text() -> None:
    data = Texts(["Good  film ", "good film", "good films"], np.zeros(3, int), ["a"], name="toy", split="train")
    assert data.digest(0) == data.digest(1) != data.digest(2)


def test_glue_test_without_labels_is_explained(tmp_path: Path) -> None:
    files.write_glue(tmp_path / "test.tsv", ["index", "sentence"], [["0", "good"]])
    with pytest.raises(InvalidInputError, match="GLUE's test split has no labels: use split='validation'"):
        texts("sst2", tmp_path, "test")
    files.write_parquet(tmp_path / "pq" / "test.parquet", {"sentence": ["good", "bad"], "label": [-1, -1]})
    with pytest.raises(InvalidInputError, match=r"label -1, outside the 2 classes.*without labels: use another split"):
        texts("sst2", tmp_path / "pq", "test")


def test_ag_news_parquet_and_csv_agree(tmp_path: Path) -> None:
    rows = [(1, "Oil, again", 'He said "so" \\ twice'), (4, "Chips", "Fast, cheap"), (3, "", "Two\nlines")]
    files.write_ag_csv(tmp_path / "csv" / "ag_news_csv" / "test.csv", rows)
    expected = ['Oil, again He said "so" \\ twice', "Chips Fast, cheap", " Two\nlines"]
    files.write_parquet(
        tmp_path / "hf" / "data" / "test-00000-of-00001.parquet", {"text": expected, "label": [0, 3, 2]}
    )
    for root in ("csv", "hf"):
        dataset = texts("ag_news", tmp_path / root, "test")
        assert list(dataset.texts) == expected
        assert [dataset.classes[n] for n in dataset.labels] == ["World", "Sci/Tech", "Business"]
    assert len(texts("ag_news", tmp_path / "csv", "test", limit=2)) == 2


@pytest.mark.parametrize("label", [0, 5])
def test_csv_classes_count_from_one(tmp_path: Path, label: int) -> None:
    files.write_ag_csv(tmp_path / "train.csv", [(1, "a", "b"), (label, "c", "d")])
    with pytest.raises(InvalidInputError, match=f"train.csv' line 2 has label '{label}', outside the 4 classes 1 to 4"):
        texts("ag_news", tmp_path)


@pytest.mark.parametrize("label", ["2", "-1", "yes", ""])
def test_a_tsv_label_outside_the_classes_is_named(tmp_path: Path, label: str) -> None:
    files.write_glue(tmp_path / "train.tsv", ["sentence", "label"], [["good", "1"], ["bad", label]])
    with pytest.raises(InvalidInputError, match=f"train.tsv' line 3 has label '{label}', outside the 2 classes 0 to 1"):
        texts("sst2", tmp_path)


def test_rows_without_text_label_or_fields_are_refused_or_skipped_by_name(tmp_path: Path) -> None:
    columns = {"sentence": ["good", None, "bad"], "label": [1, 0, None]}
    files.write_parquet(tmp_path / "pq" / "train.parquet", columns)
    with pytest.raises(FileFormatError, match=r"2 of 3 samples.*row 1: has no text; train.parquet row 2: has no label"):
        texts("sst2", tmp_path / "pq")
    with pytest.warns(ReliabilityWarning, match="2 of 3"):
        assert texts("sst2", tmp_path / "pq", on_corrupt="skip").texts == ("good",)
    files.write_ag_csv(tmp_path / "csv" / "train.csv", [(1, "a", "b"), (2, "only a title")])  # type: ignore[list-item]
    with pytest.raises(FileFormatError, match=r"train.csv line 2: has 2 fields, expected 3"):
        texts("ag_news", tmp_path / "csv")
    files.write_glue(tmp_path / "tsv" / "train.tsv", ["sentence", "label"], [["good", "1", "0"], ["bad", "0"]])
    with pytest.raises(FileFormatError, match=r"train.tsv line 2: has 3 fields, expected 2"):
        texts("sst2", tmp_path / "tsv")


def test_other_columns_and_formats_are_named(tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a" / "train.parquet", {"review": ["good"], "label": [1]})
    with pytest.raises(InvalidInputError, match=r"columns \['review', 'label'\], expected 'sentence' for the text"):
        texts("sst2", tmp_path / "a")
    files.write_parquet(tmp_path / "b" / "train.parquet", {"text": [3], "label": [1]})
    with pytest.raises(InvalidInputError, match="column 'text' holds an int in row 0, expected strings"):
        texts("ag_news", tmp_path / "b")
    files.write_glue(tmp_path / "c" / "train.tsv", ["text", "score"], [["good", "1"]])
    with pytest.raises(InvalidInputError, match=r"starts with the columns \['text', 'score'\], expected a header with"):
        texts("sst2", tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.tsv").write_bytes("sentence\tlabel\ncaf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(FileFormatError, match="is not UTF-8 text"):
        texts("sst2", tmp_path / "d")


def test_missing_and_empty_data_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"no AG News split 'train'.*it holds nothing. Expected train-\*.parquet"
    ):
        texts("ag_news", tmp_path)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(InvalidInputError, match="split 'train' of 'sst2' has no samples"):
        texts("sst2", tmp_path)


def test_texts_and_labels_must_be_as_many() -> None:
    with pytest.raises(InvalidInputError, match="2 texts and 1 labels"):
        Texts(["a", "b"], torch.tensor([0]).numpy(), ("x", "y"), name="mine", split="train")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A BERT tokenizer of eight words: [CLS] is 2, [SEP] 3, padding 9."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = import_or_skip("transformers")
    names = ["[UNK]", "a", "[CLS]", "[SEP]", "good", "bad", "film", "it", "and", "[PAD]"]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: n for n, word in enumerate(names)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_batches_are_padded_to_their_longest_and_masked(tokenizer: Any) -> None:
    batch = TextCollator(tokenizer, 16)([("a good film", 1), ("bad", 0)])
    assert batch["input_ids"].tolist() == [[2, 1, 4, 6, 3], [2, 5, 3, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0] * 5] * 2
    assert batch["labels"].tolist() == [1, 0]
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_what_a_sample_becomes_does_not_depend_on_its_neighbors(tokenizer: Any) -> None:
    collate = TextCollator(tokenizer, 8, multiple_of=4)
    samples = [("a good film", 1), ("bad", 0), ("good " * 30, 1), ("", 0)]
    alone = [collate([sample]) for sample in samples]
    together = collate([samples[n] for n in (2, 0, 3, 1)])
    assert together["input_ids"].shape == (4, 8)
    for row, n in enumerate((2, 0, 3, 1)):
        kept = together["attention_mask"][row].bool()
        own = alone[n]["attention_mask"][0].bool()
        assert together["input_ids"][row][kept].tolist() == alone[n]["input_ids"][0][own].tolist()


def test_long_and_empty_texts_are_cut_kept_and_counted(tokenizer: Any) -> None:
    collate = TextCollator(tokenizer, 12)
    long = ("good bad " * 2300)[:20_000]
    batch = collate([(long, 1), ("", 0), ("  ", 0), ("film", 1)])
    assert batch["input_ids"].shape == (4, 12)
    assert batch["input_ids"][0].tolist() == [2, *[4, 5] * 5, 3]
    assert batch["input_ids"][1].tolist() == [2, 3, *[9] * 10]
    assert batch["attention_mask"].sum(1).tolist() == [12, 2, 2, 3]
    assert (collate.seen, collate.truncated, collate.empty) == (4, 1, 2)
    survey = collate.survey([long, "", "a film"])
    assert survey.lengths.tolist() == [12, 2, 4]
    assert (survey.truncated, survey.empty) == (1, 1)
    assert collate.seen == 4


def test_padding_goes_to_the_left_where_the_tokenizer_says_so(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    try:
        batch = TextCollator(tokenizer, 16)([("a good film", 1), ("bad", 0)])
    finally:
        tokenizer.padding_side = "right"
    assert batch["input_ids"][1].tolist() == [9, 9, 2, 5, 3]
    assert batch["attention_mask"][1].tolist() == [0, 0, 1, 1, 1]


def test_a_saved_tokenizer_is_loaded_by_folder(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path / "tokens"))
    assert TextCollator(str(tmp_path / "tokens"), 16)([("bad", 0)])["input_ids"].tolist() == [[2, 5, 3]]
    with pytest.raises(InvalidInputError, match=r"no tokenizer '.*nowhere' on this machine"):
        TextCollator(str(tmp_path / "nowhere"), 16)


def test_a_collator_that_cannot_work_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_length is 2, expected more than the 2 special tokens"):
        TextCollator(tokenizer, 2)
    with pytest.raises(InvalidInputError, match="multiple_of is 0"):
        TextCollator(tokenizer, 8, multiple_of=0)
    with pytest.raises(InvalidInputError, match="text 1 of the batch is an int, expected a string"):
        TextCollator(tokenizer, 8)([("a", 0), (3, 1)])  # type: ignore[list-item]


def test_a_text_without_any_token_is_refused(tokenizer: Any) -> None:
    class Bare:
        """The same tokenizer without special tokens."""

        pad_token_id, pad_token_type_id, padding_side = 9, 0, "right"

        def num_special_tokens_to_add(self) -> int:
            return 0

        def __call__(self, batch: list[str], **options: Any) -> Any:
            return tokenizer(batch, add_special_tokens=False, **options)

    with pytest.raises(InvalidInputError, match=r"gives text 1 of the batch .* no token"):
        TextCollator(Bare(), 8)([("a", 0), ("", 1)])


def test_the_loader_makes_dict_batches_of_similar_lengths(tokenizer: Any, tmp_path: Path) -> None:
    sentences = ["good " * (1 + n % 20) for n in range(200)]
    files.write_parquet(tmp_path / "train.parquet", {"sentence": sentences, "label": [n % 2 for n in range(200)]})
    dataset = texts("sst2", tmp_path)
    with pytest.raises(InvalidInputError, match="raw strings; pass collate=TextCollator"):
        loader(dataset, 8)
    collate = TextCollator(tokenizer, 64)
    lengths = collate.survey(dataset.texts).lengths

    def padded(**options: Any) -> int:
        batches = list(loader(dataset, 10, shuffle=True, collate=collate, **options))
        assert sum(len(batch["labels"]) for batch in batches) == 200
        return int(sum((batch["attention_mask"] == 0).sum() for batch in batches))

    assert padded(lengths=lengths) < 0.2 * padded()
    with pytest.raises(InvalidInputError, match="3 lengths for 200 samples"):
        loader(dataset, 8, collate=collate, lengths=[1, 2, 3])


def test_the_shared_texts_load(shared: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = shared / "datasets"
    sizes = {("sst2", "train"): 6920, ("sst2", "validation"): 872, ("sst2", "test"): 900}
    sizes |= {("ag_news", "train"): 4400, ("ag_news", "test"): 1300}
    for (name, split), size in sizes.items():
        if not (folder / name).is_dir():
            pytest.skip(f"the shared material has no datasets/{name}")
        dataset = texts(name, folder, split)
        assert len(dataset) == size
        assert all(dataset.class_sizes().values())
        assert len(texts(name, folder, split, limit=5)) == 5
