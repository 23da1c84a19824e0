"""The dataset builder and the word counter as pipelines of Apache Beam.

The functions of a chunk are those of `build` and `tokenization.word_counts`, and so are their
results: neither the runner nor its number of workers changes a byte of a dataset. Beam's own
shuffle replaces the processes of one machine and their files.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cocolm_tf import files
from cocolm_tf.data.build import Plan
from cocolm_tf.data.cleaning import Deduplication, split_document_id
from cocolm_tf.data.packing import (
    NO_SHARD,
    TRAIN,
    Part,
    Recipe,
    Record,
    chunk_sequences,
    chunks,
    parts_of,
)
from cocolm_tf.data.shards import Manifest, write_shard
from cocolm_tf.data.shuffle import Run, merged_examples
from cocolm_tf.data.sources import Source
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.word_counts import CUT, count_words

# Beam is an extra, which the functions import themselves.
if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

# The bytes of a shard that are sorted in memory at once.
_SORTED_BYTES = 1 << 28
_RESULT = "beam-result.json"
_USER_ERROR = re.compile(r"UserError: (.*?)(?: \[while running '|$)", re.MULTILINE)

Chunk = tuple[tuple[int, int], list[str]]  # The numbers of its part and its own; its documents.


def build_with_beam(
    source: Source,
    vocabulary_dir: str,
    output_dir: str,
    runner: str,
    options: Sequence[str] = (),
    **arguments: Any,
) -> Manifest:
    """Builds the dataset of `build_shards` by a pipeline; workers read source and vocabulary."""
    # `options` are Beam's own, as "--direct_num_workers=4"; `arguments` those of `build_shards` but
    # for its processes and local files. The runner is one of `source_flags.BEAM_RUNNERS`.
    parsed = _options(runner, options, source, vocabulary_dir, output_dir)
    plan = Plan.of(source, vocabulary_dir, output_dir, **arguments)
    with plan.shard_folders():
        result = _run(
            runner,
            parsed,
            functools.partial(_dataset, source=source, plan=plan),
            files.join(plan.folders[TRAIN], _RESULT),
        )
        counts = Counter({tuple(name): count for kind, name, count in result if kind == "count"})
        plan.check_filled(counts)
        written = {tuple(name): tuple(shard) for kind, name, shard in result if kind == "shard"}
        return plan.finish(written, counts)


def count_words_with_beam(
    source: Source,
    lowercase: bool,
    max_distinct_words: int,
    output_dir: str,
    runner: str,
    options: Sequence[str] = (),
) -> tuple[Counter[str], Counter[str]]:
    """Counts the words of `count_corpus` by a pipeline; characters for those beyond the limit."""
    # The counts come back through a file beside `output_dir`, the folder of the vocabulary.
    parsed = _options(runner, options, source, output_dir)
    build = functools.partial(
        _words, source=source, lowercase=lowercase, max_distinct_words=max_distinct_words
    )
    path = f"{files.absolute(output_dir)}.{_RESULT}"
    with contextlib.ExitStack() as stack:
        if not files.is_remote(path):
            stack.enter_context(files.made_folders(os.path.dirname(path)))
        result = _run(runner, parsed, build, path)
    counts = Counter({name: count for kind, name, count in result if kind == "word"})
    characters = Counter({name: count for kind, name, count in result if kind == "character"})
    for word, count in counts.items():
        for character in word.removeprefix(CUT):
            characters[character] -= count
    return counts, +characters


# --- The pipelines ---


def _dataset(pipeline: "beam.Pipeline", source: Source, plan: Plan) -> list["beam.PCollection"]:
    """From parts to shards: the collections with their counts, sizes and hashes."""
    import apache_beam as beam

    of_chunks, read_counts = _chunks_of(pipeline, plan.parts, source)
    if plan.deduplication is None:
        grouped = of_chunks | "Whole" >> beam.MapTuple(
            lambda numbers, documents: (numbers, {"chunk": [documents], "duplicates": []})
        )
    else:
        duplicates = (
            of_chunks
            | "Keys" >> beam.FlatMap(_keys, plan.deduplication)
            | "SameKey" >> beam.GroupByKey()
            | "Duplicates" >> beam.FlatMap(_all_but_first)
        )
        grouped = {"chunk": of_chunks, "duplicates": duplicates} | "Mark" >> beam.CoGroupByKey()
    packed = grouped | "Pack" >> beam.FlatMap(_packed, plan.recipe).with_outputs(
        "counts", main="runs"
    )
    counts = (
        (read_counts, packed.counts)
        | "AllCounts" >> beam.Flatten()
        | "Sum" >> beam.CombinePerKey(sum)
        | "CountResults" >> beam.MapTuple(lambda name, count: ("count", name, count))
    )
    written = (
        packed.runs
        | "Shuffle" >> beam.GroupByKey()
        | "Write" >> beam.Map(_written_shard, plan.paths)
    )
    return [counts, written]


def _words(
    pipeline: "beam.Pipeline", source: Source, lowercase: bool, max_distinct_words: int
) -> list["beam.PCollection"]:
    """From parts to the counts of words and of all characters."""
    import apache_beam as beam

    of_chunks, _ = _chunks_of(pipeline, parts_of(source), source)
    words = (
        of_chunks
        | "Count" >> beam.FlatMap(lambda chunk: count_words(chunk[1], lowercase).items())
        | "Sum" >> beam.CombinePerKey(sum)
    )
    characters = (
        words
        | "Characters"
        >> beam.FlatMapTuple(lambda word, n: [(letter, n) for letter in word.removeprefix(CUT)])
        | "SumCharacters" >> beam.CombinePerKey(sum)
        | "CharacterResults" >> beam.MapTuple(lambda name, count: ("character", name, count))
    )
    most = (
        words
        | "Most" >> beam.combiners.Top.Of(max_distinct_words, key=lambda counted: counted[::-1])
        | "Each" >> beam.FlatMap(lambda most: most)
        | "WordResults" >> beam.MapTuple(lambda name, count: ("word", name, count))
    )
    return [most, characters]


def _chunks_of(
    pipeline: "beam.Pipeline", parts: Sequence[Part], source: Source
) -> tuple["beam.PCollection", "beam.PCollection"]:
    """The chunks of all parts, each of which may go to another worker; and the sources' counts."""
    import apache_beam as beam

    read = (
        pipeline
        | "Parts" >> beam.Create(parts)
        | "SpreadParts" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, source).with_outputs("counts", main="chunks")
    )
    return read.chunks | "SpreadChunks" >> beam.Reshuffle(), read.counts


