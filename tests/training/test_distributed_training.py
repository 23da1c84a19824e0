"""Training is the same on however many devices and hosts, and goes with every combination."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import distribution_cases
import numpy as np
import pytest
import tensorflow as tf
from distribution_cases import FEW, Case, Place, pairs_of, train

from cocolm_tf.training.distribution import make_strategy

EXACT = Case(steps=20, exact=True)
COURSES = EXACT._replace(objective="mcl")
SHARDED = EXACT._replace(sharded=True)
LEARNING = Case("mixed_bfloat16", 2, 2, "eval", steps=20)
OTHERS = distribution_cases.others()

Results = dict[str, np.ndarray]

pytestmark = pytest.mark.slow


def on(strategy: str, places: list[Place]) -> list[Case]:
    cases = [case for where, case in places if where == strategy]
    # One run is for both tests: that it trains, and that it learns.
    return [LEARNING if case == LEARNING._replace(steps=case.steps) else case for case in cases]


def run_workers(
    cases: list[Case], shards: Path, folder: Path, count: int = 2
) -> list[dict[str, Results]]:
    """Trains in processes of their own, which find each other by TF_CONFIG."""
    (folder / "cases.json").write_text(json.dumps(cases))
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    for port in ports:
        port.close()
    processes = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    distribution_cases.__file__,
                    str(folder / "cases.json"),
                    str(shards),
                    str(folder / f"{index}.npz"),
                ],
                env=os.environ
                | {
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
                },
                stderr=(folder / f"{index}.err").open("w"),
            )
        )
    for index, process in enumerate(processes):
        assert process.wait(3000) == 0, (folder / f"{index}.err").read_text()[-3000:]
    found = []
    for index in range(count):
        arrays = np.load(folder / f"{index}.npz")
        results: dict[str, Results] = {}
        for key in arrays:
            case, _, name = key.partition("/")
            results.setdefault(case, {})[name] = arrays[key]
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
    cases = [EXACT, SHARDED, *on("workers", FEW)]
    return run_workers(cases, shards, tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def more_workers(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Results]]:
    cases = [COURSES, *on("workers", OTHERS)]
    return run_workers(cases, shards, tmp_path_factory.mktemp("more_workers"))


@pytest.fixture(scope="module")
def one_device(shards: Path) -> Results:
    return train(make_strategy("one_device"), EXACT, shards)


def assert_same_steps(found: Results, expected: Results) -> None:
    """To float32 rounding, from the first step to the last."""
    assert list(found["names"]) == list(expected["names"])
    assert found["weights"].shape == expected["weights"].shape
    assert len(expected["weights"]) == 20
    np.testing.assert_allclose(found["metrics"], expected["metrics"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found["weights"], expected["weights"], rtol=1e-4, atol=2e-5)
    # The same batches, shared out, and none of them twice.
    np.testing.assert_allclose(found["validation"], expected["validation"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found["moments"], expected["moments"], rtol=2e-4, atol=2e-5)
    moved = np.abs(expected["weights"][-1] - expected["weights"][0]).mean()
    assert moved > 0.01, "the tolerance is far below what 20 steps change"


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


def test_replicas_with_shares_of_the_moments_take_the_steps_of_one_device(
    mirrored_strategy: tf.distribute.Strategy, one_device: Results, shards: Path
):
    assert_same_steps(train(mirrored_strategy, SHARDED, shards), one_device)


@pytest.mark.parametrize("case", [EXACT, SHARDED], ids=["whole", "sharded"])
def test_workers_take_the_steps_of_one_device(workers, case: Case, one_device: Results):
    for worker in workers:
        assert_same_steps(worker[case.name], one_device)


@pytest.fixture(scope="module")
def courses_on_one_device(shards: Path) -> Results:
    return train(make_strategy("one_device"), COURSES, shards)


def test_replicas_take_the_courses_of_one_device(
    mirrored_strategy: tf.distribute.Strategy, courses_on_one_device: Results, shards: Path
):
    """Also where each has other numbers of tokens to correct."""
    assert_same_steps(train(mirrored_strategy, COURSES, shards), courses_on_one_device)


@pytest.mark.exhaustive
def test_workers_take_the_courses_of_one_device(more_workers, courses_on_one_device: Results):
    for worker in more_workers:
        assert_same_steps(worker[COURSES.name], courses_on_one_device)


def test_replicas_take_courses_in_micro_batches(
    mirrored_strategy: tf.distribute.Strategy, shards: Path
):
    case = COURSES._replace(micro_batches=2, steps=4)
    assert np.isfinite(train(mirrored_strategy, case, shards)["metrics"]).all()


def assert_learns(found: Results) -> None:
    loss = found["metrics"][:, list(found["names"]).index("loss")]
    assert np.isfinite(loss).all()
    assert loss[-5:].mean() < 0.9 * loss[:5].mean()


@pytest.mark.parametrize("mirrored_strategy", [2], indirect=True)
def test_in_bfloat16_replicas_learn(mirrored_strategy: tf.distribute.Strategy, shards: Path):
    assert_learns(train(mirrored_strategy, LEARNING, shards))


def test_in_bfloat16_workers_learn(workers):
    for worker in workers:
        assert_learns(worker[LEARNING.name])


# The matrix: strategy, precision, micro-batches, steps a loop, sampling.


def assert_trains(found: Results, case: Case) -> None:
    assert found["metrics"].shape[0] == case.steps // case.steps_per_loop
    values = dict(zip(found["names"], found["metrics"].T, strict=True))
    assert all(np.isfinite(value).all() for value in values.values())
    assert (values["gradient_norm"] > 0).all()
    assert not values["skipped_updates"].any()
    weights = found["weights"]
    assert np.isfinite(weights).all()
    assert (np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-3).all(), "each loop moves them"


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


def test_a_few_cases_have_all_pairs():
    def pairs(places: list[Place]) -> set[tuple]:
        return set().union(*(pairs_of((strategy, *case[:4])) for strategy, case in places))

    assert len(FEW) + len(OTHERS) == 3 * 3 * 2 * 2 * 3
    assert pairs(FEW) == pairs(FEW + OTHERS)
    assert len(FEW) <= 12
