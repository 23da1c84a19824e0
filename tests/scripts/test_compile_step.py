import pytest
from exported_steps import export_toy
from programs import ROOT, Program

from cocolm_tf.costs.step_export import TARGETS

compile_step = Program("compile_step.py")
BASE = f"--config_file={ROOT / 'configs' / 'pretrain' / 'base.yaml'}"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--config_file is missing"),
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist"),
        ([BASE], "--target is missing"),
        (["--program=/nowhere.step", "--target=h100"], "--program=/nowhere.step does not exist"),
        ([f"--program={ROOT / 'README.md'}"], "--target is missing"),
        ([BASE, "--target=abacus"], "--target=abacus"),
        ([BASE, "--target=h100", "--rows=-1"], "--rows=-1"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(arguments, complaint):
    (said,) = compile_step.mistakes_before_tensorflow(*arguments)
    assert complaint in said


def test_without_the_compilers_it_says_how_to_get_them(tmp_path):
    export_toy(tmp_path / "toy.step")
    (said,) = compile_step.mistakes(
        f"--program={tmp_path / 'toy.step'}", "--target=h100", "--targets_python=/nowhere/python"
    )
    assert "/nowhere/python is no interpreter" in said
    assert "make targets" in said


def test_help_names_every_target():
    told = compile_step.help()
    assert "|".join(TARGETS) in told.replace("\n", "").replace(" ", "")
