"""Compares what presets and runs have learned: the figures of the paper, from one's own models.

    analyze.py --preset=COCO-LM=runs/first/preset --preset=ELECTRA=runs/second/preset \\
        --pairs=glue/STS-B/dev.tsv --corpus='corpus/*.txt' --data=data/validation --output_dir=OUT
    analyze.py --model_dir=runs/first --model_dir=runs/second --data=data/validation \\
        --scores=runs/glue_first --scores=runs/glue_second --x_axis=hours --output_dir=OUT

Presets: their sentence vectors (--pairs), how they detect and correct replaced tokens (--data,
--corrupted_texts), how they score minimal pairs (--minimal_pairs). Runs: their curves, and all
measures on held-out text (--data). Fine-tuned presets and suites: their scores (--scores).

OUT gets index.html, which needs no other file, every figure as PNG and SVG, and every number as
CSV and JSON. See docs/analysis.md.
"""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_multi_string("preset", [], "Preset to analyze: DIR or NAME=DIR. Repeatable.")
flags.DEFINE_string(
    "pairs",
    "",
    "Pairs of sentences: a tab-separated file as STS-B's, CSV or JSON lines, with sentence1, "
    "sentence2 and, if there are any, scores. Those of the highest score are the similar ones.",
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
    "corrupted_texts",
    "",
    "Texts with mistakes to detect, tab-separated or JSON lines, with original and corrupted.",
)
flags.DEFINE_string(
    "minimal_pairs",
    "",
    "Minimal pairs to score, JSON lines with sentence_good, sentence_bad and, if any, category, as "
    "BLiMP's; or a glob of several files.",
)
flags.DEFINE_string(
    "encoding",
    "",
    "Encoding of the text files that have no byte order mark, as cp1252. By default UTF-8.",
)
flags.DEFINE_multi_string(
    "scores",
    [],
    "The --output_dir of a fine-tuning program or of run_suite.py. Repeatable. A score belongs to "
    "the run of --model_dir whose preset, or exported checkpoint, was fine-tuned.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16"],
    "What detection and minimal pairs are computed in. mixed_bfloat16 is faster where the "
    "processor multiplies in it, and less exact.",
)
flags.DEFINE_integer("batch_size", 32, "The number of sentences or sequences at a time.", 1)
flags.DEFINE_integer("seed", 0, "Decides which texts are drawn and paired.", 0)
flags.DEFINE_string("output_dir", None, "Folder to write to.", required=True)

FLAGS = flags.FLAGS


