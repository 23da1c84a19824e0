"""Vocabularies in the format of Hugging Face's `tokenizers`, `tokenizer.json`: export and import.

A `tokenizer.json` is a list of steps. What `normalization.normalize` does by substitution is there
a sequence of `Replace` that insert or remove single spaces; SentencePiece's rule for characters is
`Nmt`, `NFKC` and its own table; and its BPE model is one of merges. The ids are the same, except

- where a word that begins with punctuation leaves its "▁" alone although the vocabulary has pieces
  of "▁" and that punctuation: `tokenizers` keeps the "▁", the tokenizer here drops it;
- where two merges that make the same piece compete within a word;
- for accents that stack up on one letter or are no letter's, and, of an uncased vocabulary, for a
  capital sigma that ends a word behind what is no letter;
- for pieces of the SentencePiece model that the dictionary lacks, which are `<unk>` here: they have
  ids beyond the vocabulary; and for those of the dictionary that the model lacks, which are known
  here alone where SentencePiece leaves them whole;
- for a text that spells out a special token, unless `Tokenizer.encode_special_tokens` is set.
"""

import base64
import collections
import re
from collections.abc import Iterator, Mapping
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN,
    END_TOKEN_ID,
    MASK_TOKEN,
    PAD_TOKEN,
    START_TOKEN,
    START_TOKEN_ID,
    UNKNOWN_TOKEN,
    Dictionary,
)
from cocolm_tf.tokenization.normalization import OTHER_SPACE, PUNCTUATION
from cocolm_tf.tokenization.segmenter import WORD_START
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import NORMALIZATIONS

_SPECIAL_TOKENS = (START_TOKEN, PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN, MASK_TOKEN)
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_Json = dict[str, Any]
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}

# The classes of `normalization`, for Oniguruma.
_P = PUNCTUATION.replace(r"\pP", r"\p{P}")
_NO_LETTER = r"[^\p{L}\p{N}_]|$"
_CASED = r"\p{Lu}\p{Ll}\p{Lt}"
# Characters that `Nmt` or `NFKC` changes and SentencePiece's rule of that name does not: they are
# replaced meanwhile by code points that no text has.
_PROTECTED = {"\u200d": "\ufdd1", "\uff5e": "\ufdd2"}
# What continues a letter's cluster, and a code point that no text has to part them.
_MARKS = r"\p{M}\x{200c}\x{200d}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}"
_APART = "\ufdd3"


