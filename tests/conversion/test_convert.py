import json
import random
import shutil
from pathlib import Path

import conversion_released as released
import keras
import numpy as np
import pytest
import sentencepiece

from cocolm_tf import files
from cocolm_tf.conversion.convert import (
    TASK_HEADS_FILENAME,
    convert_to_official,
    convert_to_preset,
    read_label_names,
    write_tokenizer,
)
from cocolm_tf.conversion.tensor_files import open_tensors, write_tensors
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, MaskedLMPretrainer
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.preset import HEADS_FILENAME, head_variables, load_preset, save_preset


def all_tensors(path: Path | str) -> dict[str, np.ndarray]:
    file = open_tensors(str(path))
    return {name: file.read(name) for name in file.names}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name], err_msg=name)


def hidden_states(preset: str, sizes: dict, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = released.inputs(sizes, length)
    backbone = CocoLMBackbone.from_preset(preset)
    return np.asarray(backbone({"token_ids": ids, "padding_mask": mask})), mask


# What a released checkpoint computes, the preset computes too.


@pytest.mark.parametrize(
    ("changes", "length", "is_prefixed"),
    [
        ({}, 12, True),
        ({"rel_pos_bins": 0, "max_rel_pos": 0}, 12, False),
        # Too few positions for every bin to occur, and more than the bins reach.
        ({"max_position_embeddings": 6}, 6, True),
        ({"max_position_embeddings": 514}, 45, True),
        ({"num_hidden_layers": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-3}, 12, True),
    ],
    ids=str,
)
def test_hidden_states_are_the_released_models(
    tmp_path: Path, changes: dict, length: int, is_prefixed: bool
):
    sizes = released.config(**changes)
    tensors = released.released_tensors(sizes)
    file = released.prefixed(tensors) if is_prefixed else tensors
    official = released.write_released(tmp_path / "official", file, sizes)
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    assert conversion.used.keys() == file.keys() and not conversion.unused
    found, mask = hidden_states(str(tmp_path / "preset"), sizes, length)
    expected = released.encode(tensors, sizes, *released.inputs(sizes, length))
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


@pytest.mark.parametrize(("rows", "wanted"), [(40, 30), (30, 64)])
def test_positions_are_cut_or_repeated_as_the_released_classes_do(tmp_path, rows, wanted):
    tensors = released.released_tensors(released.config(max_position_embeddings=rows))
    sizes = released.config(max_position_embeddings=wanted)
    official = released.write_released(tmp_path / "official", tensors, sizes)
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    assert f"{rows} positions for a model of {wanted}" in conversion.text()
    backbone = CocoLMBackbone.from_preset(str(tmp_path / "preset"))
    table = tensors["embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(
        backbone.position_embedding.position_embeddings, np.resize(table, (wanted, 16))
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A released checkpoint, for tests that leave it as it is."""
    sizes = released.config()
    tensors = released.prefixed(released.released_tensors(sizes))
    return released.write_released(tmp_path_factory.mktemp("released") / "official", tensors, sizes)


@pytest.fixture(scope="module")
def preset(official: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it was converted to, likewise."""
    folder = str(tmp_path_factory.mktemp("converted") / "preset")
    convert_to_preset(official, folder)
    return folder


@pytest.fixture
def own_official(official: str, tmp_path: Path) -> str:
    return shutil.copytree(official, str(tmp_path / "official"))


@pytest.fixture
def own_preset(preset: str, tmp_path: Path) -> str:
    return shutil.copytree(preset, str(tmp_path / "preset"))


def test_the_projection_is_that_of_contrastive_learning(preset: str):
    config = json.loads(Path(preset, "config.json").read_text())["config"]
    arguments = {k: v for k, v in config.items() if k not in ("name", "trainable", "dtype")}
    backbone = CocoLMBackbone(**arguments)
    pretrainer = CocoLMPretrainer(backbone, None, 60, copy_weight=0, lm_weight=0)
    assert load_preset(pretrainer, preset) == []
    sizes = released.config()
    tensors = released.released_tensors(sizes)
    hidden = released.encode(tensors, sizes, *released.inputs(sizes))
    expected = released.gelu(released.linear(hidden[:, 0], tensors, "scl_head.dense"))
    expected = released.layer_norm(expected, tensors, "scl_head.LayerNorm", 1e-5)
    found = pretrainer.projection(np.float32(hidden[:, 0]))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def features(sizes: dict) -> dict[str, np.ndarray]:
    ids, mask = released.inputs(sizes)
    return {"token_ids": ids, "padding_mask": mask}


def test_a_converted_classifier_is_the_released_one(preset: str):
    sizes = released.config()
    tensors = released.released_tensors(sizes)
    hidden = released.encode(tensors, sizes, *released.inputs(sizes))[:, 0]
    expected = released.gelu(released.linear(hidden, tensors, "classifier.dense"))
    expected = released.linear(expected, tensors, "classifier.out_proj")
    classifier = CocoLMTextClassifier.from_preset(preset, preprocessor=None)
    np.testing.assert_allclose(classifier(features(sizes)), expected, atol=2e-5)
    other = CocoLMTextClassifier.from_preset(preset, preprocessor=None, num_classes=2)
    assert other(features(sizes)).shape[1] == 2


def test_a_converted_answerer_is_the_released_one(preset: str):
    sizes = released.config()
    tensors = released.released_tensors(sizes)
    ids, mask = released.inputs(sizes)
    hidden = released.encode(tensors, sizes, ids, mask)
    answerer = CocoLMQuestionAnswerer.from_preset(preset, preprocessor=None)
    logits = answerer(features(sizes))
    for name in ("start", "end"):
        expected = released.linear(hidden, tensors, f"qa_outputs.{name}_logits.dense")[..., 0]
        found = np.asarray(logits[name])
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def test_a_converted_classifier_is_one_as_fine_tuning_writes_it(
    tmp_path: Path, tokenizer: CocoLMTokenizer
):
    """So that KerasHub knows it, it is exported, and its classes keep their names."""
    names = {"0": "bad", "1": "good", "2": "odd"}
    sizes = released.config(vocab_size=tokenizer.vocabulary_size(), id2label=names)
    tensors = released.prefixed(released.released_tensors(sizes))
    official = released.write_released(tmp_path / "official", tensors, sizes)
    write_tokenizer(tokenizer, official)
    preset = str(tmp_path / "preset")
    convert_to_preset(official, preset)
    served = ServedPreset(preset)
    classifier = served.task(CocoLMTextClassifier)
    assert classifier.label_names == ["bad", "good", "odd"]
    assert classifier.predict(["a text"], verbose=0).shape == (1, 3)
    head = served.task(CocoLMQuestionAnswerer).answer_logits
    wanted = tensors["qa_outputs.start_logits.dense.weight"]
    np.testing.assert_array_equal(np.asarray(head.kernel)[:, 0], wanted[0])
    convert_to_official(preset, str(tmp_path / "back"), "npz")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["id2label"] == names


@pytest.mark.parametrize(
    ("given", "wanted", "is_noted"),
    [
        (None, None, False),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None, False),
        ({"0": "bad"}, None, True),
        ({"0": "bad", "1": "bad"}, None, True),
        ({"1": "good", "0": "bad"}, ["bad", "good"], False),
    ],
)
def test_names_of_classes_are_those_of_the_head(given, wanted, is_noted: bool):
    notes = []
    assert read_label_names({"id2label": given}, 2, notes) == wanted
    assert bool(notes) is is_noted


def test_rows_that_only_round_the_table_up_are_left_out(tmp_path: Path, tokenizer: CocoLMTokenizer):
    """What has no word would be proposed, and fits no data that the vocabulary built."""
    rows = tokenizer.vocabulary_size() + 5
    sizes = released.config(vocab_size=rows)
    tensors = released.prefixed(released.released_tensors(sizes))
    tensors["lm_head.bias"] = np.arange(rows, dtype=np.float32)
    official = released.write_released(tmp_path / "official", tensors, sizes)
    write_tokenizer(tokenizer, official)
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    (note,) = conversion.notes
    assert f"{rows} rows for a vocabulary of {rows - 5}: the last 5, which are of no" in note
    served = ServedPreset(str(tmp_path / "preset"))
    table = served.backbone.token_embedding.embeddings
    wanted = tensors["cocolm.embeddings.word_embeddings.weight"][:-5]
    np.testing.assert_array_equal(table, wanted)
    np.testing.assert_array_equal(served.head("lm_head").bias, np.arange(rows - 5))
    many = released.config(vocab_size=rows + 2000)
    tensors = released.prefixed(released.released_tensors(many))
    official = released.write_released(tmp_path / "many", tensors, many)
    write_tokenizer(tokenizer, official)
    with pytest.raises(UserError, match="2005 more than the vocabulary beside it"):
        convert_to_preset(official, str(tmp_path / "other"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(
    own_official: str, own_preset: str, tmp_path: Path, value: float
):
    path = f"{own_official}/weights.npz"
    tensors = all_tensors(path)
    tensors["cocolm.encoder.layer.1.output.LayerNorm.bias"][3] = value
    np.savez(path, **tensors)
    with pytest.raises(UserError, match="layer.1.output.LayerNorm.bias has 1 values of 16 that"):
        convert_to_preset(own_official, str(tmp_path / "other"))
    backbone = CocoLMBackbone.from_preset(own_preset)
    backbone.token_embedding.embeddings.assign(np.full((61, 16), value))
    backbone.save_to_preset(own_preset)
    with pytest.raises(UserError, match="embeddings has values that are NaN or infinite, as after"):
        convert_to_official(own_preset, str(tmp_path / "back"), "npz")
    with pytest.raises(UserError, match="has values that are NaN or infinite, as after a training"):
        ServedPreset(own_preset).task(CocoLMTextClassifier)
    assert not (tmp_path / "other").exists() and not (tmp_path / "back").exists()


# There and back.


@pytest.mark.parametrize("task", [CocoLMTextClassifier, CocoLMQuestionAnswerer])
def test_a_fine_tuned_head_goes_out_and_comes_back(preset: str, tmp_path: Path, task: type):
    ours, theirs, back = (str(tmp_path / name) for name in ("ours", "theirs", "back"))
    random.seed(1)
    backbone = CocoLMBackbone.from_preset(preset)
    fine_tuned = task(backbone, 2) if task is CocoLMTextClassifier else task(backbone)
    fine_tuned.save_to_preset(ours)
    conversion = convert_to_official(ours, theirs, "npz")
    assert not conversion.unused
    if task is CocoLMTextClassifier:
        assert json.loads((tmp_path / "theirs" / "config.json").read_text())["num_labels"] == 2
    convert_to_preset(theirs, back)
    inputs = features(released.config())
    found = task.from_preset(back, preprocessor=None)(inputs)
    keras.tree.map_structure(np.testing.assert_array_equal, found, fine_tuned(inputs))


def test_a_task_that_the_released_format_has_no_place_for_is_refused(
    own_preset: str, tmp_path: Path
):
    task = {"registered_name": "cocolm_tf>CocoLMPromptClassifier"}
    Path(own_preset, "task.json").write_text(json.dumps(task))
    with pytest.raises(UserError, match="task.json describes a cocolm_tf>CocoLMPromptClassifier"):
        convert_to_official(own_preset, str(tmp_path / "theirs"), "npz")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("weights_format", ["npz", "safetensors", "bin"])
def test_there_and_back_the_tensors_are_identical(
    official: str, preset: str, tmp_path: Path, weights_format: str
):
    if weights_format == "bin":
        pytest.importorskip("torch")
    back = tmp_path / "back"
    conversion = convert_to_official(preset, str(back), weights_format)
    name = {"bin": "pytorch_model.bin", "npz": "weights.npz"}.get(
        weights_format, "model.safetensors"
    )
    assert sorted(path.name for path in back.iterdir()) == sorted(["config.json", name])
    assert_same(all_tensors(back / name), all_tensors(f"{official}/weights.npz"))
    assert conversion.used.keys() == all_tensors(back / name).keys()
    configuration = json.loads((back / "config.json").read_text())
    assert released.CONFIG.items() <= configuration.items()
    convert_to_preset(str(back), str(tmp_path / "again"))
    for file in (HEADS_FILENAME, TASK_HEADS_FILENAME):
        assert_same(dict(np.load(Path(preset, file))), dict(np.load(tmp_path / "again" / file)))


def test_both_ways_lead_to_a_store(official: str, tmp_path: Path, to_store):
    preset, back = to_store(tmp_path / "preset"), to_store(tmp_path / "back")
    convert_to_preset(to_store(official), preset)
    conversion = convert_to_official(preset, back, "npz")
    assert conversion.source == preset  # and not the copy that was read
    with files.local_copy(back) as copy:
        assert_same(all_tensors(f"{copy}/weights.npz"), all_tensors(f"{official}/weights.npz"))
    with pytest.raises(UserError, match=f"^{back} is not empty"):
        convert_to_official(preset, back, "npz")


def make_pretrainer(seed: int, own_tables: bool = False, width: int = 16) -> CocoLMPretrainer:
    random.seed(seed)
    sizes = {"vocabulary_size": 37, "max_sequence_length": 20, "relative_position_bins": 8}
    sizes |= {"num_heads": 2, "intermediate_dim": 24, "relative_position_max_distance": 16}
    main = CocoLMBackbone(num_layers=2, hidden_dim=16, **sizes)
    tables = {} if own_tables else {"embeddings_of": main}
    auxiliary = MaskedLanguageModel(
        CocoLMBackbone(num_layers=1, hidden_dim=width, **sizes, **tables)
    )
    pretrainer = CocoLMPretrainer(main, auxiliary, mask_token_id=36)
    rng = np.random.default_rng(seed)
    for variable in pretrainer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return pretrainer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CocoLMTokenizer:
    prefix = tmp_path_factory.mktemp("sentencepiece") / "sp"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The cat sat on the mat.", "It slept, as cats do."]),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=35,
        minloglevel=2,
    )
    return CocoLMTokenizer(f"{prefix}.model", lowercase=True)


@pytest.mark.parametrize(
    ("own_tables", "width"),
    [(False, 16), (False, 8), (True, 16)],
    ids=["shared tables", "narrower", "own tables"],
)
def test_what_was_pretrained_here_comes_back_whole(
    tmp_path: Path, tokenizer: CocoLMTokenizer, own_tables: bool, width: int
):
    pretrainer = make_pretrainer(1, own_tables, width)
    save_preset(pretrainer, tokenizer, str(tmp_path / "preset"))
    convert_to_official(str(tmp_path / "preset"), str(tmp_path / "official"), "npz")
    names = all_tensors(tmp_path / "official" / "weights.npz").keys()
    assert ("auxiliary.embeddings.word_embeddings.weight" in names) == own_tables
    conversion = convert_to_preset(str(tmp_path / "official"), str(tmp_path / "again"))
    assert not conversion.unused
    loaded = make_pretrainer(2, own_tables, width)
    assert load_preset(loaded, str(tmp_path / "again")) == []
    for one, two in zip(loaded.trainable_variables, pretrainer.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    assert len(head_variables(loaded)) == 11


def test_masked_language_modeling_comes_back_too(tmp_path: Path, tokenizer: CocoLMTokenizer):
    def make(seed: int) -> MaskedLMPretrainer:
        pretrainer = MaskedLMPretrainer(make_pretrainer(seed, own_tables=True).auxiliary, 36)
        rng = np.random.default_rng(seed)
        for variable in pretrainer.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        return pretrainer

    save_preset(make(1), tokenizer, str(tmp_path / "preset"))
    convert_to_official(str(tmp_path / "preset"), str(tmp_path / "official"), "npz")
    assert not convert_to_preset(str(tmp_path / "official"), str(tmp_path / "again")).unused
    loaded = make(2)
    assert load_preset(loaded, str(tmp_path / "again")) == []
    for one, two in zip(loaded.trainable_variables, make(1).trainable_variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)


def test_the_vocabulary_comes_back_byte_for_byte(tmp_path: Path, tokenizer: CocoLMTokenizer):
    save_preset(make_pretrainer(1), tokenizer, str(tmp_path / "preset"))
    convert_to_official(str(tmp_path / "preset"), str(tmp_path / "official"), "npz")
    assert (tmp_path / "official" / "sp.model").read_bytes() == tokenizer.proto
    convert_to_preset(str(tmp_path / "official"), str(tmp_path / "again"))
    again = CocoLMTokenizer.from_preset(str(tmp_path / "again"))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.lowercase


# Every tensor is used or reported.


def test_a_tensor_of_no_use_is_reported(tmp_path: Path):
    sizes = released.config()
    tensors = released.prefixed(released.released_tensors(sizes))
    extra = {
        "cocolm.embeddings.position_ids": np.arange(40)[np.newaxis],
        "binary_head.out_proj.weight": np.ones((1, 16), np.float32),
        "binary_head.out_proj.bias": np.full(1, 0.25, np.float32),
        "lm_head.weight": tensors["cocolm.embeddings.word_embeddings.weight"],
        "lm_head.bias": np.ones(61, np.float32),
    }
    official = released.write_released(tmp_path / "official", tensors | extra, sizes)
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    assert conversion.used.keys() | conversion.unused.keys() == (tensors | extra).keys()
    assert conversion.unused == {"cocolm.embeddings.position_ids": ""}
    for name in conversion.unused:
        assert f"not used: {name}" in conversion.text()
    heads = np.load(tmp_path / "preset" / HEADS_FILENAME)
    assert {"copy_head.kernel", "lm_head.bias"} <= set(heads)
    assert heads["copy_head.kernel"].shape == (16,)
    assert heads["copy_head.bias"] == 0.25


def test_weights_in_several_files_are_one_checkpoint(own_official: str, tmp_path: Path):
    tensors = all_tensors(f"{own_official}/weights.npz")
    places = {name: f"part{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        write_tensors(f"{own_official}/{file}", part)
    Path(own_official, "weights.npz").unlink()
    index = Path(own_official, "model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    preset = str(tmp_path / "preset")
    conversion = convert_to_preset(own_official, preset)
    assert conversion.used.keys() == tensors.keys() and conversion.source == str(index)
    convert_to_official(preset, str(tmp_path / "back"), "npz")
    assert_same(all_tensors(tmp_path / "back" / "weights.npz"), tensors)
    for changed, complaint in (
        ({"more": "part0.safetensors"}, "says that part0.safetensors has more, which it has not"),
        ({"more": "part2.safetensors"}, "names part2.safetensors, which is missing beside it"),
        ({"more": "../part0.safetensors"}, "names '../part0.safetensors', which is not a file be"),
        ({"more": 3}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": places | changed}))
        with pytest.raises(UserError, match=complaint):
            convert_to_preset(own_official, preset, overwrite=True)


def test_a_converted_preset_has_a_model_card(preset: str):
    card = Path(preset, "README.md").read_text()
    assert "of 2 layers, 16 wide, with 4 attention heads" in card
    assert "Converted from a checkpoint in the released format" in card
    assert card.count("More information needed") > 5


def test_an_encoder_alone_makes_a_preset(tmp_path: Path):
    sizes = released.config(need_pooler=False)
    tensors = released.random_tensors(released.encoder_shapes(sizes))
    official = released.write_released(tmp_path / "official", tensors, sizes)
    convert_to_preset(official, str(tmp_path / "preset"))
    assert list(np.load(tmp_path / "preset" / HEADS_FILENAME)) == []
    assert not (tmp_path / "preset" / TASK_HEADS_FILENAME).exists()
    found, mask = hidden_states(str(tmp_path / "preset"), sizes)
    expected = released.encode(tensors, sizes, *released.inputs(sizes))
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def change(**edits):
    return lambda tensors: tensors | edits


def drop(name: str):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


IN_PROJECTION = "cocolm.encoder.layer.1.attention.self_attn.in_proj.weight"


@pytest.mark.parametrize(
    ("edit", "changes", "complaint"),
    [
        (drop(IN_PROJECTION), {}, f"weights.npz: {IN_PROJECTION} is missing"),
        (drop("cocolm.scl_head.dense.bias"), {}, "cocolm.scl_head.dense.bias is missing"),
        (drop("classifier.out_proj.bias"), {}, "classifier.out_proj.bias is missing"),
        (
            change(**{IN_PROJECTION: np.zeros((32, 16), np.float32)}),
            {},
            f"weights.npz: {IN_PROJECTION} has the shape (32, 16), not (48, 16)",
        ),
        (
            change(**{"qa_outputs.end_logits.dense.weight": np.zeros((2, 16), np.float32)}),
            {},
            "qa_outputs.end_logits.dense.weight has the shape (2, 16), not (1, 16)",
        ),
        (
            change(**{"lm_head.weight": np.zeros((61, 16), np.float32)}),
            {},
            "lm_head.weight differs from the word embeddings",
        ),
        (
            change(**{"cocolm.embeddings.token_type_embeddings.weight": np.zeros((2, 16))}),
            {},
            "token_type_embeddings are of a model with segment embeddings",
        ),
        (None, {"vocab_size": 60}, "word_embeddings.weight has the shape (61, 16), not (60, 16)"),
        (None, {"num_hidden_layers": 3}, "encoder.layer.2.attention.self_attn.in_proj.weight is"),
        (None, {"hidden_size": None}, "config.json: hidden_size must be a whole number, not None"),
        (None, {"rel_pos_bins": "16"}, "rel_pos_bins must be a whole number, not '16'"),
        (None, {"layer_norm_eps": "small"}, "layer_norm_eps must be a number, not 'small'"),
        (None, {"layer_norm_type": "pre"}, "layer_norm_type is 'pre'; COCO-LM's is 'post'"),
        (None, {"hidden_act": "relu"}, "hidden_act is 'relu'; COCO-LM's is 'gelu'"),
        (
            None,
            {"num_attention_heads": 3},
            "its model cannot be built: hidden_dim 16 is not a multiple of 3",
        ),
        (None, {"rel_pos_bins": 14}, "relative_position_bins must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, edit, changes, complaint):
    tensors = released.prefixed(released.released_tensors(released.config()))
    tensors = edit(tensors) if edit else tensors
    official = released.write_released(tmp_path / "official", tensors, released.config(**changes))
    with pytest.raises(UserError) as caught:
        convert_to_preset(official, str(tmp_path / "preset"))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


def test_files_that_are_missing_or_damaged_are_named(own_official: str, tmp_path: Path):
    preset = str(tmp_path / "preset")
    with pytest.raises(UserError, match="--official=/nowhere does not exist"):
        convert_to_preset("/nowhere", preset)
    with pytest.raises(UserError, match="has no weights: none of model.safetensors, model."):
        convert_to_preset(str(tmp_path), preset)
    Path(own_official, "sp.model").write_bytes(b"?")
    with pytest.raises(UserError, match="dict.txt is missing: a vocabulary is two files"):
        convert_to_preset(own_official, preset)
    Path(own_official, "sp.model").unlink()
    Path(own_official, "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        convert_to_preset(own_official, preset)
    Path(own_official, "config.json").unlink()
    with pytest.raises(UserError, match="has no config.json beside the weights"):
        convert_to_preset(own_official, preset)


def test_a_vocabulary_larger_than_the_models_is_refused(
    own_official: str, tmp_path: Path, tokenizer: CocoLMTokenizer
):
    Path(own_official, "sp.model").write_bytes(tokenizer.proto)
    Path(own_official, "dict.txt").write_text("".join(f"piece{n} 1\n" for n in range(57)))
    with pytest.raises(UserError, match="makes a vocabulary of 62, the model's has 61"):
        convert_to_preset(own_official, str(tmp_path / "preset"))


def test_what_is_there_is_not_overwritten_unasked(official: str, tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    for convert in (convert_to_preset, convert_to_official):
        with pytest.raises(UserError, match="kept is not empty"):
            convert(official, str(tmp_path / "kept"))
    convert_to_preset(official, str(tmp_path / "kept"), overwrite=True)
    assert not (tmp_path / "kept" / "file").exists()


def test_no_preset_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a preset: it has no config.json"):
        convert_to_official(str(tmp_path), str(tmp_path / "official"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe a CocoLMBackbone"):
        convert_to_official(str(tmp_path), str(tmp_path / "official"), "npz")


def test_embeddings_of_another_width_have_no_place_there(tmp_path: Path):
    backbone = CocoLMBackbone(20, 1, 2, 8, 8, max_sequence_length=8, embedding_dim=4)
    backbone.save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(UserError, match="embeddings are 4 wide and its hidden states 8"):
        convert_to_official(str(tmp_path / "preset"), str(tmp_path / "official"), "npz")
    assert not (tmp_path / "official").exists()
