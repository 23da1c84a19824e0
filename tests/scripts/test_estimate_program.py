import json

import pytest
from programs import ROOT, Program

from cocolm_tf.costs.accelerators import ACCELERATORS

estimate = Program("estimate.py")
BASE = f"--config_file={ROOT / 'configs' / 'pretrain' / 'base.yaml'}"


def test_its_tables_and_its_json_agree():
    arguments = [BASE, "--devices=64", "--accelerator=h100", "--accelerator=v5p"]
    told, written = estimate(*arguments), estimate(*arguments, "--json")
    assert (told.returncode, written.returncode) == (0, 0)
    result = json.loads(written.stdout)
    assert list(result["accelerators"]) == ["h100", "v5p"]
    assert (result["devices"], result["batch_size"]) == (64, 2048)
    assert f"{result['parameters']:,}" in told.stdout
    for accelerator in result["accelerators"].values():
        assert accelerator["title"] in told.stdout
        for plan in accelerator["plans"].values():
            assert f"{plan['memory'] / 2**30:.2f} GiB" in told.stdout


def test_overrides_and_shares_count():
    flags = ["--json", "--accelerator=a100", "--share_of_memory=0.5", "--link_bandwidth=25"]
    done = estimate(BASE, *flags, "--params_override=trainer.train_steps=20000", "--devices=8")
    result = json.loads(done.stdout)
    assert result["train_steps"] == 20000
    assert result["params_override"] == ["trainer.train_steps=20000"]
    a100 = result["accelerators"]["a100"]
    assert all(plan["memory"] <= 0.5 * 80e9 for plan in a100["plans"].values())
    sent = result["all_reduce_bytes"] + result["gather_bytes"]
    assert a100["link_seconds"] == pytest.approx(sent / 25e9)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist."),
        ([BASE, "--accelerator=abacus"], "--accelerator=abacus"),
        ([BASE, "--devices=0"], "--devices=0"),
        ([BASE, "--devices=3"], "trainer.batch_size=2048 does not divide into 3 replicas"),
        ([BASE, "--share_of_peak=1.5"], "--share_of_peak=1.5"),
        ([BASE, "--params_override=trainer.speed=9"], "trainer.speed does not exist"),
        ([], "--config_file"),
    ],
    ids=str,
)
def test_a_mistake_is_reported_in_a_line(arguments: list[str], complaint: str):
    (said,) = estimate.mistakes(*arguments)
    assert complaint in said


def test_help_names_every_accelerator():
    told = estimate.help()
    assert "|".join(ACCELERATORS) in told.replace("\n", "").replace(" ", "")
