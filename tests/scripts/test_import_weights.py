import pytest
from programs import ROOT, Program

import_weights = Program("import_weights.py")
VOCABULARY, RUN = "--vocabulary=vocabulary", "--model_dir=run"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([VOCABULARY, RUN], "--program"),
        (["--program=/no.step", "--weights=w", VOCABULARY, RUN], "/no.step does not exist"),
        (
            [f"--program={ROOT / 'README.md'}", "--weights=/no/w", VOCABULARY, RUN],
            "there is no /no/w.jsonl",
        ),
    ],
    ids=["none", "program", "weights"],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(arguments, complaint):
    assert complaint in import_weights.mistakes_before_tensorflow(*arguments)[-1]
