"""Packaging: `pip install -c constraints.txt -e '.[cuda12]'` installs both packages."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# Both builds of DALI own the same folder, and pip cannot choose: whoever installs names one.
CUDA12 = ["nvidia-dali-cuda120>=2.3"]  # constraints.txt
CUDA13 = ["torch>=2.11", "nvidia-dali-cuda130>=2.3"]  # constraints-cuda13.txt; from Turing on
QUICKSTART = [*CUDA12, "scikit-learn>=1.3"]  # carries the digits that the quickstart trains on
TIMM = ["timm>=1.0.31"]  # `model.name: timm:NAME`, and the oracle of the tests
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]  # mkdocs build --strict
EXPORT = [  # `dali-rsb export` to safetensors, the hub and ONNX
    *TIMM,
    "onnx>=1.17",
    "onnxscript>=0.5",
    "onnxruntime>=1.20",
    "safetensors>=0.4.5",
    "huggingface_hub>=0.30",
]
PICTURES = [  # `dali-rsb report` and `gradcam`
    "matplotlib>=3.8",
    # Against grad-cam: no OpenCV and no ttach, nothing but Matplotlib beside what is here already.
    "torchcam>=0.5; python_version >= '3.11'",
]


# Each is one of `tracking.trackers`, by its name.
TRACKERS = {
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.19"],
    "trackio": ["trackio>=0.40"],  # its releases until now need Pillow 12, constraints.txt has 13
    # The client without MLflow's server and user interface; the other two are for local files.
    "mlflow": ["mlflow-skinny>=3.1", "sqlalchemy>=2", "alembic>=1.13"],
}


class BuildWithRecipes(build_py):
    """Puts the recipes of `configs/` into the package, where `dali-rsb train a3` finds them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them in configs/
            return
        target = Path(self.build_lib) / "dali_rsb" / "recipes"
        target.mkdir(parents=True, exist_ok=True)
        for recipe in sorted((ROOT / "configs").glob("*.yaml")):
            shutil.copyfile(recipe, target / recipe.name)


setup(
    name="dali_rsb",
    version="0.1.0",
    description="ResNet Strikes Back recipes on NVIDIA DALI: a fast and faithful ResNet trainer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["dali_rsb", "dali_rsb.*", "pipelines", "pipelines.*"]),
    # Said, so that an editable install puts this folder on the path. Otherwise setuptools installs
    # an import hook that comes last, behind a folder that happens to be called `pipelines`.
    package_dir={"": "."},
    package_data={"dali_rsb": ["py.typed", "pictures/page.html"], "pipelines": ["py.typed"]},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["dali-rsb = dali_rsb.__main__:script"]},
    install_requires=[
        "torch>=2.8",
        "numpy>=2.0",
        "pillow>=10",
        "pydantic>=2.7",
        "pyyaml>=6",
        "tqdm>=4.66",
        "jinja2>=3.1",  # HTML pages; PyTorch needs it anyway
        "numba>=0.61",  # resize and RandAugment on a CPU; else PyTorch and DALI do them
    ],
    extras_require={
        "cuda12": CUDA12,
        "cuda13": CUDA13,
        "quickstart": QUICKSTART,
        "timm": TIMM,
        "export": EXPORT,
        "pictures": PICTURES,
        "docs": DOCS,
        **TRACKERS,
        "test": [
            *QUICKSTART,
            *EXPORT,
            *PICTURES,
            *DOCS,
            *TRACKERS["tensorboard"],
            *TRACKERS["wandb"],
            *TRACKERS["mlflow"],
            "torchvision",
            "webdataset>=1.0",
            "scikit-image>=0.22",
            "scipy>=1.11",
            "lightning>=2.5",
            "accelerate>=1.2",
            "setuptools>=70.1",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "jsonschema>=4.20",
            "codespell>=2.3",
            "ruff>=0.9",
            "import-linter>=2.1",
            "mypy>=1.14",
            "pre-commit>=4",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
