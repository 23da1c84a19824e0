import pytest
from in_process import without_fusion


@pytest.fixture(autouse=True, scope="module")
def unfused():
    """Compiles nothing, as no operation runs often enough to earn it back."""
    with without_fusion():
        yield
