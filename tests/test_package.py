import importlib
import pkgutil
import subprocess
import sys

import pytest

import cocolm_tf

# What only extras install.
OF_EXTRAS = (
    "grpc",
    "onnx",
    "onnxruntime",
    "tensorflow_serving",
    "tokenizers",
    "torch",
    "transformers",
)


PACKAGES = [
    "cocolm_tf",
    *(one.name for one in pkgutil.iter_modules(cocolm_tf.__path__, "cocolm_tf.") if one.ispkg),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str):
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_a_name_is_the_thing_itself():
    from cocolm_tf.modeling.backbone import CocoLMBackbone

    assert cocolm_tf.CocoLMBackbone is CocoLMBackbone
    assert cocolm_tf.losses is importlib.import_module("cocolm_tf.losses")
    assert callable(cocolm_tf.losses.masked_lm_loss)


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="'cocolm_tf' has no attribute 'BertBackbone'"):
        _ = cocolm_tf.BertBackbone


def test_importing_the_package_imports_no_tensorflow():
    program = "import sys, cocolm_tf, cocolm_tf.program; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_every_module_imports():
    modules = pkgutil.walk_packages(cocolm_tf.__path__, "cocolm_tf.")
    names = [module.name for module in modules]
    assert "cocolm_tf.training.pretraining" in names
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert error.name in OF_EXTRAS, name
