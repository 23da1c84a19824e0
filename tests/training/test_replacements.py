"""Replacements drawn beforehand are those that a run with a frozen auxiliary model samples."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError
from cocolm_tf.modeling import pretrainer as pretrainer_module
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training import replacements as module
from cocolm_tf.training.build import build_pretrainer, compile_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import load_frozen_auxiliary, save_preset
from cocolm_tf.training.pretraining import open_data
from cocolm_tf.training.replacements import precompute_replacements

STEPS = 5


@pytest.fixture(scope="module")
def preset(tiny, corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run's, whose auxiliary model knows something: its tables are far from zero."""
    path = str(tmp_path_factory.mktemp("auxiliary") / "preset")
    tokenizer = load_vocabulary(corpus.vocabulary)
    source = build_pretrainer(tiny(model={"initializer_range": 0.3}), tokenizer.mask_token_id)
    save_preset(source, tokenizer, path)
    return path


@pytest.fixture(scope="module")
def config(tiny, preset: str) -> PretrainingConfig:
    auxiliary = {"replacements": "frozen", "preset": preset, "temperature": 3.0, "num_layers": 1}
    trainer = {"train_steps": STEPS, "micro_batches": 2, "validation_steps": 2}
    objective, optimizer = {"scl_weight": 0.0}, {"learning_rate": 1e-2}
    return tiny(auxiliary=auxiliary, trainer=trainer, objective=objective, optimizer=optimizer)


def stored(config: PretrainingConfig) -> PretrainingConfig:
    changed = type(config)()
    changed.override(config.as_dict())
    changed.auxiliary.replacements = "stored"
    return changed


@pytest.fixture(scope="module")
def draw(corpus) -> Callable[..., list[Manifest]]:
    tokenizer = load_vocabulary(corpus.vocabulary)

    def draw(config: PretrainingConfig, folder: Path, **options: Any) -> list[Manifest]:
        opened = functools.partial(open_data, tokenizer=tokenizer, config=config, checksums=True)
        options = {"num_shards": 2} | options
        return precompute_replacements(
            config, corpus.train, tokenizer, str(folder), opened, **options
        )

    return draw


