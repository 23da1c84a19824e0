from pathlib import Path

import yaml

from cocolm_tf.training.model_card import UNKNOWN, Facts, Result, model_card, write_model_card


def parts(card: str) -> tuple[dict, dict[str, str]]:
    """The metadata, and the text under each heading."""
    _, header, body = card.split("---\n", 2)
    sections = {}
    for section in body.split("\n\n"):
        if section.lstrip().startswith("#"):
            heading = section.strip().lstrip("# ")
            sections[heading] = ""
        else:
            sections[heading] += section
    return yaml.safe_load(header), sections


def test_what_is_not_known_is_said_to_be_so():
    metadata, sections = parts(model_card(Facts("nothing")))
    assert metadata == {
        "license": "unknown",
        "library_name": "keras-hub",
        "tags": ["coco-lm", "tensorflow", "keras"],
    }
    for heading in (
        "Direct Use",
        "Bias, Risks, and Limitations",
        "How to Get Started with the Model",
        "Training Data",
        "Training Procedure",
        "Speeds, Sizes, Times",
        "Testing Data, Factors & Metrics",
        "Results",
        "Software",
    ):
        assert sections[heading] == UNKNOWN, heading
    for line in ("Developed by", "Language(s) (NLP)", "License", "Finetuned from model"):
        assert f"- **{line}:** {UNKNOWN}" in sections["Model Description"]
    assert f"- **Hours used:** {UNKNOWN}" in sections["Environmental Impact"]


def test_what_is_known_is_there_for_people_and_for_the_hub():
    facts = Facts(
        "reviews: good, bad",
        license="apache-2.0",
        languages=("en", "de"),
        pipeline_tag="text-classification",
        datasets=("nyu-mll/glue",),
        usage="load()",
        settings={"rate": 1e-5, "note": "a: b"},
        results=[Result("text-classification", "RTE (dev)", "accuracy", 0.612)],
        hours=1.25,
    )
    metadata, sections = parts(model_card(facts))
    assert metadata["license"] == "apache-2.0" and metadata["language"] == ["en", "de"]
    assert metadata["metrics"] == ["accuracy"] and metadata["datasets"] == ["nyu-mll/glue"]
    (index,) = metadata["model-index"]
    assert index["name"] == "reviews: good, bad"
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.612}]
    assert "| RTE (dev) | accuracy | 0.6120 |" in sections["Results"]
    assert "| rate | 1e-05 |" in sections["Training Procedure"]
    assert sections["How to Get Started with the Model"] == "```python\nload()\n```"
    assert "- **Hours used:** 1.2" in sections["Environmental Impact"]


def test_the_card_is_the_presets_readme(tmp_path: Path):
    path = write_model_card(str(tmp_path), Facts("é"))
    assert path == str(tmp_path / "README.md")
    assert Path(path).read_text(encoding="utf-8") == model_card(Facts("é"))
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
