"""A new family takes three steps, as CONTRIBUTING.md says: a notebook, a line in `_toc.yml`, a line in `families`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = r"""# The average digit

**How many nats does one picture cost that says the same of every image?**

$$
\log p(x) = \sum_d \log \mathrm{Bernoulli}(x_d \mid \sigma(\theta_d))
$$ (eq-average-digit)
"""
IMPORTS = """#| export
#| code-fold: true
from dataclasses import dataclass, replace

import torch
from torch import nn

from genbook import runs
from genbook.families import Family, Headline, fit_recipe
from genbook.likelihoods import log_likelihood_bernoulli_logits
"""
CODE = '''#| export
class Average(nn.Module):
    """One picture of logits for all images."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, 28, 28))


def log_px(model, x):
    """log p(x) of each image, in nats."""
    return log_likelihood_bernoulli_logits(model.logits.expand_as(x), x)


@dataclass(frozen=True)
class AverageRecipe:
    """One picture for all images."""

    name: str = "average-digit"
    data: str = "binarized_mnist"
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.1
    precision: str = "fp32"
    seed: int = 0

    def smoke(self):
        """The same on toy digits."""
        return replace(self, data="toy_digits", epochs=1)

    def model(self):
        """An untrained model."""
        return Average()

    def objective(self):
        """The negative log-likelihood of a batch, in nats an image."""
        return lambda model, x: (-log_px(model, x).mean(), {})
'''
FAMILY = '''#| export
def make(recipe, job, splits):
    """Train a recipe."""
    return fit_recipe(recipe, recipe.model(), recipe.objective(), splits.train.images, job)


def figures(recipe, model, splits):
    """log p(x) of the test images."""
    with torch.no_grad():
        found = log_px(model, splits.test.images)
    return {"test_log_px": runs.mean_metric(found, split="test", unit="nats", tolerance=0.02)}


FAMILY = Family(
    name="average",
    recipe=AverageRecipe,
    recipes={"average-digit": AverageRecipe()},
    headlines={"average-digit": Headline("test_log_px", "test log p(x)", "one picture")},
    make=make,
    figures=figures,
)
'''
CHECK = """#| checks: eq-average-digit
nats = log_px(Average(), torch.ones(2, 1, 28, 28))  # every pixel is as likely as not
assert torch.allclose(nats, -784 * torch.log(torch.tensor(2.0)).expand(2))
"""


def notebook(*sources: str) -> str:
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": TEXT},
        *(
            {
                "cell_type": "code",
                "id": f"code-{number}",
                "metadata": {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for number, source in enumerate(sources)
        ),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )


@pytest.fixture(scope="module")
def house(root, tmp_path_factory) -> Path:
    """A copy of the checkout to which the three steps have been made."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("nbs", "genbook"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "pyproject.toml", "_toc.yml", ".importlinter"):
        shutil.copy(root / name, folder)

    # One: a notebook.
    chapter = notebook("#| default_exp vae.average", IMPORTS, CODE, CHECK, FAMILY)
    (folder / "nbs/vae/average.ipynb").write_text(chapter, encoding="utf-8")

    # Two: a line in _toc.yml.
    toc = (folder / "_toc.yml").read_text("utf-8")
    line = "      - file: vae/gaussian\n"
    assert line in toc
    (folder / "_toc.yml").write_text(
        toc.replace(line, f"{line}      - file: vae/average\n"), encoding="utf-8"
    )

    # Three: a line in families.
    families = folder / "nbs/families.ipynb"
    text = families.read_text("utf8")
    place = re.search(r'( *"    )\\"vae\\": \\"genbook\.vae\.binarised_mnist\\",\\n",\n', text)
    assert place, "the list of families does not begin with the VAE"
    added = place[0].replace('\\"vae\\"', '\\"average\\"').replace("binarised_mnist", "average")
    families.write_text(text.replace(place[0], place[0] + added), "utf8")

    run(folder, Path(sys.executable).with_name("nbdev_export"))
    return folder


def run(house: Path, *command: str | Path) -> str:
    """What a command prints where the changed package is the one that is imported."""
    environment = os.environ | {"PYTHONPATH": str(house), "GENBOOK_RUNS": str(house / "runs")}
    done = subprocess.run(
        list(map(str, command)), cwd=house, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_family_of_three_steps_is_known_everywhere(house):
    genbook = [sys.executable, "-m", "genbook.cli"]
    assert "average-digit" in run(house, *genbook, "recipes")
    run(house, *genbook, "train", "average-digit", "--smoke", "--out", house / "runs/average-digit")
    record = json.loads((house / "runs/average-digit/run.json").read_text("utf-8"))
    assert record["recipe"]["family"] == "average"
    assert -784 * 0.6931 < record["metrics"]["test_log_px"]["value"] < 0
    assert "agrees" in run(house, *genbook, "evaluate", house / "runs/average-digit")
    assert "eq-average-digit" in run(house, *genbook, "equations")
    listed = "from genbook.book import api_lists; print(api_lists('vae'))"
    assert "AverageRecipe" in run(house, sys.executable, "-c", listed)
    scores = "from genbook.results.scoreboard import markdown, rows; print(markdown(rows()))"
    assert "average-digit" in run(house, sys.executable, "-c", scores)


def test_its_imports_keep_the_contracts(house):
    run(house, Path(sys.executable).with_name("lint-imports"), "--no-cache")
