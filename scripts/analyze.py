"""Compares what presets and runs have learned: the figures of the paper, from one's own models.

    analyze.py --preset=COCO-LM=runs/first/preset --preset=ELECTRA=runs/second/preset \\
        --pairs=glue/STS-B/dev.tsv --corpus='corpus/*.txt' --data=data/validation --output_dir=OUT
    analyze.py --model_dir=runs/first --model_dir=runs/second --data=data/validation \\
        --x_axis=tokens --output_dir=OUT

Presets: their sentence vectors (--pairs), how they detect and correct replaced tokens (--data), how
they judge minimal pairs (--minimal_pairs). Runs: their curves, and all measures on held-out text
(--data).

OUT gets index.html, which needs no other file, every figure as PNG and SVG, and every number as
CSV and JSON.
"""

import os

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError

flags.DEFINE_multi_string("preset", [], "Preset to look at: DIR or NAME=DIR. Repeatable.")
flags.DEFINE_string(
    "pairs",
    "",
    "Pairs of sentences: a tab-separated file as STS-B's, or JSON lines, with sentence1, sentence2 "
    "and, if there are any, scores. Those of the highest score are the similar ones.",
)
flags.DEFINE_string(
    "corpus",
    "",
    "Text files to draw random pairs from, a text a line; without them, the sentences of --pairs.",
)
flags.DEFINE_bool(
    "projected",
    False,
    "Whether sentence vectors pass the projection that pretraining compared them after, instead "
    "of being the [CLS] states.",
)
flags.DEFINE_integer("texts", 2000, "The number of texts that random pairs are of.", 2)
flags.DEFINE_multi_string(
    "model_dir", [], "Run whose curves to draw: RUN or NAME=RUN. Repeatable; at most six."
)
flags.DEFINE_enum(
    "x_axis", "steps", ["steps", "tokens", "flops", "hours"], "What the curves are drawn over."
)
flags.DEFINE_string(
    "data", "", "Folder or glob of held-out shards to measure presets and finished runs on."
)
flags.DEFINE_multi_enum(
    "corruption",
    ["auxiliary"],
    ["auxiliary", "random"],
    "What replaces tokens that a preset is to detect. Repeatable.",
)
flags.DEFINE_string(
    "minimal_pairs",
    "",
    "Minimal pairs to judge, JSON lines with sentence_good, sentence_bad and category, as BLiMP's.",
)
flags.DEFINE_integer("batch_size", 32, "The number of sentences or sequences at a time.", 1)
flags.DEFINE_integer("seed", 0, "Decides which texts are drawn and paired.", 0)
flags.DEFINE_string("output_dir", None, "Folder to write to.", required=True)

FLAGS = flags.FLAGS


def main() -> str:
    presets, model_dirs = _named("preset"), _named("model_dir")
    if not presets and not model_dirs:
        raise UserError("there is nothing to analyze: give --preset or --model_dir.")
    if presets and not (FLAGS.pairs or FLAGS.data or FLAGS.minimal_pairs):
        raise UserError("--preset needs --pairs, --data or --minimal_pairs to look at it with.")
    for flag in ("pairs", "minimal_pairs"):
        if FLAGS[flag].value and not presets:
            raise UserError(f"--{flag} is what presets are looked at with: give --preset.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.analysis.comparison import Findings, write_comparison
    from cocolm_tf.analysis.figures import PALETTE
    from cocolm_tf.analysis.held_out import measure_run
    from cocolm_tf.analysis.run_comparison import read_run

    if len(model_dirs) > len(PALETTE):
        raise UserError(f"--model_dir: {len(model_dirs)} runs are more than {len(PALETTE)} colors.")
    runs = [read_run(name, model_dir) for name, model_dir in model_dirs.items()]
    findings = Findings(
        _spaces(presets) if FLAGS.pairs else {},
        _detections(presets) if FLAGS.data else {},
        _judgements(presets) if FLAGS.minimal_pairs else {},
        {
            name: measure_run(model_dir, FLAGS.data, batch_size=FLAGS.batch_size)
            for name, model_dir in model_dirs.items()
            if FLAGS.data
        },
        runs,
    )
    return write_comparison(FLAGS.output_dir, findings, FLAGS.x_axis, FLAGS.seed)


def _named(flag: str) -> dict[str, str]:
    """What a flag lists, by its names; the folder's own where none is given."""
    named = {}
    for value in FLAGS[flag].value:
        name, equals, directory = value.partition("=")
        if not equals or os.path.isdir(value):
            directory = value
            parent, name = os.path.split(os.path.abspath(value))
            name = os.path.basename(parent) if name == "preset" else name
        if not os.path.isdir(directory):
            raise UserError(f"--{flag}={directory} is not a folder.")
        if name in named:
            raise UserError(
                f"--{flag}: two are called {name!r}: give them names, --{flag}=NAME=DIR."
            )
        named[name] = directory
    return named


def _spaces(presets: dict[str, str]) -> dict[str, object]:
    from cocolm_tf.analysis.encoder import SentenceEncoder
    from cocolm_tf.analysis.pairs import read_pairs
    from cocolm_tf.analysis.sentence_space import describe_space, draw_texts

    pairs = read_pairs(FLAGS.pairs)
    texts = list(dict.fromkeys(pairs.first + pairs.second))[: FLAGS.texts]
    if FLAGS.corpus:
        texts = draw_texts(FLAGS.corpus, FLAGS.texts, FLAGS.seed)
    spaces = {}
    for name, preset in presets.items():
        encoder = SentenceEncoder(preset, FLAGS.projected)
        spaces[name] = describe_space(
            lambda sentences, encoder=encoder, name=name: encoder.encode(
                sentences, FLAGS.batch_size, name
            ),
            pairs,
            texts,
            seed=FLAGS.seed,
        )
    return spaces


def _detections(presets: dict[str, str]) -> dict[str, object]:
    from cocolm_tf.analysis.detection import detect
    from cocolm_tf.analysis.pretrained import load_pretrained

    detections = {}
    for name, preset in presets.items():
        loaded = load_pretrained(preset)
        if loaded[0].copy_head is None:
            print(f"{name} has no copy head, and so no part in detection.")
            continue
        for corruption in FLAGS.corruption:
            # A name of its own only where there are several.
            key = name if len(FLAGS.corruption) == 1 else f"{name}, {corruption}"
            detections[key] = detect(
                *loaded, FLAGS.data, corruption, batch_size=FLAGS.batch_size, name=name
            )
    return detections


def _judgements(presets: dict[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    from cocolm_tf.analysis.minimal_pairs import (
        accuracies,
        judge,
        judgements,
        read_minimal_pairs,
    )
    from cocolm_tf.analysis.pretrained import load_pretrained

    pairs = read_minimal_pairs(FLAGS.minimal_pairs)
    results = {}
    for name, preset in presets.items():
        loaded = load_pretrained(preset)
        scores = {}
        if not judgements(loaded[0]):
            print(f"{name} has no head to judge minimal pairs with.")
            continue
        for way in judgements(loaded[0]):
            sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
            found = judge(*loaded, sentences, way, FLAGS.batch_size, name)
            scores[way] = (found[: len(pairs)], found[len(pairs) :])
        results[name] = accuracies(pairs, scores)
    return results


if __name__ == "__main__":
    program.run(main)
