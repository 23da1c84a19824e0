"""The data of a run: the batches that each of its stages trains and validates on."""

import dataclasses
import sys
from collections.abc import Callable

import tensorflow as tf

from cocolm_tf.data.pipeline import PretrainingData, pieces
from cocolm_tf.data.shards import Manifest
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.distribution import Workers, per_replica_batch
from cocolm_tf.training.stages import Stage, stage_at, stages


class Feed:
    """The batches of a run, shared out over its replicas; refuses stages that do not divide."""

    def __init__(
        self,
        train: PretrainingData,
        config: PretrainingConfig,
        strategy: tf.distribute.Strategy,
        workers: Workers,
        held_out: PretrainingData | None = None,
    ) -> None:
        self.stages = stages(config)
        self._train, self._held_out = train, held_out
        self._strategy, self._workers = strategy, workers
        self._validations: dict[int, tf.data.Dataset] = {}
        for stage in self.stages:
            self._size(stage)
            _warn_of_cuts(train, stage.config.data.sequence_length)
        for stage in self.stages:
            self.validation(stage.begin)

    def training(self, step: int) -> tf.distribute.DistributedDataset:
        """The batches from a step on, of its stage; without end."""
        stage = stage_at(self.stages, step)
        size, data = self._size(stage), _of_stage(self._train, stage)
        first_sequence = self._sequences(stage, step)

        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            # Each of a host's replicas takes one batch a step.
            replicas = context.num_replicas_in_sync // context.num_input_pipelines
            return data.training_batches(
                size,
                step * replicas,
                context.num_input_pipelines,
                context.input_pipeline_id,
                first_sequence,
            )

        return self._strategy.distribute_datasets_from_function(of_host)

    def validation(self, step: int) -> tf.data.Dataset | None:
        """The batches of a validation in the stage of a step; None for no validation."""
        length = stage_at(self.stages, step).config.data.sequence_length
        if self._held_out and length not in self._validations:
            # A batch that fits into memory in training fits in validation. Before a ramp of batch
            # sizes they are as large as after it, so that contrastive losses are comparable.
            of_length = [one for one in self.stages if one.config.data.sequence_length == length]
            stage = max(of_length, key=lambda one: one.config.trainer.batch_size)
            trainer = stage.config.trainer
            self._validations[length] = _of_stage(self._held_out, stage).validation_batches(
                trainer.batch_size // trainer.micro_batches,
                trainer.validation_steps * trainer.micro_batches,
            )
        return self._validations.get(length)

    def sequences_by_dataset(self) -> Callable[[int], dict[str, int]] | None:
        """From a step, the sequences of each of several datasets up to there; None for one."""
        if len(self._train.datasets) == 1:
            return None

        def of_stage(stage: Stage, step: int) -> dict[str, int]:
            return _of_stage(self._train, stage).sequences_by_dataset(
                self._sequences(stage, step), self._workers.count
            )

        def counts(step: int) -> dict[str, int]:
            total = dict.fromkeys((one.pattern for one in self._train.datasets), 0)
            for stage in (stage for stage in self.stages if stage.begin < step):
                before, after = of_stage(stage, stage.begin), of_stage(stage, min(step, stage.end))
                total = {name: n + after[name] - before[name] for name, n in total.items()}
            return {f"sequences/{name}": n for name, n in total.items()}

        return counts

    def shards(self, step: int) -> list[str]:
        """This host's shards, those first that are read at a step."""
        stage = stage_at(self.stages, step)
        paths = _of_stage(self._train, stage).paths_from(
            self._sequences(stage, step), self._workers.count, self._workers.index
        )
        held_out = self._held_out.datasets if self._held_out else ()
        return paths + [path for one in held_out for path in one.paths]

    def manifests(self) -> dict[str, Manifest]:
        """The manifests of the data, by the purpose of each."""
        datasets = self._train.datasets
        names, whole = ["training"], sum(one.weight for one in datasets)
        if len(datasets) > 1:
            names = [
                f"training, {one.weight / whole:.4g} of the sequences, {one.pattern}"
                for one in datasets
            ]
        manifests = {
            name: Manifest.load(one.paths[0]) for name, one in zip(names, datasets, strict=True)
        }
        if self._held_out:
            manifests["validation"] = Manifest.load(self._held_out.datasets[0].paths[0])
        return manifests

    def _sequences(self, stage: Stage, step: int) -> int:
        """How many sequences of a stage's length each host has had by a step of it."""
        batches = (step - stage.begin) * stage.config.trainer.batch_size
        return (stage.first_sequence + batches) // self._workers.count

    def _size(self, stage: Stage) -> int:
        trainer = stage.config.trainer
        return per_replica_batch(trainer.batch_size, trainer.micro_batches, self._strategy)


def _of_stage(data: PretrainingData, stage: Stage) -> PretrainingData:
    return dataclasses.replace(data, sequence_length=stage.config.data.sequence_length)


def _warn_of_cuts(data: PretrainingData, length: int) -> None:
    """Warns how full pieces of longer sequences are: a slightly greater length may hold more."""
    for one in data.datasets:
        if (count := pieces(one.record_length, length)) > 1:
            inner = one.record_length - 2
            print(
                f"{one.pattern}: sequences of up to {one.record_length} tokens are cut into "
                f"{count} of up to {-(-inner // count) + 2} for a length of {length}; "
                f"{-(-inner // (count - 1)) + 2} would hold each of {count - 1}.",
                file=sys.stderr,
            )
