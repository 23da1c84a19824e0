"""MCL pretraining: a multi-perspective course learner (Chen et al., Findings of ACL 2023).

The paper's generator is the auxiliary model here, its discriminator the main model. The abstract
and the model card are its public sources; what they leave open is an option of `MCLPretrainer`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import keras
import tensorflow as tf

from cocolm_tf.losses import copy_loss, weighted_mean
from cocolm_tf.losses.replicas import sum_over_replicas
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import (
    SamplingTemperature,
    check_sampling,
    gather_positions,
    replace_tokens,
)
from cocolm_tf.modeling.heads import CopyHead, build_head
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel
from cocolm_tf.modeling.measures import Measures, detection_measures, share
from cocolm_tf.modeling.training_step import Batch, Losses, TrainingStep

# The courses by the tasks of the discriminator, which detects replaced, swapped and inserted
# tokens, and the generator's task in each: masked and swapped language modeling.
_GENERATOR_TASKS = {"rtd": "mlm", "std": "slm"}


class Course(NamedTuple):
    """The generator's input [B, S] in a course, and the positions to predict, [B, M]."""

    token_ids: tf.Tensor
    original: tf.Tensor
    is_real: tf.Tensor
    positions: tf.Tensor
    weights: tf.Tensor


class DetectorInput(NamedTuple):
    """The discriminator's input in one course, all [B, S]."""

    token_ids: tf.Tensor
    is_original: tf.Tensor
    is_real: tf.Tensor


Inputs = TypeVar("Inputs", Course, DetectorInput)