def to_hugging_face(tokenizer: CocoLMTokenizer) -> tuple[_Json, list[str]]:
    """Writes a tokenizer as a `tokenizer.json`.

    Its ids are the tokenizer's, with the exceptions in the module's docstring. `<s>` and `</s>` are
    added around texts and between those of a pair, as models take them.

    Args:
        tokenizer: One with a BPE vocabulary.

    Returns:
        The content of the file, for `json.dump`; and a line for each inexactness that this
            vocabulary has besides.

    Raises:
        UserError: If the SentencePiece model is no BPE model, or has pieces that are not merged
            from others.

    Example:
    ```python
    content, notes = to_hugging_face(tokenizer)
    with open("/tmp/tokenizer.json", "w") as file:
        json.dump(content, file)
    tokenizers.Tokenizer.from_file("/tmp/tokenizer.json").encode("The cat sat.").ids
    ```
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UserError("the vocabulary's SentencePiece model is no BPE model: it has no merges.")
    ids = {token: id for id, token in enumerate(tokenizer.get_vocabulary())}
    for piece in model.pieces:
        if piece.type == _Piece.USER_DEFINED:
            raise UserError(
                f"the vocabulary's piece {piece.piece!r} is defined by the user: it has no merges."
            )
    normal = [p for p in model.pieces if p.type == _Piece.NORMAL]
    made = [p.piece for p in model.pieces if p.type in (_Piece.NORMAL, _Piece.BYTE)]
    without_id = [piece for piece in made if piece not in ids]
    notes = []
    if without_id:
        notes.append(
            f"{len(without_id)} pieces of the SentencePiece model are not in the dictionary, such "
            f"as {without_id[0]!r}: they get ids from {len(ids)} on, and are <unk> here"
        )
    known = {*made, *_SPECIAL_TOKENS}
    if unmade := [token for token in ids if token not in known]:
        notes.append(
            f"{len(unmade)} pieces of the dictionary are not in the SentencePiece model, such as "
            f"{unmade[0]!r}: single characters are known everywhere, others nowhere"
        )
    vocabulary = ids | {piece: len(ids) + number for number, piece in enumerate(without_id)}
    special = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": token == MASK_TOKEN,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in _SPECIAL_TOKENS
    ]
    byte_fallback = model.trainer_spec.byte_fallback
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *_preparation(tokenizer.lowercase),
                *_characters(model.normalizer_spec),
                *_word_starts([piece.piece for piece in normal], byte_fallback),
            ],
        },
        "pre_tokenizer": _SPLIT,
        "post_processor": _post_processor(),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace(WORD_START, " ", regex=False),
                *([{"type": "ByteFallback"}] if byte_fallback else []),
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN_TOKEN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))),
            "merges": _merges(normal),
        },
    }
    return content, notes


def from_hugging_face(content: Any) -> tuple[CocoLMTokenizer, list[str]]:
    """Makes a tokenizer of a `tokenizer.json`.

    It takes BPE models over characters with "▁" where words begin: as `to_hugging_face` writes
    them, as they are converted from SentencePiece models, and as the trainer of `tokenizers` makes
    them with `Metaspace`. Words get the same pieces; texts are prepared as for the released models.

    Args:
        content: What `json.load` read.

    Returns:
        The tokenizer, and a line for each difference from the original.

    Raises:
        UserError: If it is no `tokenizer.json`, or one of another kind, and why.

    Example:
    ```python
    with open("/tmp/tokenizer.json") as file:
        tokenizer, notes = from_hugging_face(json.load(file))
    ```
    """
    try:
        model = content["model"]
        if model["type"] != "BPE":
            raise UserError(f"it has a {model['type']} model; only BPE models can be read.")
        vocabulary = dict(model["vocab"])
        merges = [
            tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
            for merge in model["merges"]
        ]
        special = {token["content"] for token in content["added_tokens"] or [] if token["special"]}
        normalizers = list(_flattened(content["normalizer"], "normalizers"))
        splitters = list(_flattened(content["pre_tokenizer"], "pretokenizers"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("it is no tokenizer.json of Hugging Face's tokenizers.") from error
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(
                f"its model has {key}={model[key]!r}, for which SentencePiece has none."
            )
    byte_fallback = bool(model.get("byte_fallback"))
    special |= {*_SPECIAL_TOKENS, model.get("unk_token")}
    pieces = {piece: id for piece, id in vocabulary.items() if piece not in special}
    if not any(piece.startswith(WORD_START) for piece in pieces):
        raise UserError(
            f"none of its pieces begins with {WORD_START!r}, as pieces that begin words do in "
            "SentencePiece: it is one over bytes, or marks words in another way."
        )
    is_exact, rule, charsmap, lowercase = _rule(normalizers)
    notes = []
    if spaces := {piece for piece in pieces if len(piece.split()) != 1 or piece != piece.strip()}:
        notes.append(f"{len(spaces)} pieces with white space are left out: words have none")
        pieces = {piece: id for piece, id in pieces.items() if piece not in spaces}
        merges = [
            merge for merge in merges if "".join(merge) in pieces and spaces.isdisjoint(merge)
        ]
    if not is_exact or splitters != [_SPLIT]:
        notes.append("texts are now prepared as for the released models: see --help")
    proto = _proto(pieces, merges, byte_fallback, rule, charsmap)
    ordered = sorted(pieces, key=lambda piece: (pieces[piece], piece))
    tokenizer = CocoLMTokenizer(proto, Dictionary.of(ordered), lowercase)
    if any(vocabulary.get(token) != id for id, token in enumerate(tokenizer.get_vocabulary())):
        notes.append("ids are renumbered: <s>, <pad>, </s>, <unk>, the pieces, <mask>")
    return tokenizer, notes


# --- Export ---


def _preparation(lowercase: bool) -> list[_Json]:
    """The steps of `normalization.normalize`."""
    lowering = [
        _replace("\x00", "\ufffd"),
        # `Lowercase` looks at one character, and a sigma's form depends on its neighbors.
        _replace(rf"(?<=[{_CASED}])Σ(?![{_CASED}])", "ς"),
        {"type": "Lowercase"},
    ]
    return [
        *(lowering if lowercase else []),
        _replace("``|''", '"'),
        _replace("[‘’´]", "'"),
        _replace("[“”]", '"'),
        _replace("[—–]", "-"),
        _replace(rf"[ {OTHER_SPACE}]+", " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
        _replace(rf"(?:\A| )[{_P}]+\K(?=[^{_P} ])", " "),
        _replace(rf"(?<=[^{_P} ])(?=[{_P}]+(?: |\z))", " "),
        _replace(rf"(?<=') (?=(?:[smdtSMDT]|ll|re|ve)(?:{_NO_LETTER}))", ""),
        _replace(rf"(?<=' LL|' RE|' VE)(?={_NO_LETTER})", " "),
        _replace("(?<=') (?=(?:LL|RE|VE) )", ""),
    ]


def _characters(spec: Any) -> list[_Json]:
    """SentencePiece's normalization of characters, and of the spaces that it makes."""
    steps = []
    if spec.name in NORMALIZATIONS and spec.name != "identity":
        is_nmt = spec.name.startswith("nmt_")
        if is_nmt:
            steps += [_replace("\u061c", " ")]
            steps += [_replace(character, stand_in) for character, stand_in in _PROTECTED.items()]
            steps += [{"type": "Nmt"}]
        steps += [{"type": "NFKC"}]
        if is_nmt:
            steps += [_replace(stand_in, character) for character, stand_in in _PROTECTED.items()]
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        precompiled = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        # `Precompiled` takes what a letter becomes for all of its cluster, and loses the marks.
        apart = [
            _replace(rf"(?<=\p{{L}})(?=[{_MARKS}])", _APART),
            precompiled,
            _replace(_APART, ""),
        ]
        steps += apart if spec.name.endswith("_cf") else [precompiled]
    return [
        *steps,
        _replace(" {2,}", " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]


def _word_starts(pieces: list[str], byte_fallback: bool) -> list[_Json]:
    """Marks the beginnings of words, except where the mark would stand alone before punctuation."""
    marked = sorted({piece[1] for piece in pieces if re.match(f"{WORD_START}.", piece)})
    known = sorted(piece for piece in pieces if len(piece) == 1)
    steps = [{"type": "Prepend", "prepend": WORD_START}, _replace(" ", f" {WORD_START}")]
    dropped = rf"(?=[{_P}])(?!{_one_of(marked)})"
    if byte_fallback:  # Punctuation without a piece is written in bytes.
        dropped += f"(?={_one_of(known)})"
    return [*steps, _replace(f"{WORD_START}{dropped}", "")]


def _one_of(characters: list[str]) -> str:
    return "[" + "".join(rf"\x{{{ord(character):x}}}" for character in characters) + "]"


def _merges(pieces: list[Any]) -> list[list[str]]:
    """Every way to merge a piece from two others, in SentencePiece's order of preference."""
    known = {piece.piece for piece in pieces}
    merges = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        ways = list(_ways(piece.piece, known))
        if len(piece.piece) > 1 and not ways:
            raise UserError(f"the vocabulary's piece {piece.piece!r} is merged from no other two.")
        merges += map(list, ways)
    return merges


def _ways(piece: str, known: Mapping[str, Any] | set[str]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in known and piece[cut:] in known:
            yield piece[:cut], piece[cut:]


def _post_processor() -> _Json:
    def token(name: str, segment: int) -> _Json:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    ids = {START_TOKEN: START_TOKEN_ID, END_TOKEN: END_TOKEN_ID}
    start, end = token(START_TOKEN, 0), token(END_TOKEN, 0)
    return {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, end, end, second, end],
        "special_tokens": {
            name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ids.items()
        },
    }


def _replace(pattern: str, content: str, regex: bool = True) -> _Json:
    return {
        "type": "Replace",
        "pattern": {"Regex" if regex else "String": pattern},
        "content": content,
    }


# --- Import ---


def _flattened(steps: _Json | None, key: str) -> Iterator[_Json]:
    if steps is None:
        return
    if steps["type"] == "Sequence":
        for step in steps[key]:
            yield from _flattened(step, key)
    else:
        yield steps


def _rule(normalizers: list[_Json]) -> tuple[bool, str, bytes, bool]:
    """Recognizes normalizers: ours or not, SentencePiece's rule and its table, lowercase or not."""
    lowercase = any(step["type"] == "Lowercase" for step in normalizers)
    names = {step["type"] for step in normalizers}
    foreign = names - {"Nmt", "NFKC", "Precompiled", "Lowercase", "Replace", "Prepend", "Strip"}
    if foreign:
        raise UserError(f"its normalizer has {min(foreign)}, for which SentencePiece has no rule.")
    rule = "identity"
    if "NFKC" in names:
        rule = "nmt_nfkc" if "Nmt" in names else "nfkc"
    charsmap = b""
    for step in normalizers:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
    spec = _normalizer_spec(rule)
    for name in NORMALIZATIONS:
        known = _normalizer_spec(name)
        if charsmap and known.precompiled_charsmap == charsmap:
            rule, spec = name, known
    if charsmap and spec.precompiled_charsmap != charsmap:
        rule, spec.precompiled_charsmap = "user_defined", charsmap
        spec.name = rule
    written = [*_preparation(lowercase), *_characters(spec)]
    return normalizers[: len(written)] == written, rule, spec.precompiled_charsmap, lowercase


def _normalizer_spec(rule: str) -> Any:
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    model = sentencepiece_model_pb2.ModelProto.FromString(normalizer.serialized_model_proto())
    return model.normalizer_spec


def _proto(
    pieces: dict[str, int],
    merges: list[tuple[str, ...]],
    byte_fallback: bool,
    rule: str,
    charsmap: bytes,
) -> bytes:
    """The SentencePiece model with these merges."""
    rank: dict[str, int] = {}
    listed = collections.Counter()
    for number, merge in enumerate(merges):
        made = "".join(merge)
        listed[made] += 1
        if rank.setdefault(made, number) + listed[made] != number + 1:
            raise UserError(
                f"its merges make {made!r} in several ways, with others in between: SentencePiece "
                "has one order of pieces."
            )
    is_byte = re.compile("<0x[0-9A-F]{2}>").fullmatch
    bytes_ = [piece for piece in pieces if byte_fallback and is_byte(piece)]
    if byte_fallback and len(bytes_) != 256:
        raise UserError(f"it has byte_fallback, and pieces for {len(bytes_)} of the 256 bytes.")
    normal = {piece: id for piece, id in pieces.items() if piece not in set(bytes_)}
    ranks = {merge: number for number, merge in enumerate(merges)}
    for piece in normal:
        # SentencePiece merges whatever makes a piece. Other ways than the listed ones never come
        # up if the listed ones make the piece: what is inside it does not depend on what is around.
        ways = sum(1 for _ in _ways(piece, normal))
        if len(piece) > 1 and ways != listed[piece] and _merged(piece, ranks) != [piece]:
            raise UserError(
                f"its piece {piece!r} can be made of two others in {ways} ways, not all of them "
                f"among its merges, and these make {' '.join(_merged(piece, ranks))!r} of it: "
                "SentencePiece merges whatever makes a piece."
            )
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = byte_fallback
    model.trainer_spec.unk_id = 0
    for name in ("bos_id", "eos_id", "pad_id"):
        setattr(model.trainer_spec, name, -1)
    model.normalizer_spec.CopyFrom(_normalizer_spec("identity" if rule == "user_defined" else rule))
    model.normalizer_spec.name = rule
    model.normalizer_spec.precompiled_charsmap = charsmap
    merged = sorted(rank.keys() & normal.keys(), key=rank.__getitem__)
    single = sorted(normal.keys() - rank.keys(), key=normal.__getitem__)
    model.pieces.add(piece="<unk>", score=0, type=_Piece.UNKNOWN)
    for piece in bytes_:
        model.pieces.add(piece=piece, score=0, type=_Piece.BYTE)
    for number, piece in enumerate([*merged, *single]):
        model.pieces.add(piece=piece, score=-number, type=_Piece.NORMAL)
    return model.SerializeToString()


def _merged(text: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """Merges the characters of a text as `tokenizers` does."""
    parts = list(text)
    while len(parts) > 1:
        pairs = zip(parts, parts[1:], strict=False)
        rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairs))
        if rank == len(ranks):
            break
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return parts