def _run(
    runner: str, options: "PipelineOptions", build: Callable[..., Any], path: str
) -> list[tuple[str, Any, Any]]:
    """Runs a pipeline to its end; returns what its collections hold, by way of a file."""
    import apache_beam as beam

    try:
        with beam.Pipeline(runner, options) as pipeline:
            (
                build(pipeline)
                | "Results" >> beam.Flatten()
                | "All" >> beam.combiners.ToList()
                | "WriteResult"
                >> beam.Map(lambda result: files.write_text(path, json.dumps(result)))
            )
        return json.loads(files.read_text(path))
    except UserError as error:
        # Beam adds to it which of its steps it was.
        raise UserError(_USER_ERROR.search(f"UserError: {error}")[1]) from error
    except RuntimeError as error:
        # Of a failure in a worker there is only the text.
        if found := _USER_ERROR.findall(str(error)):
            raise UserError(found[-1]) from error
        raise
    finally:
        files.remove(path)


def _options(runner: str, given: Sequence[str], source: Source, *paths: str) -> "PipelineOptions":
    """Parses Beam's options and refuses unknown ones, which Beam itself ignores."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner={runner} needs Apache Beam: pip install 'cocolm-tf[beam]'."
        ) from error
    if runner == "DataflowRunner":
        names = source.parts if "input" in source.describe() else ()
        for path in (*paths, *names):
            if not files.is_remote(path):
                raise UserError(
                    f"--runner={runner} reads and writes on other machines: give a gs:// path for "
                    f"{path}."
                )
    options = PipelineOptions(list(given))
    known = options.get_all_options()
    if unknown := sorted(
        options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    ):
        raise UserError(f"Apache Beam has no option --{unknown[0]}.")
    return options


# --- In the workers ---


def _read(part: Part, source: Source) -> Iterator[Any]:
    """The chunks of a part, and its counts of bad records."""
    from apache_beam.pvalue import TaggedOutput

    counts: Counter[str] = Counter()
    for number, documents in enumerate(chunks(part.documents(source, counts))):
        yield (part.number, number), documents
    for name, count in counts.items():
        yield TaggedOutput("counts", ((*NO_SHARD, name), count))


def _keys(chunk: Chunk, deduplication: Deduplication) -> list[tuple[int, int]]:
    (part, number), documents = chunk
    return deduplication.chunk_keys(part, number, documents).tolist()


def _all_but_first(group: tuple[int, Iterable[int]]) -> Iterator[tuple[tuple[int, int], int]]:
    _, ids = group
    first = min(ids)
    return ((split_document_id(one)[:2], one) for one in ids if one != first)


def _packed(
    group: tuple[tuple[int, int], dict[str, Iterable[Any]]], recipe: Recipe
) -> Iterator[Any]:
    """The sequences of a chunk, as one run for each shard, and its counts."""
    from apache_beam.pvalue import TaggedOutput

    (part, number), found = group
    (documents,) = found["chunk"]
    dropped = {split_document_id(one)[2] for one in found["duplicates"]}
    records, counts = chunk_sequences(recipe, part, number, documents, dropped)
    for place_of_run, run in itertools.groupby(records, lambda record: record[:2]):
        yield place_of_run, [record[2:] for record in run]
    for count in counts.items():
        yield TaggedOutput("counts", count)


def _written_shard(
    group: tuple[tuple[int, int], Iterable[list[tuple[int, bytes]]]],
    paths: dict[tuple[int, int], str],
) -> tuple[str, tuple[int, int], tuple[int, str]]:
    """Writes a shard, its records in the order of their keys."""
    place, runs = group
    with tempfile.TemporaryDirectory() as scratch:
        examples = merged_examples(_sorted_runs(place, runs, scratch), *place)
        return "shard", place, write_shard(paths[place], examples, scratch)


def _sorted_runs(
    place: tuple[int, int], runs: Iterable[list[tuple[int, bytes]]], folder: str
) -> list[str]:
    """Sorts and spills the records of many runs into few files; returns their paths."""
    paths, records, size = [], [], 0

    def write() -> None:
        path = os.path.join(folder, f"{len(paths)}.run")
        Run.write(path, sorted(records), [], Counter({(*place, "sequences"): len(records)}))
        paths.append(path)
        records.clear()

    for run in runs:
        records += (Record(*place, *record) for record in run)
        size += sum(len(example) for _, example in run)
        if size >= _SORTED_BYTES:
            write()
            size = 0
    if records:
        write()
    return paths
