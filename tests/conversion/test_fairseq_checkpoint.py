import argparse
from pathlib import Path

import conversion_released as released
import numpy as np
import pytest

from cocolm_tf.conversion.convert import TASK_HEADS_FILENAME, convert_to_preset
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.preset import HEADS_FILENAME

SIZES = released.config(num_labels=2)
AUXILIARY = released.config(num_hidden_layers=1)
ARGUMENTS = {
    "encoder_attention_heads": 4,
    "dropout": 0.2,
    "attention_dropout": 0.2,
    "max_positions": 40,
    "max_rel_pos": 20,
    "pooler_activation_fn": "gelu",
    "generator_sample_mode": "zero-dropout",
}
HEADS = {
    "encoder.binary_head.out_proj.weight": (1, 16),
    "encoder.binary_head.out_proj.bias": (1,),
    "encoder.lm_head.bias": (61,),
    "encoder.seq_head.dense.weight": (16, 16),
    "encoder.seq_head.dense.bias": (16,),
    "encoder.seq_head.layer_norm.weight": (16,),
    "encoder.seq_head.layer_norm.bias": (16,),
    "auxiliary.lm_head.dense.weight": (16, 16),
    "auxiliary.lm_head.dense.bias": (16,),
    "auxiliary.lm_head.layer_norm.weight": (16,),
    "auxiliary.lm_head.layer_norm.bias": (16,),
    "auxiliary.lm_head.bias": (61,),
}
MAIN = released.random_tensors(released.encoder_shapes(SIZES))
SMALL = released.random_tensors(released.encoder_shapes(AUXILIARY), seed=1)
WORDS = MAIN["embeddings.word_embeddings.weight"]


def checkpoint(offset: int = 2) -> released.Tensors:
    """As pretraining leaves it: the auxiliary model's words are the main model's."""
    small = SMALL | {"embeddings.word_embeddings.weight": WORDS}
    tied = dict.fromkeys(("encoder.lm_head.weight", "auxiliary.lm_head.weight"), WORDS)
    return (
        released.fairseq_encoder(MAIN, "encoder", offset)
        | released.fairseq_encoder(small, "auxiliary", offset)
        | released.random_tensors(HEADS, seed=2)
        | tied
    )


def write(folder: Path, tensors: released.Tensors, sizes: dict | None = SIZES) -> str:
    return released.write_released(folder, tensors, sizes)


def assert_is_the_models(preset: Path) -> None:
    ids, mask = released.inputs(SIZES)
    small = SMALL | {"embeddings.word_embeddings.weight": WORDS}
    for folder, tensors, sizes in ((preset, MAIN, SIZES), (preset / "auxiliary", small, AUXILIARY)):
        backbone = CocoLMBackbone.from_preset(str(folder))
        found = np.asarray(backbone({"token_ids": ids, "padding_mask": mask}))
        expected = released.encode(tensors, sizes, ids, mask)
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def test_all_of_it_becomes_a_preset(tmp_path: Path):
    official = write(tmp_path / "official", checkpoint())
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    assert_is_the_models(tmp_path / "preset")
    assert conversion.used.keys() | conversion.unused.keys() == checkpoint().keys()
    assert not conversion.unused
    tensors, heads = checkpoint(), np.load(tmp_path / "preset" / HEADS_FILENAME)
    assert len(heads.files) == 12
    for ours, theirs in {
        "copy_head.kernel": "encoder.binary_head.out_proj.weight",
        "copy_head.bias": "encoder.binary_head.out_proj.bias",
        "lm_head.bias": "encoder.lm_head.bias",
        "projection.norm.gamma": "encoder.seq_head.layer_norm.weight",
        "masked_lm_head.dense.kernel": "auxiliary.lm_head.dense.weight",
        "masked_lm_head.norm.beta": "auxiliary.lm_head.layer_norm.bias",
        "masked_lm_head.bias": "auxiliary.lm_head.bias",
    }.items():
        np.testing.assert_array_equal(heads[ours], tensors[theirs].T.reshape(heads[ours].shape))


@pytest.mark.parametrize("offset", [0, 2])
def test_positions_may_be_offset(tmp_path: Path, offset: int):
    official = write(tmp_path / "official", checkpoint(offset))
    convert_to_preset(official, str(tmp_path / "preset"))
    assert_is_the_models(tmp_path / "preset")


@pytest.mark.parametrize("rename", [("encoder.", "decoder."), ("in_proj.", "in_proj_")])
def test_other_spellings(tmp_path: Path, rename: tuple[str, str]):
    tensors = {
        name.replace(*rename, 1) if name.startswith("encoder.") else name: tensor
        for name, tensor in checkpoint().items()
    }
    conversion = convert_to_preset(write(tmp_path / "official", tensors), str(tmp_path / "preset"))
    assert not conversion.unused
    assert_is_the_models(tmp_path / "preset")


