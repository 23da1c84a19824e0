"""Grid search by KerasTuner, over runs that are processes of their own."""

import concurrent.futures
import tempfile
import time
from collections.abc import Callable
from typing import Any

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import Grid

_OBJECTIVE = "score"


def grid_search(
    grid: Grid, score: Callable[[dict[str, Any]], float], at_once: int = 1
) -> dict[str, Any]:
    """Tries every combination of a grid.

    KerasTuner cannot go on with a grid search that was ended, so none of its files are kept: a
    search begins anew every time, in the same order, and `score` is to remember what it did.

    Args:
        grid: The values by their keys.
        score: Gives a combination its score, the higher the better. It is called from several
            threads.
        at_once: int. How many calls of `score` may run at a time.

    Returns:
        The best combination.

    Raises:
        UserError: If KerasTuner is not installed, or `score` raises it.

    Example:
    ```python
    grid_search({"trainer.epochs": [3, 5]}, lambda values: run(values)["score"])
    ```
    """
    try:
        import keras_tuner
    except ImportError as error:
        raise UserError(
            "--search needs KerasTuner: pip install 'cocolm-tf[search]', or pip install "
            "keras-tuner."
        ) from error
    space = keras_tuner.HyperParameters()
    for key, values in grid.items():
        space.Choice(key, _of_one_type(values))
    oracle = keras_tuner.oracles.GridSearchOracle(
        objective=keras_tuner.Objective(_OBJECTIVE, direction="max"),
        hyperparameters=space,
        tune_new_entries=False,
        allow_new_entries=False,
    )
    failures: list[BaseException] = []

    class Tuner(keras_tuner.Tuner):
        def pre_create_trial(self) -> None:
            # The oracle has others wait for the last trials, and is asked again at once.
            if self.oracle.ongoing_trials:
                time.sleep(0.05)

        def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
            if failures:
                raise keras_tuner.errors.FatalError
            try:
                return {_OBJECTIVE: score(dict(trial.hyperparameters.values))}
            except BaseException as error:
                # KerasTuner would count a failed trial and go on.
                failures.append(error)
                raise keras_tuner.errors.FatalError from error

    with (
        tempfile.TemporaryDirectory() as directory,
        concurrent.futures.ThreadPoolExecutor(at_once) as pool,
    ):
        tuners = [
            Tuner(oracle, directory=directory, tuner_id=f"tuner{number}", overwrite=True)
            for number in range(at_once)
        ]
        futures = [pool.submit(tuner.search, verbose=0) for tuner in tuners]
        for future in concurrent.futures.as_completed(futures):
            if failures:
                raise failures[0]
            future.result()
    (best,) = oracle.get_best_trials(1)
    return dict(best.hyperparameters.values)


def _of_one_type(values: list[Any]) -> list[Any]:
    """KerasTuner wants a choice among values of one type."""
    return list(map(float, values)) if any(isinstance(value, float) for value in values) else values
