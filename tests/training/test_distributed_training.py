"""Training is the same on however many devices and hosts, and goes with every combination."""

from pathlib import Path

import distribution_cases
import numpy as np
import pytest
import tensorflow as tf
from distribution_cases import FEW, Case, Place, train, train_worker
from worker_processes import start_worker, tf_configs

from cocolm_tf.training.distribution import make_strategy

EXACT = Case(steps=8, exact=True, sampling="zero_dropout")
COURSES = EXACT._replace(objective="mcl")
ONE_COURSE = COURSES._replace(one_course=True)
SHARDED = EXACT._replace(sharded=True)
OTHERS = distribution_cases.others()

Results = dict[str, np.ndarray]

pytestmark = pytest.mark.slow


def on(strategy: str, places: list[Place]) -> list[Case]:
    cases = [case for where, case in places if where == strategy]
    # One of the few cases takes enough steps to learn something.
    if strategy == "one_device" or places is not FEW:
        return cases
    return [case._replace(steps=20) if "bfloat16" in case.precision else case for case in cases]


def run_workers(
    cases: list[Case], shards: Path, folder: Path, count: int = 2
) -> list[dict[str, Results]]:
    """Trains in processes of their own."""
    logs = [folder / f"{index}.err" for index in range(count)]
    outputs = [folder / f"{index}.npz" for index in range(count)]
    processes = [
        start_worker(train_worker, config, log, cases, shards, output)
        for config, log, output in zip(tf_configs(count), logs, outputs, strict=True)
    ]
    found: list[dict[str, Results]] = []
    for process, log, output in zip(processes, logs, outputs, strict=True):
        process.join(3000)
        assert process.exitcode == 0, log.read_text()[-3000:]
        results: dict[str, Results] = {}
        for key, array in np.load(output).items():
            case, _, name = key.partition("/")
            results.setdefault(case, {})[name] = array
        found.append(results)
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    distribution_cases.write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def workers(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Results]]:
    """What two workers made of the cases that every run of the tests has, one after the other."""
    cases = [SHARDED, *on("workers", FEW)]
    return run_workers(cases, shards, tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def more_workers(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Results]]:
    cases = [EXACT, COURSES, *on("workers", OTHERS)]
    return run_workers(cases, shards, tmp_path_factory.mktemp("more_workers"))


@pytest.fixture(scope="module")
def one_device(shards: Path) -> Results:
    return train(make_strategy("one_device"), EXACT, shards)


