"""Checkpoints: all that a run has become, so that it can go on."""

import os

import tensorflow as tf

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.training_step import TrainingStep


class Checkpoints:
    """The checkpoints of a run.

    One holds every variable of the model and of its optimizer, which counts the steps. Nothing
    else is needed: data, masks, crops, samples and dropout are functions of the step.

    Args:
        directory: where they are kept.
        model: a compiled `TrainingStep`.
        keep: int. How many of the latest to keep.

    Example:
    ```python
    checkpoints = Checkpoints("runs/first/checkpoints", pretrainer, keep=3)
    step = checkpoints.restore()
    ```
    """

    def __init__(self, directory: str, model: TrainingStep, keep: int) -> None:
        self._model = model
        variables = [*model.variables, *model.optimizer.variables]
        # A metric's value is the log's, not the run's.
        metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
        state = [variable.value for variable in variables if id(variable) not in metrics]
        self._checkpoint = tf.train.Checkpoint(state=state)
        self._manager = tf.train.CheckpointManager(self._checkpoint, directory, max_to_keep=keep)

    def save(self) -> str:
        """Writes a checkpoint of the present step and drops the oldest beyond `keep`."""
        return self._manager.save(checkpoint_number=steps_taken(self._model))

    def restore(self) -> int:
        """Loads the latest checkpoint, if there is one.

        Returns:
            The step that the run stands at.

        Raises:
            UserError: if the checkpoint is of another model, or damaged.
        """
        path = self._manager.latest_checkpoint
        if path:
            self._check(path)
            self._checkpoint.restore(path).assert_existing_objects_matched().assert_consumed()
        return steps_taken(self._model)

    def _check(self, path: str) -> None:
        """Looks at the shapes first: what TensorFlow says of a mismatch is a line a variable."""
        try:
            saved = dict(tf.train.list_variables(path))
        except (ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"{path} is damaged: give another --model_dir, or name an earlier checkpoint in "
                f"{os.path.join(self._manager.directory, 'checkpoint')}."
            ) from error
        wanted = {
            f"state/{number}/.ATTRIBUTES/VARIABLE_VALUE": variable.shape.as_list()
            for number, variable in enumerate(self._checkpoint.state)
        }
        if {name: shape for name, shape in saved.items() if name.startswith("state/")} != wanted:
            raise UserError(
                f"{path} does not fit this configuration: give another --model_dir, or the "
                "configuration in "
                f"{os.path.join(os.path.dirname(self._manager.directory), 'config.yaml')}."
            )


def steps_taken(model: TrainingStep) -> int:
    """The number of steps that a model has been trained for, the skipped ones included.

    Example:
    ```python
    steps_taken(pretrainer)
    ```
    """
    # `int()` of the variable itself fails where it is mirrored.
    return int(model.optimizer.iterations.numpy())
