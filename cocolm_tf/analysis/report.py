"""The report of a run: one page of HTML that needs nothing else, and its plots as PNG files."""

import html
import os
from collections.abc import Iterable, Sequence

import keras
from matplotlib import pyplot as plt
from tqdm import tqdm

import cocolm_tf
from cocolm_tf import files
from cocolm_tf.analysis.curves import draw
from cocolm_tf.analysis.demonstration import (
    VERDICTS,
    Demonstration,
    Token,
    demonstrate,
    load_run,
    shown,
    split_piece,
)
from cocolm_tf.analysis.figures import save_figure
from cocolm_tf.analysis.meanings import MEANINGS
from cocolm_tf.analysis.metrics_log import VALIDATION, Metrics, read_metrics
from cocolm_tf.analysis.page import inline_svg, page, table
from cocolm_tf.analysis.plots import plots_of
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig, load_config
from cocolm_tf.training.flops import pretraining_flops
from cocolm_tf.training.preset import BACKBONE_FILENAME
from cocolm_tf.training.stages import Total, tokens_per_step
from cocolm_tf.units import si

REPORT_FILENAME = "index.html"


def write_report(
    model_dir: str, output_dir: str, texts: Sequence[str] = (), seed: int = 0
) -> tuple[str, Demonstration | None]:
    """Writes the report of a run.

    Of a run that still goes on, the report has no demonstration.

    Args:
        model_dir: the run's folder.
        output_dir: gets `index.html` and a PNG file for each plot.
        texts: sentences to demonstrate on; none for those at hand.
        seed: int. Decides what the demonstration masks and samples.

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
    try:
        files.make_dirs(output_dir)
    except OSError as error:
        raise UserError(f"--output_dir={output_dir} is not a folder to write to.") from error

    configuration = files.read_text(config_file)
    sections = {}
    if demonstration:
        sections["Corruption and correction"] = _corrupted(demonstration)
        sections["Sentences as written"] = _as_written(demonstration)
    sections["Results"] = _results(metrics)
    sections["Curves"] = _curves(metrics, output_dir)
    sections["Model and configuration"] = _models(config, pretrainer, configuration)
    name = files.name(model_dir)
    path = os.path.join(output_dir, REPORT_FILENAME)
    files.write_text(path, page(name, _headline(config, metrics), sections))
    return path, demonstration


def _headline(config: PretrainingConfig, metrics: Metrics) -> dict[str, str]:
    step, planned = metrics.last_step, config.trainer.train_steps
    tokens = Total(config, tokens_per_step)(step)
    return {
        "steps": f"{step:,}" if step == planned else f"{step:,} of {planned:,}",
        "tokens read": si(tokens),
        "time": _duration(metrics.seconds),
        "cocolm_tf": cocolm_tf.__version__,
    }


def _corrupted(demonstration: Demonstration) -> str:
    verdicts = "".join(
        f"<li><b class='{_css_class(verdict)}'>{verdict}</b>: {html.escape(meaning)}</li>"
        for verdict, meaning in VERDICTS.items()
    )
    return (
        "<p>Some tokens are masked, and the auxiliary model puts in what it samples. The main "
        "model reads the result: the stronger a token is colored, the likelier its copy head "
        "finds it to be replaced; above 50% it is flagged. The LM head then says what stood "
        f"there.</p><ul class='verdicts'>{verdicts}</ul>"
        + "".join(_sentence(sentence, masked=True) for sentence in demonstration.corrupted)
    )


def _as_written(demonstration: Demonstration) -> str:
    return (
        "<p>The main model alone, on sentences that the auxiliary model has not touched. Where a "
        "mistake was put in by hand, the token that belongs there is known.</p>"
        + "".join(_sentence(sentence, masked=False) for sentence in demonstration.as_written)
    )


def _sentence(sentence: Sequence[Token], masked: bool) -> str:
    rows = [_token_row(token) for token in sentence if token.is_remarkable]
    header = ("token", "original", "replaced?", "LM head's best guesses", "")
    lines = []
    if masked:
        lines.append(("masked", "".join(map(_masked_span, sentence))))
    lines.append(("read", "".join(map(_read_span, sentence))))
    text = "".join(f"<p><span class='label'>{name}</span>{line}</p>" for name, line in lines)
    return f"<div class='sentence'>{text}{table(header, rows) if rows else ''}</div>"


def _masked_span(token: Token) -> str:
    space, word = split_piece(token.original)
    return f"{space}<span class='mask'></span>" if token.was_asked else space + html.escape(word)


def _read_span(token: Token) -> str:
    space, word = split_piece(token.piece)
    kinds = " flagged" * token.is_flagged + " asked" * token.was_asked
    return (
        f"{space}<span class='token{kinds}' style='--p:{token.replaced:.3f}' "
        f"title='replaced: {token.replaced:.1%}'>{html.escape(word)}</span>"
    )


def _token_row(token: Token) -> list[str]:
    original = token.original if token.original != token.piece else None
    guesses = ", ".join(
        f"{html.escape(shown(piece))} <small>{share:.0%}</small>" for piece, share in token.guesses
    )
    return [
        html.escape(shown(token.piece)),
        html.escape(shown(original)) if original else "",
        f"{token.replaced:.0%}",
        guesses,
        f"<b class='{_css_class(token.verdict)}'>{token.verdict}</b>" if token.verdict else "",
    ]


def _css_class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _results(metrics: Metrics) -> str:
    split, line = metrics.final()
    source = (
        "The last validation" if split == VALIDATION else "Training, as there was no validation"
    )
    rows = [
        [label, form.format(line[name]), meaning]
        for name, (label, form, meaning) in MEANINGS.items()
        if name in line
    ]
    header = ("measure", "value", "what it means")
    return f"<p>{source}, at step {line['step']:,}.</p>" + table(header, rows, numeric=[1])


def _curves(metrics: Metrics, output_dir: str) -> str:
    figures = []
    for plot in tqdm(plots_of(metrics), desc="drawing", unit="plot"):
        figure = draw(plot, metrics)
        save_figure(figure, output_dir, plot.name, ("png",))
        figures.append(
            f"<figure>{inline_svg(figure, f'{plot.title} over the steps of training')}"
            f"<figcaption>{html.escape(plot.note)}</figcaption></figure>"
        )
        plt.close(figure)
    return f"<div class='figures'>{''.join(figures)}</div>"


def _models(config: PretrainingConfig, pretrainer: CocoLMPretrainer, configuration: str) -> str:
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
    flops = sum(pretraining_flops(config).values())
    return (
        table(header, rows, numeric=range(1, 6))
        + "<p>The auxiliary model's parameters are those that it does not share with the main "
        f"model. A training step takes {si(flops, 'FLOP')} in matrix products.</p>"
        f"<details><summary>config.yaml</summary><pre>{html.escape(configuration)}</pre></details>"
    )


def _model_row(
    name: str, backbone: CocoLMBackbone, variables: Iterable[keras.Variable]
) -> list[str]:
    sizes = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
    return [name, *(f"{getattr(backbone, size):,}" for size in sizes), f"{_count(variables):,}"]


def _count(variables: Iterable[keras.Variable]) -> int:
    return sum(int(variable.value.shape.num_elements()) for variable in variables)


def _duration(seconds: float) -> str:
    """Two units are enough.

    >>> _duration(3725)
    '1 h 2 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