def assert_same_steps(found: Results, expected: Results) -> None:
    """To float32 rounding, from the first step to the last."""
    assert list(found["names"]) == list(expected["names"])
    assert found["weights"].shape == expected["weights"].shape
    assert len(expected["weights"]) == 8
    np.testing.assert_allclose(found["metrics"], expected["metrics"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found["weights"], expected["weights"], rtol=1e-4, atol=2e-5)
    # The same batches, shared out, and none of them twice.
    np.testing.assert_allclose(found["validation"], expected["validation"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found["moments"], expected["moments"], rtol=2e-4, atol=2e-5)
    moved = np.abs(expected["weights"][-1] - expected["weights"][0]).mean()
    assert moved > 0.01, "the tolerance is far below what the steps change"


def test_the_replicas_hold_uneven_shares():
    """Otherwise a mean of the replicas' means would pass for the global one."""
    masked = distribution_cases.batches(20)["masked_weights"].reshape(20, 4, -1).sum(axis=-1)
    assert (masked[:, 0] == 0).all() and (masked[:, 1:] > 0).any(axis=1).all()


@pytest.mark.parametrize(
    "mirrored_strategy", [2, pytest.param(4, marks=pytest.mark.exhaustive)], indirect=True
)
def test_replicas_take_the_steps_of_one_device(
    mirrored_strategy: tf.distribute.Strategy, one_device: Results, shards: Path
):
    assert_same_steps(train(mirrored_strategy, EXACT, shards), one_device)


@pytest.mark.exhaustive  # one step is compared in tests/modeling/test_training_step.py
def test_replicas_with_shares_of_the_moments_take_the_steps_of_one_device(
    mirrored_strategy: tf.distribute.Strategy, one_device: Results, shards: Path
):
    assert_same_steps(train(mirrored_strategy, SHARDED, shards), one_device)


def test_workers_with_shares_of_the_moments_take_the_steps_of_one_device(
    workers, one_device: Results
):
    for worker in workers:
        assert_same_steps(worker[SHARDED.name], one_device)


@pytest.mark.exhaustive
def test_workers_take_the_steps_of_one_device(more_workers, one_device: Results):
    for worker in more_workers:
        assert_same_steps(worker[EXACT.name], one_device)


@pytest.mark.parametrize(
    "case", [ONE_COURSE, pytest.param(COURSES, marks=pytest.mark.exhaustive)], ids=["one", "all"]
)
def test_replicas_take_the_courses_of_one_device(
    mirrored_strategy: tf.distribute.Strategy, case: Case, shards: Path
):
    """Also where each has other numbers of tokens to correct."""
    expected = train(make_strategy("one_device"), case, shards)
    assert_same_steps(train(mirrored_strategy, case, shards), expected)


@pytest.mark.exhaustive
def test_workers_take_the_courses_of_one_device(more_workers, shards: Path):
    expected = train(make_strategy("one_device"), COURSES, shards)
    for worker in more_workers:
        assert_same_steps(worker[COURSES.name], expected)


@pytest.mark.exhaustive
def test_replicas_take_courses_in_micro_batches(
    mirrored_strategy: tf.distribute.Strategy, shards: Path
):
    case = COURSES._replace(micro_batches=2, steps=4)
    assert np.isfinite(train(mirrored_strategy, case, shards)["metrics"]).all()


# The matrix: strategy, precision, micro-batches, steps a loop, sampling.


def assert_trains(found: Results, case: Case) -> None:
    assert len(found["metrics"]) == case.steps // case.steps_per_loop
    values = dict(zip(found["names"], found["metrics"].T, strict=True))
    assert all(np.isfinite(value).all() for value in values.values())
    assert (values["gradient_norm"] > 0).all()
    assert not values["skipped_updates"].any()
    weights = found["weights"]
    assert np.isfinite(weights).all()
    assert (np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-3).all(), "each loop moves them"
    if case.steps >= 20:
        count = max(1, 5 // case.steps_per_loop)
        assert values["loss"][-count:].mean() < 0.9 * values["loss"][:count].mean()


def each_case_on(strategy: str) -> pytest.MarkDecorator:
    others = [pytest.param(c, marks=pytest.mark.exhaustive) for c in on(strategy, OTHERS)]
    return pytest.mark.parametrize(
        "case", [*on(strategy, FEW), *others], ids=lambda case: case.name
    )


@each_case_on("one_device")
def test_one_device_trains(case: Case, shards: Path):
    assert_trains(train(make_strategy("one_device"), case, shards), case)


@each_case_on("mirrored")
def test_replicas_train(mirrored_strategy: tf.distribute.Strategy, case: Case, shards: Path):
    assert_trains(train(mirrored_strategy, case, shards), case)


@each_case_on("workers")
def test_workers_train(request: pytest.FixtureRequest, case: Case):
    """Both end with the same weights, though each draws its own samples and dropout."""
    part = "workers" if case in on("workers", FEW) else "more_workers"
    first, second = (worker[case.name] for worker in request.getfixturevalue(part))
    for found in (first, second):
        assert_trains(found, case)
    np.testing.assert_array_equal(first["weights"], second["weights"])
    np.testing.assert_array_equal(first["metrics"], second["metrics"])


def test_a_few_cases_have_every_value():
    def values(places: list[Place]) -> list[set]:
        return [
            set(of_one) for of_one in zip(*((at, *case[:4]) for at, case in places), strict=True)
        ]

    assert len(FEW) + len(OTHERS) == 3 * 3 * 2 * 2 * 3
    assert values(FEW) == values(FEW + OTHERS)
