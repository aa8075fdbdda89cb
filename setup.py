"""What pyproject.toml cannot say: `configs/` is installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["prompt_tuning", "prompt_tuning.*"]),
        "prompt_tuning.configs",
    ],
    package_dir={"prompt_tuning.configs": "configs"},
)
