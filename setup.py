"""What setup.cfg cannot say: `scripts/` and `configs/` are installed within the package."""

from setuptools import find_packages, setup

MOVED = {f"cocolm_tf.{name}": name for name in ("configs", "scripts")}

setup(
    packages=[*find_packages(include=["cocolm_tf", "cocolm_tf.*"]), *MOVED],
    package_dir=MOVED,
)