class MCLPretrainer(TrainingStep):
    """MCL's generator and discriminator, and the courses that they take; `fit()` trains them.

    Three self-supervision courses: of replaced tokens (the generator learns what `[MASK]` hides,
    and the discriminator to detect its predictions), of swapped tokens (the generator learns the
    original tokens of permuted ones, and the discriminator to detect its predictions) and of
    inserted tokens (the generator fills `[MASK]` inserted between tokens, and the discriminator is
    to detect whatever it put there).

    Two self-correction courses, of replaced and of swapped tokens. Each token is one of four
    kinds: `pos1`, original and detected as original; `pos2`, replaced but detected as original;
    `pos3`, original but detected as replaced; `pos4`, replaced and detected as replaced. The
    generator predicts again at `pos4` alone, all else being as it was. The discriminator detects
    again at `pos2` and `pos3`, with the original tokens at `pos4`.

    Courses are stacked on the batch axis: the generator and the discriminator read all of the
    first three in one pass, and all corrections in another. A task of weight 0 is not built and
    costs nothing.

    The self-correction losses are means over what replicas hold at a time: of a batch that is cut
    into micro-batches, over each of these, and then over all.

    Args:
        backbone: The discriminator.
        auxiliary: The generator.
        mask_token_id: The token that hides another from the generator.
        sampling: Which forward pass of the generator is sampled from; see `CocoLMPretrainer`.
        sampling_temperature: What its logits are divided by before sampling; None for 1.
        mlm_weight: Weight of the loss of masked language modeling.
        slm_weight: Weight of swapped language modeling.
        rtd_weight: Weight of replaced token detection.
        std_weight: Weight of swapped token detection.
        itd_weight: Weight of inserted token detection.
        re_mlm_weight: Weight of masked language modeling's second try. The corrections of a
            course need the course itself.
        re_slm_weight: Weight of swapped language modeling's second try.
        re_rtd_weight: Weight of replaced token detection's second try.
        re_std_weight: Weight of swapped token detection's second try.
        shared_head: Whether one head detects in all courses, instead of one in each.
        revise_all_tokens: Whether the discriminator revises its mistakes about all tokens, or only
            about those that the generator predicted.
        re_slm_masked: Whether the generator sees `[MASK]` where it tries again after swapping,
            instead of the token that came to stand there.
        seed: Decides dropout and sampling.
        logit_chunk_rows: How many positions' logits exist at a time; see `CocoLMPretrainer`.

    A batch is a dict of `token_ids` [B, S] int32, `padding_mask` [B, S] bool, and the inputs of the
    courses taken: `masked_positions` [B, M] int32 and `masked_weights` [B, M] float32 (0 for unused
    positions); `swapped_positions`, `swapped_weights` and `swapped_tokens` [B, M] int32, the tokens
    that come to stand there; `inserted_token_ids` [B, S] int32, `inserted_padding_mask` [B, S]
    bool, `inserted_positions` and `inserted_weights`.

    Example:
    ```python
    sizes = dict(vocabulary_size=1000, num_heads=2, hidden_dim=32, intermediate_dim=64)
    main = CocoLMBackbone(num_layers=2, **sizes)
    auxiliary = MaskedLanguageModel(CocoLMBackbone(num_layers=1, embeddings_of=main, **sizes))
    pretrainer = MCLPretrainer(main, auxiliary, mask_token_id=999)
    pretrainer.compile(keras.optimizers.AdamW(1e-3), clip_norm=2.0)
    pretrainer.fit(dataset, epochs=1, steps_per_epoch=100)
    ```
    """

    # The parts of `CocoLMPretrainer` that this one lacks.
    lm_head = projection = None

    def __init__(
        self,
        backbone: CocoLMBackbone,
        auxiliary: MaskedLanguageModel,
        mask_token_id: int,
        sampling: str = "eval",
        sampling_temperature: SamplingTemperature | None = None,
        mlm_weight: float = 1.0,
        slm_weight: float = 1.0,
        rtd_weight: float = 50.0,
        std_weight: float = 50.0,
        itd_weight: float = 50.0,
        re_mlm_weight: float = 1.0,
        re_slm_weight: float = 1.0,
        re_rtd_weight: float = 20.0,
        re_std_weight: float = 20.0,
        shared_head: bool = False,
        revise_all_tokens: bool = True,
        re_slm_masked: bool = False,
        seed: int = 0,
        logit_chunk_rows: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, dtype=backbone.dtype_policy, **kwargs)
        check_sampling(sampling, auxiliary.backbone.dropout)
        weights = {
            "mlm": mlm_weight,
            "slm": slm_weight,
            "rtd": rtd_weight,
            "std": std_weight,
            "itd": itd_weight,
            "re_mlm": re_mlm_weight,
            "re_slm": re_slm_weight,
            "re_rtd": re_rtd_weight,
            "re_std": re_std_weight,
        }
        self.tasks = tuple(task for task, weight in weights.items() if weight)
        for task, of_generator in _GENERATOR_TASKS.items():
            for correction in (f"re_{of_generator}", f"re_{task}"):
                if correction in self.tasks and task not in self.tasks:
                    raise ValueError(f"{correction}_weight needs {task}_weight: it corrects that.")
        self.loss_weights = {f"{task}_loss": weights[task] for task in self.tasks}
        self.backbone = backbone
        self.auxiliary = auxiliary
        self.sampling_seeds = keras.random.SeedGenerator(seed)
        has_head = {
            "copy_head": shared_head or rtd_weight,
            "swap_head": std_weight and not shared_head,
            "insert_head": itd_weight and not shared_head,
        }
        self.copy_head, self.swap_head, self.insert_head = (
            build_head(CopyHead, backbone, backbone.initializer_range, name=name) if has else None
            for name, has in has_head.items()
        )
        self.built = True

        self.mask_token_id = mask_token_id
        self.sampling = sampling
        self.sampling_temperature = sampling_temperature
        self.revise_all_tokens = revise_all_tokens
        self.re_slm_masked = re_slm_masked
        self.logit_chunk_rows = logit_chunk_rows
        # The number of tokens to correct is known only within the step, where replicas exchange it.
        self.communicates = any(task.startswith("re_") for task in self.tasks)

    def compute(self, batch: Batch, training: bool) -> tuple[Losses, Measures]:
        """The losses and metrics of all courses."""
        courses = self._courses(batch)
        losses, measures, filled = self._fill(courses, training)
        inputs = {
            name: _detector_input(courses[name], token_ids) for name, token_ids in filled.items()
        }
        logits = self._detect(inputs, training)
        for name, read in inputs.items():
            losses[f"{name}_loss"] = copy_loss(logits[name], read.is_original, read.is_real)
            measures |= detection_measures(name, logits[name], read.is_original, read.is_real)
        notebook = {
            name: _kinds(logits[name], inputs[name]) for name in _GENERATOR_TASKS if name in inputs
        }
        for name, kinds in notebook.items():
            measures |= _kind_measures(name, kinds, courses[name])
        corrected, of_corrections = self._correct(courses, inputs, notebook, training)
        return losses | corrected, measures | of_corrections

    # The self-supervision courses.

    def _courses(self, batch: Batch) -> dict[str, Course]:
        """The self-supervision courses: masked, swapped and inserted tokens."""
        original, is_real = batch["token_ids"], batch["padding_mask"]
        courses = {}
        if "mlm" in self.tasks or "rtd" in self.tasks:
            positions, weights = batch["masked_positions"], batch["masked_weights"]
            masked = replace_tokens(original, positions, self.mask_token_id, weights)
            courses["rtd"] = Course(masked, original, is_real, positions, weights)
        if "slm" in self.tasks or "std" in self.tasks:
            positions, weights = batch["swapped_positions"], batch["swapped_weights"]
            tokens = tf.reshape(batch["swapped_tokens"], [-1])
            swapped = replace_tokens(original, positions, tokens, weights)
            courses["std"] = Course(swapped, original, is_real, positions, weights)
        if "itd" in self.tasks:
            positions, weights = batch["inserted_positions"], batch["inserted_weights"]
            inserted, is_real = batch["inserted_token_ids"], batch["inserted_padding_mask"]
            # There was no token, so that none is the original one.
            nothing = replace_tokens(inserted, positions, -1, weights)
            courses["itd"] = Course(inserted, nothing, is_real, positions, weights)
        return courses

    def _fill(
        self, courses: dict[str, Course], training: bool
    ) -> tuple[Losses, Measures, dict[str, tf.Tensor]]:
        """Trains the generator in MLM and SLM, and predicts at the positions of all courses."""
        learned = {
            name: course
            for name, course in courses.items()
            if _GENERATOR_TASKS.get(name) in self.tasks
        }
        sampled = {name: course for name, course in courses.items() if name in self.tasks}
        apart = training and self.sampling == "eval" and self.auxiliary.backbone.dropout
        scored = self._predict(learned, training, score=True, sample=not apart)
        samples = {} if apart else {name: of_course[-1] for name, of_course in scored.items()}
        # Courses without a loss are not in the pass with gradients.
        others = {name: course for name, course in sampled.items() if name not in samples}
        with_dropout = training and self.sampling == "train"
        drawn = self._predict(others, with_dropout, score=False, sample=True)
        samples |= {name: of_course[-1] for name, of_course in drawn.items()}
        losses, measures = {}, {}
        for name, (errors, predictions, *_) in scored.items():
            task, weights = _GENERATOR_TASKS[name], tf.reshape(courses[name].weights, [-1])
            losses[f"{task}_loss"] = weighted_mean(errors, weights)
            right = tf.equal(predictions, _labels(courses[name]))
            measures[f"{task}_accuracy"] = share(right, weights)
        filled = {
            name: replace_tokens(course.original, course.positions, samples[name], course.weights)
            for name, course in sampled.items()
        }
        return losses, measures, filled

    def _predict(
        self, courses: Mapping[str, Course], training: bool, score: bool, sample: bool
    ) -> dict[str, list[tf.Tensor]]:
        """Cross entropies and top-1 tokens, samples, or all of them: [B * M] of each course."""
        if not courses:
            return {}
        draw = self.sampling_seeds.next(), self.temperature_now(self.sampling_temperature)
        stacked = _stacked(courses)
        found = self.auxiliary.predict_tokens(
            {"token_ids": stacked.token_ids, "padding_mask": stacked.is_real},
            stacked.positions,
            [_labels(stacked), tf.reshape(stacked.weights, [-1])] if score else (),
            draw if sample else None,
            self.logit_chunk_rows,
            training,
        )
        parts = zip(*(tf.split(rows, len(courses)) for rows in found), strict=True)
        return dict(zip(courses, map(list, parts), strict=True))

    def _detect(self, courses: Mapping[str, DetectorInput], training: bool) -> dict[str, tf.Tensor]:
        """The discriminator's logits that each token is the original one, [B, S] of each course."""
        if not courses:
            return {}
        stacked = _stacked(courses)
        inputs = {"token_ids": stacked.token_ids, "padding_mask": stacked.is_real}
        hidden = tf.split(self.backbone(inputs, training=training), len(courses))
        heads = {"std": self.swap_head, "itd": self.insert_head}
        return {
            name: (heads.get(name) or self.copy_head)(states)
            for name, states in zip(courses, hidden, strict=True)
        }

    # The self-correction courses.

    def _correct(
        self,
        courses: Mapping[str, Course],
        inputs: Mapping[str, DetectorInput],
        notebook: Mapping[str, dict[str, tf.Tensor]],
        training: bool,
    ) -> tuple[Losses, Measures]:
        """The self-correction courses of both models, by the kinds of tokens in the first."""
        again, revised, mistakes = {}, {}, {}
        for name, kinds in notebook.items():
            course, read, task = courses[name], inputs[name], _GENERATOR_TASKS[name]
            failed = kinds["pos4"]
            if f"re_{task}" in self.tasks:
                hidden = course.token_ids
                if name == "std" and self.re_slm_masked:
                    hidden = self.mask_token_id
                slots = tf.cast(tf.gather(failed, course.positions, batch_dims=1), tf.float32)
                again[name] = course._replace(
                    token_ids=tf.where(failed, hidden, course.original),
                    weights=course.weights * slots,
                )
            if f"re_{name}" in self.tasks:
                restored = tf.where(failed, course.original, read.token_ids)
                revised[name] = read._replace(token_ids=restored)
                mistakes[name] = kinds["pos2"] | kinds["pos3"]
                if not self.revise_all_tokens:
                    mistakes[name] &= _is_chosen(course)
        predictions = self._predict(again, training, score=True, sample=False)
        logits = self._detect(revised, training)
        losses, measures, counts = {}, {}, {}
        for name, (errors, best) in predictions.items():
            task, weights = f"re_{_GENERATOR_TASKS[name]}", tf.reshape(again[name].weights, [-1])
            losses[f"{task}_loss"] = weighted_mean(errors, weights)
            right = tf.equal(best, _labels(again[name]))
            measures[f"{task}_accuracy"] = share(right, weights)
            counts[f"{task}_loss"] = tf.reduce_sum(weights)
        for name, course_logits in logits.items():
            weights = tf.cast(mistakes[name], tf.float32)
            is_original = revised[name].is_original
            losses[f"re_{name}_loss"] = copy_loss(course_logits, is_original, weights)
            right = tf.equal(course_logits > 0, is_original)
            measures[f"re_{name}_accuracy"] = share(right, weights)
            counts[f"re_{name}_loss"] = tf.reduce_sum(weights)
        return _means_over_replicas(losses, counts), measures

    # The interface of the training step.

    def denominators(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The numbers of masked positions, real tokens and, for corrections, sequences."""
        real = tf.reduce_sum(tf.cast(batch["padding_mask"], tf.float32))
        sequences = tf.cast(tf.shape(batch["token_ids"])[0], tf.float32)
        weights = {"rtd_loss": real, "std_loss": real}
        if "mlm" in self.tasks:
            weights["mlm_loss"] = tf.reduce_sum(batch["masked_weights"])
        if "slm" in self.tasks:
            weights["slm_loss"] = tf.reduce_sum(batch["swapped_weights"])
        if "itd" in self.tasks:
            inserted = tf.cast(batch["inserted_padding_mask"], tf.float32)
            weights["itd_loss"] = tf.reduce_sum(inserted)
        return {name: weights.get(name, sequences) for name in self.loss_weights}

    def seed_generators(self) -> Iterator[keras.random.SeedGenerator]:
        """The seed generators of both models' dropout, and that of the samples."""
        yield self.sampling_seeds
        yield self.backbone.seed_generator
        yield self.auxiliary.backbone.seed_generator

    def meter_names(self) -> list[str]:
        """The names of the losses and metrics of the courses taken."""
        names = list(self.loss_weights)
        for task in self.tasks:
            if task.endswith("lm") or task.startswith("re_"):
                names.append(f"{task}_accuracy")
            else:
                names += [f"{task}_accuracy_original", f"{task}_accuracy_replaced"]
                names.append(f"{task}_replacement_rate")
        for course in _GENERATOR_TASKS:
            if course in self.tasks:
                names += [f"{course}_pos{kind}" for kind in (1, 2, 3, 4)]
        return names


def _stacked(courses: Mapping[str, Inputs]) -> Inputs:
    """The inputs of courses as one batch."""
    first, *others = courses.values()
    return type(first)(*(tf.concat(parts, axis=0) for parts in zip(first, *others, strict=True)))


def _labels(course: Course) -> tf.Tensor:
    return gather_positions(course.original, course.positions)


def _detector_input(course: Course, filled: tf.Tensor) -> DetectorInput:
    """The discriminator's input with the generator's predictions; labels compare the tokens."""
    return DetectorInput(filled, tf.equal(filled, course.original), course.is_real)


def _is_chosen(course: Course) -> tf.Tensor:
    nowhere = tf.zeros_like(course.original)
    return replace_tokens(nowhere, course.positions, 1, course.weights) > 0


def _kinds(logits: tf.Tensor, inputs: DetectorInput) -> dict[str, tf.Tensor]:
    """The correction notebook: which tokens are of which of the four kinds, bool [B, S]."""
    is_original, says_original = inputs.is_original, logits > 0
    return {
        "pos1": inputs.is_real & is_original & says_original,
        "pos2": inputs.is_real & ~is_original & says_original,
        "pos3": inputs.is_real & is_original & ~says_original,
        "pos4": inputs.is_real & ~is_original & ~says_original,
    }


def _kind_measures(name: str, kinds: Mapping[str, tf.Tensor], course: Course) -> Measures:
    """The shares of the four kinds among the tokens that the generator predicted."""
    return {
        f"{name}_{kind}": share(tf.gather(where, course.positions, batch_dims=1), course.weights)
        for kind, where in kinds.items()
    }


def _means_over_replicas(losses: Losses, counts: dict[str, tf.Tensor]) -> Losses:
    """Rescales means over each replica's corrections so that their mean is that of all."""
    if not losses:
        return {}
    totals = sum_over_replicas([*counts.values(), tf.ones([])])
    shares = {
        name: tf.math.divide_no_nan(count, total)
        for (name, count), total in zip(counts.items(), totals, strict=False)
    }
    return {name: loss * shares[name] * totals[-1] for name, loss in losses.items()}
