"""The tokenizer of COCO-LM models, as a KerasHub layer."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import sentencepiece
import tensorflow as tf
from keras_hub.src.utils.preset_utils import KerasPresetLoader
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN,
    END_TOKEN_ID,
    MASK_TOKEN,
    PAD_TOKEN,
    PAD_TOKEN_ID,
    START_TOKEN,
    START_TOKEN_ID,
    UNKNOWN_TOKEN,
    UNKNOWN_TOKEN_ID,
    Dictionary,
)
from cocolm_tf.tokenization.graph import TokenizerGraph
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.offsets import TokenOffsets
from cocolm_tf.tokenization.segment_packing import pack_segments, to_ragged
from cocolm_tf.tokenization.segmenter import WORD_START

CONFIG_FILENAME = "tokenizer.json"
MODEL_FILENAME = "vocabulary.spm"
DICTIONARY_FILENAME = "dict.txt"
# KerasHub's names in a preset for the last two.
ASSETS_FOLDER = os.path.join("assets", "tokenizer")


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTokenizer(keras_hub.tokenizers.SentencePieceTokenizer):
    """Turns raw text into the ids that COCO-LM models take, in a TensorFlow graph.

    Texts are prepared as for the released models (see `normalization.normalize`), segmented by
    SentencePiece, and their pieces looked up in a dictionary. With a released `sp.model` and
    `dict.txt` the ids are the released tokenizer's. No special tokens are added: `pack` does that.

    A string gives a rank 1 int32 tensor. A batch gives a list of lists when called eagerly and a
    ragged tensor in a `tf.data` pipeline or a `tf.function`, as other KerasHub tokenizers do. With
    a `sequence_length` both give a dense tensor, padded or truncated to it.

    Args:
        proto: Path of a SentencePiece model, or its bytes.
        dictionary: Path of a fairseq `dict.txt` (a piece and a count on each line), a
            `Dictionary`, or the pieces in the order of their ids, without the special tokens.
            None takes the SentencePiece model's own pieces, in its order.
        lowercase: Whether texts are lowercased first, as an uncased vocabulary needs.
        sequence_length: How long every row becomes; None leaves rows as long as they are.
        **kwargs: As for `keras.layers.Layer`.

    Attributes:
        start_token_id: 0, `<s>`, which BERT calls [CLS].
        pad_token_id: 1, `<pad>`, the padding token.
        end_token_id: 2, `</s>`, which BERT calls [SEP].
        unk_token_id: 3, `<unk>`.
        mask_token_id: `<mask>`, the last id.

    Raises:
        UserError: If a file is missing or malformed, or the model's pieces reach across spaces.

    Example:
    ```python
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The cat sat on the mat.", "It slept."]),
        model_prefix="/tmp/sp",
        model_type="bpe",
        vocab_size=30,
    )
    tokenizer = CocoLMTokenizer("/tmp/sp.model")  # a released one has a dict.txt too
    tokenizer("The cat sat.")  # a rank 1 int32 tensor
    tokenizer(["The cat sat.", "It slept."])  # a list of two lists
    tokenizer.detokenize(tokenizer("The cat sat."))  # "The cat sat ."
    tf.data.Dataset.from_tensor_slices(["The cat sat."]).map(tokenizer)
    ```
    """

    start_token, start_token_id = START_TOKEN, START_TOKEN_ID
    pad_token, pad_token_id = PAD_TOKEN, PAD_TOKEN_ID
    end_token, end_token_id = END_TOKEN, END_TOKEN_ID
    unk_token, unk_token_id = UNKNOWN_TOKEN, UNKNOWN_TOKEN_ID
    mask_token = MASK_TOKEN

    def __init__(
        self,
        proto: str | bytes | os.PathLike[str] | None = None,
        dictionary: Dictionary | str | os.PathLike[str] | Sequence[str] | None = None,
        lowercase: bool = False,
        sequence_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.lowercase = lowercase
        self._given_dictionary = _as_dictionary(dictionary)
        super().__init__(
            proto=proto, sequence_length=sequence_length, add_bos=False, add_eos=False, **kwargs
        )
        if self.compute_dtype == "string":
            raise ValueError("CocoLMTokenizer gives ids: dtype must be an integer type.")
        self.file_assets = [MODEL_FILENAME, DICTIONARY_FILENAME]

    def set_proto(self, proto: str | bytes | os.PathLike[str] | None) -> None:
        """Sets the SentencePiece model, as for the class; None leaves the tokenizer without one."""
        self._dictionary = self._graph = self.mask_token_id = None
        if isinstance(proto, os.PathLike):
            proto = os.fspath(proto)
        try:
            super().set_proto(proto)
            if proto is None:
                return
            processor = sentencepiece.SentencePieceProcessor(model_proto=self.proto)
        except OSError as error:
            raise UserError(f"{proto}: {error.strerror}.") from error
        except (RuntimeError, tf.errors.OpError) as error:
            raise UserError(f"{_name(proto)} is not a SentencePiece model.") from error
        _check_model(processor, _name(proto))
        self._dictionary = self._given_dictionary or Dictionary.of(_normal_pieces(processor))
        self._graph = TokenizerGraph(self.proto, self._dictionary, self.lowercase)
        self.mask_token_id = self.vocabulary_size() - 1

    def tokenize(self, inputs: Any) -> Any:
        """Turns texts into ids; what calling the tokenizer does.

        Args:
            inputs: A string, a list of strings, or a string tensor of rank 0 or 1. UTF-8;
                invalid bytes become U+FFFD.

        Returns:
            The ids, without special tokens, in the form that the class describes.

        Raises:
            ValueError: If the inputs have another rank, or no vocabulary has been set.
        """
        self._check_vocabulary()
        return self._tokenize_tf(as_string_tensor(inputs))

    @preprocessing_function
    def _tokenize_tf(self, texts: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        is_batched = _is_batch(texts)
        ids = self._graph.tokenize(texts if is_batched else texts[tf.newaxis])
        ids = tf.cast(ids, self.compute_dtype)
        if self.sequence_length:
            ids = ids.to_tensor(PAD_TOKEN_ID, shape=[None, self.sequence_length])
        return ids if is_batched else ids[0]

    def tokenize_with_offsets(self, inputs: Any) -> TokenOffsets:
        """Turns texts into ids, and says which characters of the text each id stands for.

        Args:
            inputs: As for `tokenize`.

        Returns:
            `[B, (N)]` ragged tensors, or `[N]` tensors for a single text: see `TokenOffsets`. No
            `sequence_length` applies.

        Example:
        ```python
        text = "“The cat” sat."
        ids, starts, ends, words = tokenizer.tokenize_with_offsets(text)
        [text[start:end] for start, end in zip(starts, ends)]
        ```
        """
        self._check_vocabulary()
        texts = as_string_tensor(inputs)
        is_batched = _is_batch(texts)
        offsets = self._graph.tokenize_with_offsets(texts if is_batched else texts[tf.newaxis])
        return offsets if is_batched else TokenOffsets(*(part[0] for part in offsets))

    def detokenize(self, inputs: Any) -> Any:
        """Turns ids back into text, as `normalization.normalize` had prepared it.

        Args:
            inputs: The ids of a text or of a batch: lists, or a dense or ragged integer tensor.

        Returns:
            A string or a list of strings; string tensors in a graph. Special tokens are left out,
            except that an unknown one shows as "⁇".

        Example:
        ```python
        tokenizer.detokenize(tokenizer(["The cat sat."]))  # ["The cat sat ."]
        ```
        """
        self._check_vocabulary()
        return self._detokenize_tf(inputs)

    @preprocessing_function
    def _detokenize_tf(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        ids, is_batched = to_ragged(ids)
        texts = self._graph.detokenize(ids)
        return texts if is_batched else texts[0]

    def pack(
        self, first: Any, second: Any | None = None, *, sequence_length: int
    ) -> dict[str, tf.Tensor]:
        """Lays out ids as a model takes them: see `segment_packing.pack_segments`.

        Args:
            first: The ids of texts.
            second: The ids of the second texts of pairs.
            sequence_length: S, how long every row becomes.

        Returns:
            `token_ids`, `[B, S]` int32, and `padding_mask`, `[B, S]` bool.

        Example:
        ```python
        features = tokenizer.pack(tokenizer(["The cat sat."]), sequence_length=16)
        ```
        """
        return pack_segments(first, second, sequence_length=sequence_length)

    def graph_module(self) -> TokenizerGraph:
        """The computation as a `tf.Module`, which a SavedModel holds to save the vocabulary too."""
        self._check_vocabulary()
        return self._graph

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of everything that decides which ids a text gets."""
        self._check_vocabulary()
        parts = [self.proto, "\n".join(self._dictionary.pieces).encode()]
        digest = hashlib.sha256(b"lowercase" if self.lowercase else b"cased")
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def vocabulary_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self.get_vocabulary())

    def get_vocabulary(self) -> list[str]:
        """Every token at the index that is its id."""
        self._check_vocabulary()
        return list(self._dictionary.tokens)

    def id_to_token(self, id: int) -> str:
        """The token of an id; ValueError if there is no such id."""
        self._check_vocabulary()
        if not 0 <= id < len(self._dictionary.tokens):
            raise ValueError(f"id is {id}; ids go from 0 to {len(self._dictionary.tokens) - 1}.")
        return self._dictionary.tokens[id]

    def token_to_id(self, token: str) -> int:
        """The id of a piece, such as "▁cat", or special token; `<unk>`'s if there is none."""
        self._check_vocabulary()
        return self._dictionary.token_ids.get(token, UNKNOWN_TOKEN_ID)

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order of their ids."""
        return [START_TOKEN, PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN, MASK_TOKEN]

    @property
    def special_token_ids(self) -> list[int]:
        """The ids of `special_tokens`."""
        self._check_vocabulary()
        return [self.token_to_id(token) for token in self.special_tokens]

    @property
    def byte_token_ids(self) -> list[int]:
        """The ids of pieces that stand for a byte, if the vocabulary has byte fallback."""
        self._check_vocabulary()
        byte_pieces = self._graph.byte_pieces
        return [id for id, token in enumerate(self._dictionary.tokens) if token in byte_pieces]

    def save_assets(self, dir_path: str) -> None:
        """Writes the SentencePiece model and the dictionary into a folder."""
        self._check_vocabulary()
        with open(os.path.join(dir_path, MODEL_FILENAME), "wb") as file:
            file.write(self.proto)
        self._dictionary.write(os.path.join(dir_path, DICTIONARY_FILENAME))

    def load_assets(self, dir_path: str) -> None:
        """Reads what `save_assets` wrote."""
        self._given_dictionary = Dictionary.read(os.path.join(dir_path, DICTIONARY_FILENAME))
        self.set_proto(os.path.join(dir_path, MODEL_FILENAME))

    def get_config(self) -> dict[str, Any]:
        """The configuration; the vocabulary itself is saved as assets."""
        config = super().get_config()
        del config["add_bos"], config["add_eos"]
        return {**config, "dictionary": None, "lowercase": self.lowercase}

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike[str], config_file: str = CONFIG_FILENAME, **kwargs: Any
    ) -> Self:
        """Loads a tokenizer that `save_to_preset` wrote, on its own or as part of a model's preset.

        Args:
            preset: A folder, or a handle as KerasHub takes them (`kaggle://`, `hf://`, `gs://`).
            config_file: The file in it that describes the tokenizer.
            **kwargs: Overrides of the saved configuration, such as `sequence_length`.

        Example:
        ```python
        tokenizer.save_to_preset("/tmp/vocabulary")
        CocoLMTokenizer.from_preset("/tmp/vocabulary")
        ```
        """
        # KerasHub's own would need the configuration of a model, to find the class.
        loader = KerasPresetLoader(os.fspath(preset), config={})
        return loader.load_tokenizer(cls, config_file, **kwargs)


def _is_batch(texts: tf.Tensor) -> bool:
    if texts.shape.rank not in (0, 1):
        raise ValueError(
            f"CocoLMTokenizer takes a string or a batch of strings, not shape {texts.shape}."
        )
    return texts.shape.rank == 1


def _as_dictionary(
    dictionary: Dictionary | str | os.PathLike[str] | Sequence[str] | None,
) -> Dictionary | None:
    if dictionary is None or isinstance(dictionary, Dictionary):
        return dictionary
    if isinstance(dictionary, str | os.PathLike):
        return Dictionary.read(dictionary)
    return Dictionary.of(dictionary)


def _name(proto: str | bytes) -> str:
    return proto if isinstance(proto, str) else "proto"


def _normal_pieces(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [
        processor.id_to_piece(id)
        for id in range(processor.vocab_size())
        if not (processor.is_unknown(id) or processor.is_control(id) or processor.is_unused(id))
    ]


def _check_model(processor: sentencepiece.SentencePieceProcessor, name: str) -> None:
    """Checks that segmenting word by word gives what segmenting the whole text would."""
    for piece in _normal_pieces(processor):
        if WORD_START in piece.lstrip(WORD_START):
            raise UserError(
                f"{name}: piece {piece!r} reaches across a space; "
                "train the model with split_by_whitespace=true."
            )
    if not processor.encode("a", out_type=str)[0].startswith(WORD_START):
        raise UserError(
            f"{name} does not mark where words begin; train the model with add_dummy_prefix=true."
        )
