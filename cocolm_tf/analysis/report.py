"""The report of a run: one self-contained page of HTML, and its plots as PNG files."""

import os
from collections.abc import Iterable, Sequence

import keras
from markupsafe import Markup, escape
from tqdm import tqdm

import cocolm_tf
from cocolm_tf import files
from cocolm_tf.analysis.curves import draw, plots_of
from cocolm_tf.analysis.demonstration import (
    VERDICTS,
    Demonstration,
    Token,
    demonstrate,
    shown,
    split_piece,
)
from cocolm_tf.analysis.glossary import METRICS
from cocolm_tf.analysis.metrics_log import VALIDATION, Metrics, read_metrics
from cocolm_tf.analysis.page import OutputFolder, each, page, table
from cocolm_tf.analysis.presets import load_run
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.preset import BACKBONE_FILENAME
from cocolm_tf.training.stages import Total, tokens_per_step
from cocolm_tf.units import si

REPORT_FILENAME = "index.html"


def write_report(
    model_dir: str, output_dir: str, texts: Sequence[str] = (), seed: int = 0
) -> tuple[str, Demonstration | None]:
    """Writes the report of a run.

    The report of an unfinished run has no demonstration.

    Args:
        model_dir: the run's folder.
        output_dir: gets `index.html` and a PNG file for each plot.
        texts: sentences to demonstrate on; none for those at hand.
        seed: Decides what the demonstration masks and samples.

    Returns:
        The path of the page, and the demonstration.

    Raises:
        UserError: if the folder is not that of a run, or a text cannot be read by the model.

    Example:
    ```python
    path, demonstration = write_report("runs/first", "runs/first/report")
    ```
    """
    metrics = read_metrics(model_dir)
    config_file = os.path.join(model_dir, "config.yaml")
    config = load_config(config_file)
    demonstration = None
    if files.is_file(os.path.join(model_dir, "preset", BACKBONE_FILENAME)):
        pretrainer, tokenizer = load_run(model_dir)
        if pretrainer.copy_head or texts:
            fraction = config.data.mask_fraction
            demonstration = demonstrate(pretrainer, tokenizer, texts, fraction, seed)
    elif texts:
        raise UserError(f"{model_dir} has no preset yet: it is written when the run ends.")
    else:
        pretrainer = build_pretrainer(config, config.model.vocabulary_size - 1)
    output = OutputFolder(output_dir)
    configuration = files.read_text(config_file)
    sections = {}
    if demonstration:
        sections["Corruption and correction"] = _corrupted(demonstration)
        sections["Sentences as written"] = _as_written(demonstration)
    sections["Results"] = _results(metrics)
    sections["Curves"] = _curves(metrics, output)
    sections["Model and configuration"] = _models(config, pretrainer, configuration)
    written = page(files.name(model_dir), _headline(config, metrics), sections)
    return output.text(REPORT_FILENAME, written), demonstration


def _headline(config: PretrainingConfig, metrics: Metrics) -> dict[str, str]:
    step, planned = metrics.last_step, config.trainer.train_steps
    tokens = Total(config, tokens_per_step)(step)
    return {
        "steps": f"{step:,}" if step == planned else f"{step:,} of {planned:,}",
        "tokens read": si(tokens),
        "time": _duration(metrics.seconds),
        "cocolm_tf": cocolm_tf.__version__,
    }


def _corrupted(demonstration: Demonstration) -> Markup:
    verdicts = each(
        "<li><b class='{}'>{}</b>: {}</li>",
        ((_css_class(verdict), verdict, explanation) for verdict, explanation in VERDICTS.items()),
    )
    return Markup(
        "<p>Some tokens are masked, and the auxiliary model puts in what it samples. The main "
        "model reads the result: the stronger a token is colored, the likelier its copy head "
        "finds it to be replaced; above 50% it is flagged. The LM head then says what stood "
        "there.</p><ul class='verdicts'>{}</ul>{}"
    ).format(verdicts, _sentences(demonstration.corrupted, masked=True))


def _as_written(demonstration: Demonstration) -> Markup:
    return Markup(
        "<p>The main model alone, on sentences that the auxiliary model has not touched. Where a "
        "mistake was put in by hand, the token that belongs there is known.</p>{}"
    ).format(_sentences(demonstration.as_written, masked=False))