def test_without_relative_positions_and_configuration_the_heads_must_be_given(tmp_path: Path):
    sizes = released.config(rel_pos_bins=0)
    tensors = released.fairseq_encoder(released.random_tensors(released.encoder_shapes(sizes)))
    official = write(tmp_path / "official", tensors, sizes=None)
    with pytest.raises(UserError, match="config.json: num_attention_heads must be a whole"):
        convert_to_preset(official, str(tmp_path / "preset"))
    Path(official, "config.json").write_text('{"num_attention_heads": 4}')
    convert_to_preset(official, str(tmp_path / "preset"))
    ids, mask = released.inputs(sizes)
    found = CocoLMBackbone.from_preset(str(tmp_path / "preset"))(
        {"token_ids": ids, "padding_mask": mask}
    )
    expected = released.encode(
        released.random_tensors(released.encoder_shapes(sizes)), sizes, ids, mask
    )
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=2e-5)


def test_a_missing_tensor_is_named_as_the_file_would(tmp_path: Path):
    tensors = checkpoint()
    del tensors["encoder.sentence_encoder.layers.1.fc2.weight"]
    official = write(tmp_path / "official", tensors)
    with pytest.raises(UserError, match="encoder.sentence_encoder.layers.1.fc2.weight is missing"):
        convert_to_preset(official, str(tmp_path / "preset"))


def test_an_auxiliary_model_of_another_kind_is_left_out(tmp_path: Path):
    extra = {"auxiliary.sentence_encoder.embed_linear.weight": np.zeros((16, 16), np.float32)}
    official = write(tmp_path / "official", checkpoint() | extra)
    conversion = convert_to_preset(official, str(tmp_path / "preset"))
    assert "the auxiliary model is left out" in conversion.text()
    assert not (tmp_path / "preset" / "auxiliary").exists()
    left = {name for name in checkpoint() | extra if name.startswith("auxiliary.")}
    tied = {"auxiliary.lm_head.weight"}
    assert left - tied <= conversion.unused.keys()


CLASSIFIER = {
    "dense.weight": (16, 16),
    "dense.bias": (16,),
    "out_proj.weight": (2, 16),
    "out_proj.bias": (2,),
}


def test_the_head_of_a_task_may_have_any_name(tmp_path: Path):
    shapes = {f"classification_heads.mine.{name}": shape for name, shape in CLASSIFIER.items()}
    for name in ("start_logits", "end_logits"):
        shapes[f"classification_heads.squad.{name}.dense.weight"] = (1, 16)
        shapes[f"classification_heads.squad.{name}.dense.bias"] = (1,)
    tensors = checkpoint() | released.random_tensors(shapes, seed=3)
    conversion = convert_to_preset(write(tmp_path / "official", tensors), str(tmp_path / "preset"))
    assert not conversion.unused
    heads = np.load(tmp_path / "preset" / TASK_HEADS_FILENAME)
    np.testing.assert_array_equal(
        heads["classifier.output.kernel"], tensors["classification_heads.mine.out_proj.weight"].T
    )
    np.testing.assert_array_equal(
        heads["question_answerer.output.kernel"][:, 1],
        tensors["classification_heads.squad.end_logits.dense.weight"][0],
    )


def test_two_classifiers_are_one_too_many(tmp_path: Path):
    shapes = {
        f"classification_heads.{head}.{name}": shape
        for head in ("first", "second")
        for name, shape in CLASSIFIER.items()
    }
    official = write(tmp_path / "official", checkpoint() | released.random_tensors(shapes))
    with pytest.raises(UserError, match="several heads, classification_heads.first and"):
        convert_to_preset(official, str(tmp_path / "preset"))


# PyTorch's own file.


@pytest.mark.parametrize("kind", ["args", "cfg", "old archive"])
def test_a_file_of_fairseqs_says_its_sizes_itself(tmp_path: Path, kind: str):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(tensor) for name, tensor in checkpoint(offset=0).items()}
    arguments = argparse.Namespace(**ARGUMENTS)
    content = {"model": state, "args": arguments, "optimizer_history": [{"num_updates": 5}]}
    if kind == "cfg":
        content = {"model": state, "args": None, "cfg": {"model": arguments}}
    (tmp_path / "official").mkdir()
    torch.save(
        content,
        tmp_path / "official" / "model.pt",
        _use_new_zipfile_serialization=kind != "old archive",
    )
    conversion = convert_to_preset(str(tmp_path / "official"), str(tmp_path / "preset"))
    assert not conversion.unused
    assert_is_the_models(tmp_path / "preset")
    assert CocoLMBackbone.from_preset(str(tmp_path / "preset")).dropout == 0.2
    assert CocoLMBackbone.from_preset(str(tmp_path / "preset" / "auxiliary")).dropout == 0.0


def test_a_classifier_with_another_activation_is_not_ours(tmp_path: Path):
    torch = pytest.importorskip("torch")
    shapes = {f"classification_heads.mine.{name}": shape for name, shape in CLASSIFIER.items()}
    tensors = checkpoint(offset=0) | released.random_tensors(shapes)
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    arguments = argparse.Namespace(**ARGUMENTS | {"pooler_activation_fn": "tanh"})
    torch.save({"model": state, "args": arguments}, tmp_path / "model.pt")
    conversion = convert_to_preset(str(tmp_path / "model.pt"), str(tmp_path / "preset"))
    for name in shapes:
        assert conversion.unused[name] == "its activation is tanh, ours is GELU"
    assert not (tmp_path / "preset" / TASK_HEADS_FILENAME).exists()