def main() -> str:
    presets, model_dirs = _named("preset"), _named("model_dir")
    if not presets and not model_dirs and not FLAGS.scores:
        raise UserError("there is nothing to analyze: give --preset, --model_dir or --scores.")
    tests = ("pairs", "data", "corrupted_texts", "minimal_pairs", "scores")
    if presets and not any(FLAGS[flag].value for flag in tests):
        raise UserError(f"--preset needs one of --{', --'.join(tests)} to analyze it with.")
    for flag in ("pairs", "corrupted_texts", "minimal_pairs"):
        if FLAGS[flag].value and not presets:
            raise UserError(f"--{flag} is for presets: give --preset.")
    for folder in FLAGS.scores:
        if not files.is_dir(folder):
            raise UserError(f"--scores={folder} is not a folder.")
    files.check_writable(FLAGS.output_dir, "--output_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.analysis.comparison import Findings, write_comparison
    from cocolm_tf.analysis.figures import PALETTE
    from cocolm_tf.analysis.inputs import read_corrupted_texts, read_minimal_pairs, read_pairs
    from cocolm_tf.analysis.runs import measure_run, read_run
    from cocolm_tf.analysis.scores import match_scores, read_scores

    if len(model_dirs) > len(PALETTE):
        raise UserError(f"--model_dir: {len(model_dirs)} runs are more than {len(PALETTE)} colors.")
    # Files are read before anything is computed, so that mistakes in them are reported first.
    pairs, corrupted_texts, minimal_pairs = (
        read(FLAGS[flag].value, FLAGS.encoding) if FLAGS[flag].value else []
        for flag, read in (
            ("pairs", read_pairs),
            ("corrupted_texts", read_corrupted_texts),
            ("minimal_pairs", read_minimal_pairs),
        )
    )
    runs = {model_dir: read_run(name, model_dir) for name, model_dir in model_dirs.items()}
    scores = [score for folder in FLAGS.scores for score in read_scores(folder)]
    findings = Findings(
        spaces=_spaces(presets, pairs) if FLAGS.pairs else {},
        detections=_detections(presets, corrupted_texts),
        minimal_pairs=_minimal_pairs(presets, minimal_pairs) if FLAGS.minimal_pairs else {},
        scores=match_scores(scores, presets, runs),
        held_out={
            name: measure_run(model_dir, FLAGS.data, batch_size=FLAGS.batch_size)
            for name, model_dir in model_dirs.items()
            if FLAGS.data
        },
        runs=list(runs.values()),
    )
    return write_comparison(FLAGS.output_dir, findings, FLAGS.x_axis, FLAGS.seed)


def _named(flag: str) -> dict[str, str]:
    """What a flag lists, by its names; the folder's own where none is given."""
    named = {}
    for value in FLAGS[flag].value:
        name, equals, directory = value.partition("=")
        if not equals or files.is_dir(value):
            directory = value
            parent, name = os.path.split(files.absolute(value))
            name = os.path.basename(parent) if name == "preset" else name
        if not files.is_dir(directory):
            raise UserError(f"--{flag}={directory} is not a folder.")
        if name in named:
            raise UserError(
                f"--{flag}: two are called {name!r}: give them names, --{flag}=NAME=DIR."
            )
        named[name] = directory
    return named


def _spaces(presets: dict[str, str], pairs: Any) -> dict[str, Any]:
    from cocolm_tf.analysis.inputs import sample_texts
    from cocolm_tf.analysis.sentence_space import SentenceEncoder, describe_space

    texts = list(dict.fromkeys(pairs.first + pairs.second))[: FLAGS.texts]
    if FLAGS.corpus:
        texts = sample_texts(FLAGS.corpus, FLAGS.texts, FLAGS.seed, FLAGS.encoding)
    if len(texts) < 2:
        raise UserError(f"--pairs={FLAGS.pairs} has no two different sentences: give --corpus.")
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


def _detections(presets: dict[str, str], texts: list) -> dict[str, Any]:
    from cocolm_tf.analysis.detection import detect, detect_in_texts
    from cocolm_tf.training.preset import load_pretrained

    detections: dict[str, Any] = {}
    for name, preset in presets.items() if FLAGS.data or texts else ():
        loaded = load_pretrained(preset, FLAGS.precision)
        if loaded[0].copy_head is None:
            print(f"{name} has no copy head, and so no part in detection.")
            continue
        for corruption in FLAGS.corruption if FLAGS.data else ():
            if corruption == "auxiliary" and loaded[0].auxiliary is None:
                print(f"{name} has no auxiliary model to replace tokens.")
                continue
            found = detect(*loaded, FLAGS.data, corruption, batch_size=FLAGS.batch_size, name=name)
            detections.setdefault(corruption, {})[name] = found
        if texts:
            found = detect_in_texts(*loaded, texts, FLAGS.batch_size, name)
            detections.setdefault("texts", {})[name] = found
    return detections


def _minimal_pairs(presets: dict[str, str], pairs: list) -> dict[str, dict[str, dict[str, float]]]:
    from cocolm_tf.analysis.minimal_pairs import accuracies, score_sentences, scoring_methods
    from cocolm_tf.training.preset import load_pretrained

    sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    results = {}
    for name, preset in presets.items():
        loaded = load_pretrained(preset, FLAGS.precision)
        scores = {}
        for method in scoring_methods(loaded[0]):
            found = score_sentences(*loaded, sentences, method, name)
            scores[method] = (found[: len(pairs)], found[len(pairs) :])
        if scores:
            results[name] = accuracies(pairs, scores)
        else:
            print(f"{name} has no head to score minimal pairs with.")
    return results


if __name__ == "__main__":
    program.run(main)