def _sentences(sentences: Sequence[Sequence[Token]], masked: bool) -> Markup:
    header = ("token", "original", "replaced?", "LM head's best guesses", "")
    blocks = []
    for sentence in sentences:
        rows = [_token_row(token) for token in sentence if token.is_remarkable]
        spans = {"masked": _masked_span, "read": _read_span} if masked else {"read": _read_span}
        lines = each(
            "<p><span class='label'>{}</span>{}</p>",
            ((name, Markup("").join(map(span, sentence))) for name, span in spans.items()),
        )
        blocks.append((lines, table(header, rows) if rows else ""))
    return each("<div class='sentence'>{}{}</div>", blocks)


def _masked_span(token: Token) -> Markup:
    space, word = split_piece(token.original)
    return space + (Markup("<span class='mask'></span>") if token.was_asked else escape(word))


def _read_span(token: Token) -> Markup:
    space, word = split_piece(token.piece)
    kinds = " flagged" * token.is_flagged + " asked" * token.was_asked
    return Markup(
        "{}<span class='token{}' style='--p:{:.3f}' title='replaced: {:.1%}'>{}</span>"
    ).format(space, kinds, token.replaced, token.replaced, word)


def _token_row(token: Token) -> list[str]:
    original = token.original if token.original != token.piece else None
    guesses = Markup(", ").join(
        Markup("{} <small>{:.0%}</small>").format(shown(piece), share)
        for piece, share in token.guesses
    )
    verdict = Markup("<b class='{}'>{}</b>").format(_css_class(token.verdict), token.verdict)
    return [
        shown(token.piece),
        shown(original) if original else "",
        f"{token.replaced:.0%}",
        guesses,
        verdict if token.verdict else "",
    ]


def _css_class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _results(metrics: Metrics) -> Markup:
    split, line = metrics.final()
    source = (
        "The last validation" if split == VALIDATION else "Training, as there was no validation"
    )
    rows = [
        [label, form.format(line[name]), explanation]
        for name, (label, form, explanation) in METRICS.items()
        if name in line
    ]
    results = table(("measure", "value", "what it means"), rows, numeric=[1])
    return Markup("<p>{}, at step {:,}.</p>{}").format(source, line["step"], results)


def _curves(metrics: Metrics, output: OutputFolder) -> Markup:
    figures = [
        output.figure(
            plot.name,
            draw(plot, metrics),
            f"{plot.title} over the steps of training",
            plot.note,
            "half",
            ["png"],
        )
        for plot in tqdm(plots_of(metrics), desc="drawing", unit="plot")
    ]
    return Markup("<div class='figures'>{}</div>").format(Markup("").join(figures))


def _models(config: PretrainingConfig, pretrainer: CocoLMPretrainer, configuration: str) -> Markup:
    main = pretrainer.backbone
    rows = [_model_row("main model", main, main.trainable_variables)]
    counted = {id(variable) for variable in main.trainable_variables}
    if pretrainer.auxiliary is not None:
        auxiliary = pretrainer.auxiliary.backbone
        own = [v for v in auxiliary.weights if id(v) not in counted]
        rows.append(_model_row("auxiliary model", auxiliary, own))
        counted |= {id(variable) for variable in own}
    heads = [v for v in pretrainer.trainable_variables if id(v) not in counted]
    rows.append(["heads", "", "", "", "", f"{_count(heads):,}"])
    header = ("", "layers", "width", "heads", "feed-forward", "parameters")
    return Markup(
        "{}<p>The auxiliary model's parameters are those that it does not share with the main "
        "model. A training step takes {} in matrix products.</p>"
        "<details><summary>config.yaml</summary><pre>{}</pre></details>"
    ).format(
        table(header, rows, numeric=range(1, 6)),
        si(sum(pretraining_flops(config).values()), "FLOP"),
        configuration,
    )


def _model_row(
    name: str, backbone: CocoLMBackbone, variables: Iterable[keras.Variable]
) -> list[str]:
    sizes = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
    return [name, *(f"{getattr(backbone, size):,}" for size in sizes), f"{_count(variables):,}"]


def _count(variables: Iterable[keras.Variable]) -> int:
    return sum(int(variable.value.shape.num_elements()) for variable in variables)


def _duration(seconds: float) -> str:
    """Formats seconds in two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