@pytest.fixture(scope="module")
def drawn(draw, config: PretrainingConfig, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(config, folder, validation_data=corpus.validation)
    return folder


def opened(config: PretrainingConfig, corpus, pattern: Path | str):
    tokenizer = load_vocabulary(corpus.vocabulary)
    return open_data(str(pattern), tokenizer, config, checksums=True)


def train(
    config: PretrainingConfig, corpus, pattern: Path | str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The corrupted sequences of each micro-batch, and the weights that they have led to."""
    pretrainer = build_pretrainer(config, load_vocabulary(corpus.vocabulary).mask_token_id)
    if config.auxiliary.replacements == "frozen":
        load_frozen_auxiliary(pretrainer.auxiliary, config.auxiliary.preset)
    else:
        assert pretrainer.auxiliary is None and "mlm_loss" not in pretrainer.meter_names()
    rng = np.random.default_rng(0)
    for variable in pretrainer.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.2, variable.shape))
    # Drawn after the auxiliary model's, if there is one.
    kernel = pretrainer.copy_head.kernel
    kernel.assign(rng.normal(0, 0.2, kernel.shape))
    compile_pretrainer(pretrainer, config, 1)
    written, replace = [], pretrainer_module.replace_tokens

    def record(*arguments: Any) -> tf.Tensor:
        ids = replace(*arguments)
        tf.py_function(lambda x: written.append(x.numpy()), [ids], [])
        return ids

    monkeypatch.setattr(pretrainer_module, "replace_tokens", record)
    run = pretrainer.make_train_function()
    batches = iter(opened(config, corpus, pattern).training_batches(config.trainer.batch_size))
    for _ in range(STEPS):
        run(batches)
    monkeypatch.undo()
    per_pass = 2 if pretrainer.auxiliary else 1  # The masked one comes before the corrupted one.
    weights = [v.numpy() for v in pretrainer.backbone.trainable_variables]
    return written[per_pass - 1 :: per_pass], weights


@pytest.mark.slow
def test_a_run_learns_the_same_from_them(config, corpus, drawn: Path, monkeypatch):
    sampled, expected = train(config, corpus, corpus.train, monkeypatch)
    read, found = train(stored(config), corpus, drawn / "train", monkeypatch)
    assert len(sampled) == 2 * STEPS
    np.testing.assert_array_equal(read, sampled)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_pretraining_needs_no_auxiliary_model(config, drawn: Path, pretrain_on, tmp_path: Path):
    data = {"train_data": str(drawn / "train"), "validation_data": str(drawn / "validation")}
    changed = stored(config)
    changed.auxiliary.preset = "/nowhere"  # It is not looked at.
    pretrain_on(changed, tmp_path / "run", **data)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {line["split"] for line in lines} == {"train", "validation"}
    assert all("mlm_loss" not in line and line["lm_loss"] > 0 for line in lines)
    assert not (tmp_path / "run" / "preset" / "auxiliary").exists()
    changed.trainer.train_steps = 6
    with pytest.raises(UserError, match="has the replacements of 5 steps, fewer than"):
        pretrain_on(changed, tmp_path / "longer", **data)


def test_the_auxiliary_model_was_asked(config, corpus, drawn: Path):
    """It puts other tokens there than the original ones, and not always the same."""
    batches = opened(stored(config), corpus, drawn / "train").training_batches(4).take(STEPS)
    found = [{name: x.numpy() for name, x in batch.items()} for batch in batches]
    original, replaced = [], []
    for batch in found:
        used = batch["masked_weights"] > 0
        ids = np.take_along_axis(batch["token_ids"], batch["masked_positions"], axis=1)
        original += ids[used].tolist()
        replaced += batch["replacements"][used].tolist()
    assert len(set(replaced)) > 3
    assert np.mean(np.equal(original, replaced)) < 0.9


@pytest.mark.parametrize(("pipelines", "size"), [(1, 4), (1, 2), (2, 2), (2, 1)])
def test_replicas_and_hosts_share_the_steps(config, corpus, drawn: Path, pipelines, size):
    """Each step is the same sequences, from wherever a run goes on."""
    data = opened(stored(config), corpus, drawn / "train")
    replicas = 4 // size // pipelines
    whole = [batch["token_ids"].numpy() for batch in data.training_batches(4).take(STEPS)]
    for start in (0, 3):
        hosts = [
            data.training_batches(size, start * replicas, pipelines, host).take(2 * replicas)
            for host in range(pipelines)
        ]
        parts = [[batch["token_ids"].numpy() for batch in host] for host in hosts]
        for step in range(2):
            own = slice(step * replicas, (step + 1) * replicas)
            found = np.concatenate([part for host in parts for part in host[own]])
            np.testing.assert_array_equal(found, whole[start + step])
    paths = data.paths_from(4 * 4 // pipelines, pipelines)
    assert [Path(path).name[5:10] for path in paths] == ["00001", "00000"]


def test_crops_are_those_of_the_run(config, corpus, drawn: Path):
    one = next(iter(opened(config, corpus, corpus.train).training_batches(4, start=2)))
    other = next(iter(opened(stored(config), corpus, drawn / "train").training_batches(4, 2)))
    assert other.keys() - one.keys() == {"replacements"}
    for name in ("token_ids", "padding_mask", "crop_token_ids", "crop_padding_mask"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    used, same = (x["masked_weights"].numpy() > 0 for x in (one, other))
    np.testing.assert_array_equal(one["masked_positions"][used], other["masked_positions"][same])


def test_validation_is_drawn_once(config, corpus, drawn: Path):
    data = opened(stored(config), corpus, drawn / "validation")
    batches, again = (list(data.validation_batches(2, limit=4)) for _ in range(2))
    plain = list(opened(config, corpus, corpus.validation).validation_batches(2, limit=4))
    assert len(batches) == len(plain) == 4
    for batch, same, source in zip(batches, again, plain, strict=True):
        np.testing.assert_array_equal(batch["token_ids"], source["token_ids"])
        for name in batch:
            np.testing.assert_array_equal(batch[name], same[name])


def test_the_manifest_says_what_it_is(config, corpus, drawn: Path):
    manifest, source = Manifest.load(str(drawn / "train")), Manifest.load(corpus.train)
    facts = manifest.replacements
    assert (facts["order"], facts["steps"], facts["batch_size"]) == ("training", STEPS, 4)
    assert facts["config"]["auxiliary"]["temperature"] == 3.0
    counts = manifest.counts
    assert counts["sequences"] == 4 * STEPS
    assert counts["documents"] == source.counts["documents"]
    assert 0 < manifest.fill_rate <= 1
    with pytest.raises(UserError, match="set auxiliary.replacements=stored to train on them"):
        opened(config, corpus, drawn / "train")


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("trainer", "train_steps", 6, "has the replacements of 5 steps, fewer than .*=6"),
        ("trainer", "batch_size", 8, "has batches of 4 sequences, not of trainer.batch_size=8"),
        ("data", "mask_fraction", 0.5, "of them masked: set data.mask_fraction to what"),
        ("data", "sequence_length", 12, "of 16 tokens, .* set data.sequence_length to what"),
    ],
)
def test_refuses_what_they_were_not_drawn_for(
    config, corpus, drawn: Path, section: str, key: str, value: float, told: str
):
    changed = stored(config)
    setattr(getattr(changed, section), key, value)
    with pytest.raises(UserError, match=told):
        data = opened(changed, corpus, drawn / "train")
        data.check(changed.trainer.batch_size, changed.trainer.train_steps)


def test_data_without_replacements_is_refused(config, corpus):
    with pytest.raises(UserError, match="has no replacements drawn beforehand"):
        opened(stored(config), corpus, corpus.train)


def test_an_ended_draw_resumes(config, corpus, draw, drawn: Path, tmp_path, monkeypatch):
    write, begun = module.write_shard, []

    def once(path: str, *arguments: Any) -> tuple[int, str]:
        begun.append(path)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return write(path, *arguments)

    monkeypatch.setattr(module, "write_shard", once)
    with pytest.raises(KeyboardInterrupt):
        draw(config, tmp_path)
    other = stored(config)
    other.auxiliary.replacements, other.auxiliary.temperature = "frozen", 1.0
    with pytest.raises(UserError, match="has part of another draw"):
        draw(other, tmp_path)
    (manifest,) = draw(config, tmp_path)
    assert len(begun) == 3, "the shard that was there was kept"
    assert manifest.fingerprint() == Manifest.load(str(drawn / "train")).fingerprint()
    assert sorted(path.name[:4] for path in (tmp_path / "train").iterdir()) == [
        *("data", "data"),
        "mani",
    ]
    with pytest.raises(UserError, match="has a finished dataset: give another --output_dir"):
        draw(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda config: setattr(config.auxiliary, "replacements", "auxiliary"), "set auxiliary."),
        (
            lambda config: setattr(config.data, "sequence_length_schedule", [0.5, 8]),
            "for batches of one shape",
        ),
    ],
)
def test_refuses_to_draw(config, draw, tmp_path: Path, change, told: str):
    changed = type(config)()
    changed.override(config.as_dict())
    change(changed)
    with pytest.raises(UserError, match=told):
        draw(changed, tmp_path)


def test_refuses_shards_without_steps(config, draw, tmp_path: Path):
    with pytest.raises(UserError, match="--num_shards=6 is more than trainer.train_steps=5"):
        draw(config, tmp_path, num_shards=6)
