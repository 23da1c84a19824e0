import pytest
from programs import Program

export_checkpoints = Program("export_checkpoints.py")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--model_dir"),
        (["--model_dir=/nowhere"], "--model_dir=/nowhere is not a folder."),
        (["--model_dir=.", "--step=x"], "--step"),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    arguments: list[str], complaint: str
):
    (said,) = export_checkpoints.mistakes_before_tensorflow(*arguments)
    assert complaint in said
