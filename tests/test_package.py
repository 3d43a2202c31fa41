"""The package as a user gets it: what each public name says of itself, what the wheel holds, and that it needs no tools of the book."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
MODULES = {  # by their names in the package: "vae.elbo"; those of the notebooks, without the parts' own
    ".".join(path.relative_to(ROOT / "genbook").with_suffix("").parts): path
    for path in sorted((ROOT / "genbook").rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py", "_modidx.py")
}
PARTS = sorted(path.parent.name for path in (ROOT / "genbook").glob("*/__init__.py"))
BOOK_TOOLS = {
    "bs4",
    "docutils",
    "beartype",
    "nbformat",
    "jupyter_cache",
    "sphinx",
    "traitlets",
}  # genbook.book imports them where the site is built


def settings() -> dict[str, str]:
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf8")
    return dict(config["DEFAULT"])


# What the public names say


def public_definitions() -> dict[
    str, tuple[ast.FunctionDef | ast.ClassDef, str, dict[str, ast.FunctionDef]]
]:
    """Public functions, classes and their public methods by name, with the docstring that says of them, and the module's checks."""
    found = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text("utf8"))
        public = next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
        checks = {
            node.name: node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_check")
        }
        for node in tree.body:
            if getattr(node, "name", None) not in public:
                continue
            name, said = f"{module}.{node.name}", ast.get_docstring(node)
            found[name] = node, said, checks
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if not isinstance(method, ast.FunctionDef):
                    continue
                if method.name in (
                    "__init__",
                    "__post_init__",
                ):  # the class says what they take and raise
                    found[f"{name}.{method.name}"] = method, said, checks
                elif not method.name.startswith("_"):
                    found[f"{name}.{method.name}"] = method, ast.get_docstring(method), checks
    return found


PUBLIC = public_definitions()


def raised(function: ast.FunctionDef, checks: dict[str, ast.FunctionDef]) -> set[str]:
    """The errors that a function raises, itself or in a `_check...` of its module."""
    errors = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            errors.add(ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            errors |= raised(checks[called], checks) if called in checks else set()
    return {error for error in errors if error.endswith(("Error", "typer.Exit"))}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_takes_and_raises(name):
    node, said, checks = PUBLIC[name]
    assert said, "no docstring"
    if isinstance(node, ast.ClassDef):
        return
    arguments = [
        *node.args.posonlyargs,
        *node.args.args,
        *node.args.kwonlyargs,
        node.args.vararg,
        node.args.kwarg,
    ]
    types = {
        argument.arg: argument.annotation
        for argument in arguments
        if argument and argument.arg not in ("self", "cls")
    }
    assert not [argument for argument, kind in types.items() if kind is None], (
        "arguments without a type"
    )
    for argument in node.args.args + node.args.kwonlyargs:
        assert ast.unparse(types.get(argument.arg, argument)) != "Tensor", (
            f"{argument.arg}: a tensor without a shape"
        )
    if node.name not in ("__init__", "__post_init__"):
        assert node.returns is not None, "no type of the result"
    errors = raised(node, checks)
    if any("command" in ast.unparse(decorator) for decorator in node.decorator_list):
        # The docstring is the help text, and `main` makes every ValueError an exit status.
        errors.discard("ValueError")
    for error in errors:
        assert ("exit status" if error == "typer.Exit" else error) in said.replace(
            "Exit", "exit"
        ), f"raises {error} and doesn't say so"


def test_what_the_package_imports_is_required():
    required = {Requirement(line).name.lower() for line in settings()["requirements"].split()}
    extra = {Requirement(line).name.lower() for line in settings()["export_requirements"].split()}
    distributions = importlib.metadata.packages_distributions()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (
                {name.split(".")[0] for name in names} - {"genbook"} - sys.stdlib_module_names
            ):
                if module.split(".")[0] == "book" and name in BOOK_TOOLS:
                    continue
                if module == "exporting" and name in extra:
                    continue
                assert required & {given.lower() for given in distributions.get(name, [])}, (
                    f"{module} imports {name}"
                )


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the checkout, built from a copy of it: beside the package all that a careless build would take along."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "tree").mkdir()
    for path in ROOT.iterdir():
        if path.name == "genbook":
            shutil.copytree(
                path, place / "tree" / "genbook", ignore=shutil.ignore_patterns("__pycache__")
            )
        elif not path.name.startswith((".", "build")) and path.suffix != ".egg-info":
            (place / "tree" / path.name).symlink_to(path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        place,
        "-q",
    ]
    done = subprocess.run(command, cwd=place / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_alone(unpacked):
    files = {
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()
    }
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "genbook").rglob("*.py")}
    assert package <= files
    assert all(name.split("/")[0].endswith(".dist-info") for name in files - package), (
        files - package
    )


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    """`settings.ini` is in it, from which setup.py reads."""
    quietly = {"capture_output": True, "text": True}
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=wheel.parent / "tree", **quietly
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-q", "-w", tmp_path, archive], **quietly)
    assert done.returncode == 0, done.stderr
    (again,) = tmp_path.glob("*.whl")
    contents = []
    for path in (wheel, again):
        with zipfile.ZipFile(path) as opened:
            contents.append({name: opened.read(name) for name in opened.namelist()})
    assert again.name == wheel.name and contents[0] == contents[1]


