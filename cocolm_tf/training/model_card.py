"""The README.md of a preset: a model card in the form of the Hugging Face Hub."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import yaml

from cocolm_tf import files

MODEL_CARD_FILENAME = "README.md"
UNKNOWN = "More information needed."

_PAPER = "https://arxiv.org/abs/2102.08473"
_CITATION = """\
@inproceedings{meng2021coco,
  title={{COCO-LM}: Correcting and contrasting text sequences for language model pretraining},
  author={Meng, Yu and Xiong, Chenyan and Bajaj, Payal and Tiwary, Saurabh and Bennett, Paul and
          Han, Jiawei and Song, Xia},
  booktitle={Conference on Neural Information Processing Systems},
  year={2021}
}"""


@dataclasses.dataclass(frozen=True)
class Result:
    """One score of a model."""

    task: str  # A task of the Hub, as `text-classification`
    dataset: str  # The dataset and its part, as `RTE (dev)`
    metric: str  # The name of the metric
    value: float  # The score


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model; its card calls fields that are left out unknown."""

    name: str  # The model's
    description: str = ""  # What it is, in a sentence or two
    model_type: str = ""  # Its architecture, with sizes
    pipeline_tag: str = ""  # Its task of the Hub, as `text-classification`
    base_model: str = ""  # What it was fine-tuned from: for people, as it may be a folder
    languages: Sequence[str] = ()  # Codes of the languages of its data, as `en`
    license: str = ""  # An identifier of the Hub, as `mit`
    developers: str = ""  # Who made it
    datasets: Sequence[str] = ()  # The names of the datasets that it learned from
    direct_use: str = ""  # What it is for
    limitations: str = ""  # What it is not for, and where it is known to fail
    usage: str = ""  # Python code that loads and calls it
    training_data: str = ""  # What it learned from, as Markdown
    # The settings it was trained with, by name.
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    speed: str = ""  # How long the training took, and how fast it went
    evaluation_data: str = ""  # The data of its scores
    results: Sequence[Result] = ()  # Its scores
    hardware: str = ""  # The devices it was trained on
    hours: float | None = None  # How long it was trained
    software: str = ""  # The versions of what trained it


def write_model_card(directory: str, facts: Facts) -> str:
    """Writes a preset's model card."""
    path = os.path.join(directory, MODEL_CARD_FILENAME)
    files.write_text(path, model_card(facts))
    return path


def model_card(facts: Facts) -> str:
    """The text of a model card: YAML metadata, then Markdown."""
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    hours = "" if facts.hours is None else f"{facts.hours:.2g}"
    settings = results = UNKNOWN
    if facts.settings:
        settings = markdown_table(["setting", "value"], facts.settings.items())
    if facts.results:
        rows = [(one.dataset, one.metric, f"{one.value:.4f}") for one in facts.results]
        results = markdown_table(["data", "metric", "value"], rows)
    sections = [
        ("# Model Card for " + facts.name, facts.description),
        ("## Model Details", ""),
        (
            "### Model Description",
            _list(
                {
                    "Developed by": facts.developers,
                    "Model type": facts.model_type,
                    "Language(s) (NLP)": ", ".join(facts.languages),
                    "License": facts.license,
                    "Finetuned from model": facts.base_model,
                    "Paper of the method": _PAPER,
                }
            ),
        ),
        ("## Uses", ""),
        ("### Direct Use", facts.direct_use or UNKNOWN),
        ("## Bias, Risks, and Limitations", facts.limitations or UNKNOWN),
        ("## How to Get Started with the Model", _code(facts.usage, "python") or UNKNOWN),
        ("## Training Details", ""),
        ("### Training Data", facts.training_data or UNKNOWN),
        ("### Training Procedure", settings),
        ("#### Speeds, Sizes, Times", facts.speed or UNKNOWN),
        ("## Evaluation", ""),
        ("### Testing Data, Factors & Metrics", facts.evaluation_data or UNKNOWN),
        ("### Results", results),
        (
            "## Environmental Impact",
            _list(
                {
                    "Hardware Type": facts.hardware,
                    "Hours used": hours,
                    "Cloud Provider": "",
                    "Compute Region": "",
                    "Carbon Emitted": "",
                }
            ),
        ),
        ("## Technical Specifications", ""),
        ("### Software", facts.software or UNKNOWN),
        ("## Citation", "The method:\n\n" + _code(_CITATION, "bibtex")),
    ]
    body = "\n\n".join(part for section in sections for part in section if part)
    return f"---\n{metadata}---\n\n{body}\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lays out a table in Markdown."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _metadata(facts: Facts) -> dict[str, object]:
    """The Hub's metadata, in which a missing key means that a value is not known."""
    known = {
        "language": list(facts.languages),
        "license": facts.license or "unknown",
        "library_name": "keras-hub",
        "pipeline_tag": facts.pipeline_tag,
        "tags": ["coco-lm", "tensorflow", "keras"],
        "datasets": list(facts.datasets),
        "metrics": sorted({result.metric for result in facts.results}),
    }
    metadata = {key: value for key, value in known.items() if value}
    if facts.results:
        results = [
            {
                "task": {"type": result.task},
                "dataset": {"name": result.dataset, "type": result.dataset},
                "metrics": [{"type": result.metric, "value": result.value}],
            }
            for result in facts.results
        ]
        metadata["model-index"] = [{"name": facts.name, "results": results}]
    return metadata


def _list(items: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}:** {value or UNKNOWN}" for name, value in items.items())


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```" if text else ""
