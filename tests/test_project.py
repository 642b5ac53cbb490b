"""What the project promises of itself: names, layers, what an import costs, the README's code."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

import adam_jax

ROOT = Path(__file__).parents[1]
PACKAGE = Path(adam_jax.__file__).parent

# Who may import whom: each layer those before it, and, where marked, itself.
LAYERS = [
    "explicit",
    "hyperparameters",
    "rule",
    "rows",
    "rules",
    "skipped",
    "storage",
    "states",
    "norms",
    "mismatch",
    "transform",
    "ownership",
    "parts",
    "diagnostics",
    "leaves",
    "row_gradients",
    "decay_stages",
    "decay",
    "tables",
    "lazy",
    "optimizers",
    "like_torch",
    "like_keras",
    "clipping",
    "wrappers",
    "precision",
    "averaging",
    "services",
    "surgery",
    "convert",
    "interop",
    "sharding",
    "checkpoint",
    "compiler",
    "step",
    "plots",
]
INDEPENDENT = {("rules", "storage"), ("storage", "rules")}


def test_the_public_names_are_sorted_and_exist():
    assert adam_jax.__all__ == sorted(adam_jax.__all__, key=lambda name: (name.islower(), name))
    public = {name for name, value in vars(adam_jax).items() if not name.startswith("_")}
    files = {name for name in public if (PACKAGE / f"{name}.py").exists()}
    modules = (files - set(adam_jax.__all__)) | {
        "optimizers",
        "plots",
        "race",
        "rules",
        "precision",
        "services",
        "wrappers",
    }
    assert public - modules == set(adam_jax.__all__)


def imports(file):
    """The parts of the package that a file imports, at its top or inside of functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            head, *rest = name.split(".")
            if head == "adam_jax" and rest:
                yield rest[0]


def upward_imports(files):
    for file in files:
        layer = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for target in imports(file):
            if layer in LAYERS and target != layer:
                allowed = LAYERS[: LAYERS.index(layer)]
                if target not in allowed or (layer, target) in INDEPENDENT:
                    yield f"{file.name} imports {target}"


def test_imports_point_down_only():
    files = [f for f in PACKAGE.rglob("*.py") if "race" not in f.relative_to(PACKAGE).parts]
    layers = {f.relative_to(PACKAGE).with_suffix("").parts[0] for f in files}
    assert layers - {"__init__", "__main__"} == set(LAYERS)
    assert list(upward_imports(files)) == []


def test_an_upward_import_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "rule.py").write_text("from adam_jax import transform")
    assert list(upward_imports([tmp_path / "rule.py"])) == ["rule.py imports transform"]


def test_the_import_is_light():
    heavy = ["flax", "matplotlib", "orbax", "pandas", "rich", "sklearn", "torch", "adam_jax.race"]
    code = f"import sys, adam_jax; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_time_dependencies_stay_four():
    needed = [r for r in requires("adam_jax") if "extra ==" not in r]
    assert sorted(re.split(r"[<>=!~ ]", r)[0] for r in needed) == ["chex", "jax", "jaxlib", "optax"]


def test_the_changelog_has_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def code_blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "adam_jax/rules/README.md"])
def test_code_in_the_documents_runs(file):
    blocks = code_blocks(file, "python")
    assert blocks
    names = {}
    for block in blocks:  # one after the other, as a reader would
        exec(compile(block, file, "exec"), names)


@pytest.mark.parametrize(("file", "most"), [("README.md", 100), ("CONTRIBUTING.md", 70)])
def test_documents_are_short_and_begin_with_code(file, most):
    lines = (ROOT / file).read_text().splitlines()
    assert len(lines) <= most
    if file == "README.md":
        assert any(line.startswith("```") for line in lines[:15])


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "adam_jax/rules/README.md"])
def test_links_to_files_lead_somewhere(file):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / file).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