def test_the_wheel_says_what_settings_ini_says(unpacked):
    (folder,) = unpacked.glob("*.dist-info")
    said, wanted = importlib.metadata.Distribution.at(folder), settings()
    assert (said.name, said.version) == (wanted["lib_name"], wanted["version"])
    assert said.metadata["Requires-Python"] == f">={wanted['min_python']}"
    requirements = [Requirement(line) for line in said.requires]
    assert {str(line) for line in requirements if line.marker is None} == {
        str(Requirement(line)) for line in wanted["requirements"].split()
    }
    markers = {str(line.marker) for line in requirements if line.marker is not None}
    assert markers == {'extra == "dev"', 'extra == "export"'}
    assert [
        (entry.name, entry.value) for entry in said.entry_points if entry.group == "console_scripts"
    ] == [("genbook", "genbook.cli:main")]


# The wheel at work, where nothing of the book is installed

PREAMBLE = """
import re, sys

class Refuse:
    tools = re.compile("(nbdev|fastcore|execnb|ghapi|IPython|ipykernel|ipywidgets|jupyter.*|nbformat|nbclient|myst.*|sphinx.*|jupytext|pytest|ot|torchmetrics)")
    def find_spec(self, name, path=None, target=None):
        if self.tools.fullmatch(name.split(".")[0]):
            raise ModuleNotFoundError(f"No module named {name!r}, as for a user", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
"""

IMPORTS = """
import importlib, json
seen = {}
for name in sys.argv[2:]:
    file = importlib.import_module(name).__file__
    seen[name] = [file, sorted(sys.modules)]
print(json.dumps(seen))
"""


def as_a_user(code: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """What a program prints that has the unpacked wheel, and the checkout or another folder as its working directory."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("GENBOOK_", "PYTHON"))
    }
    command = [sys.executable, "-I", "-c", PREAMBLE + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imported(unpacked) -> dict[str, tuple[str, set[str]]]:
    """Of each module its file and what was loaded once it was imported: first those that load little."""
    light = [
        "runs",
        "runs.schema",
        "runs.files",
        "runs.places",
        "runs.record",
        "runs.audit",
        "book",
        "cli",
        "results",
        "likelihoods",
        "divergences",
        "data",
        "training",
        "families",
    ]
    rest = [name for name in [*PARTS, *MODULES] if name not in light]
    names = ["genbook", *(f"genbook.{name}" for name in light + rest)]
    seen = json.loads(as_a_user(IMPORTS, unpacked, *names))
    return {name: (file, set(loaded)) for name, (file, loaded) in seen.items()}


def test_every_module_imports_from_the_wheel(imported, unpacked):
    assert len(imported) == len({*MODULES, *PARTS}) + 1
    for name, (file, _) in imported.items():
        assert Path(file).is_relative_to(unpacked), name


def test_imports_are_light(imported):
    """No pyplot, no network client and no reader of data files comes with the package; without torch its parts that need none."""
    without_torch = {
        "genbook",
        *(f"genbook.{name}" for name in ("book", "cli", "results")),
        *(name for name in imported if name.split(".")[1:2] == ["runs"]),
    }
    with_figures = [name for name in imported if "matplotlib" in imported[name][1]]
    assert with_figures and not {
        "genbook.data",
        "genbook.families",
        "genbook.training",
    } & set(with_figures)
    heavy = {
        "sklearn",
        "pandas",
        "pyarrow",
        "torchvision",
        "scipy",
        "matplotlib.pyplot",
        "requests",
        "httpx",
        "aiohttp",
    }
    for name, (_, loaded) in imported.items():
        unwanted = (
            heavy
            | ({"torch", "numpy"} if name in without_torch else set())
            | (set() if name in with_figures else {"PIL"})
        )
        assert not unwanted & loaded, name


@pytest.mark.parametrize(
    "code",
    re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf8"), flags=re.DOTALL),
)
def test_the_readme_s_python_runs(code, unpacked):
    assert re.search(r"^-\d+\.\d+ nats an image$", as_a_user(code, unpacked), re.MULTILINE)


def test_a_user_s_folder_is_where_records_go(unpacked, tmp_path):
    """And never the folder of installed packages, where no checkout is at hand."""
    code = "from genbook import book, runs; print(runs.runs_root(), book.book_root())"
    assert as_a_user(code, unpacked, cwd=tmp_path).split() == [
        str(tmp_path / "runs"),
        str(tmp_path),
    ]


def test_the_installed_command_trains_and_samples(wheel, tmp_path):
    """In an environment of its own, which sees the libraries of this one and not its genbook; a space is in every path."""
    place, user = tmp_path / "an environment", tmp_path / "a user's folder"
    user.mkdir()
    python, genbook = place / "bin" / "python", place / "bin" / "genbook"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    clean |= {"OMP_NUM_THREADS": "1"}
    clean.pop("GENBOOK_RUNS", None)

    def run(*command) -> str:
        done = subprocess.run(
            command, cwd=user, env=clean, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", place)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    run(*pip, "--no-index", "--ignore-installed", wheel)
    told = run(python, "-c", "import genbook; print(genbook.__file__)")
    assert Path(told.strip()).is_relative_to(place)
    assert "vae-bmnist" in run(genbook, "recipes")
    run(genbook, "train", "vae-bmnist", "--smoke", "--set", "epochs=1", "--out", "runs/mine")
    assert "mine" in run(genbook, "records")
    run(genbook, "sample", "mine", "-n", "4")
    run(genbook, "evaluate", "mine")
    assert {"runs", "mine-samples.png"} <= set(os.listdir(user))
