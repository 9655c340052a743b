"""The rules of the house: imports, sizes, public names, the README's tree, recipes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "cairn"
FILES = sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)
MODULES = [path for path in FILES if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1]  # more than a docstring

# What a YAML file of recipes/ is -> who reads it: a function of one path, or a configuration class.
# A file says its kind by its key `recipe`; a file with `stages` is a stack.
RECIPES = {
    "pretrain": "cairn.training.pretrain:PretrainRecipe",
    "stack": "cairn.stacks.spec:load_stack",
    "experiment": "cairn.verbs.comparison.recipe:load_recipe",
    "sweep": "cairn.verbs.sweep_recipe:load_sweep",
    "tune": "cairn.training.tune_plan:TuneRecipe",
    "selfplay": "cairn.verbs.selfplay_recipe:load_selfplay",
}

# Modules that the command line may import before it knows what to do: none of them may import torch.
LIGHT = ["cairn.cli", "cairn.runs", "cairn.progress", "cairn.contracts", "cairn.prompts", "cairn.engines.base"]


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_rules() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_light_modules_do_not_import_torch(python: Callable) -> None:
    light = LIGHT + [_module(path) for folder in ("verbs", "stacks") for path in (SOURCE / folder).glob("*.py")]
    light += [name for name in ("cairn.data.examples",) if (SOURCE / "data" / "examples.py").exists()]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [heavy for heavy in ('torch', 'transformers', 'peft', 'lm_eval') if heavy in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=_short)
def test_no_file_over_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=_short)
def test_errors_are_raised_not_asserted(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not found, f"assert in lines {found}: raise one of cairn.errors"


def test_names_say_what_a_file_is_for() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "manager.py", "common.py", "misc.py"}
    assert not [path for path in FILES if path.name in vague]


@pytest.mark.parametrize("path", MODULES, ids=_short)
def test_public_names_exist_and_are_documented(path: Path) -> None:
    module = importlib.import_module(_module(path))
    assert inspect.getdoc(module), "a module opens with why it exists"
    assert hasattr(module, "__all__"), "__all__ is missing"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)  # raises if the name does not exist
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=_short)
def test_source_knows_no_single_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""["'`](/work|/home|/root|/Users)/""", text)
    assert not re.search(r"\bTODO\b|\bFIXME\b|NotImplementedError", text)


def test_every_extra_that_an_error_names_exists() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {
        found for path in FILES
        for found in re.findall(r"MissingExtraError\([^()]*?,\s*(?:extra=)?[\"'](\w+)[\"']\s*\)", path.read_text())
    }  # fmt: skip
    assert named <= extras


def test_versions_agree() -> None:
    import cairn

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == cairn.__version__
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    needed = {re.split(r"[<>=\[ ]", one)[0].lower() for one in project["dependencies"]}
    assert needed <= {name.lower() for name in pinned}, "a core dependency has no tested version"


def _drawn(page: str) -> dict[str, set[str]]:
    """Reads the tree on a page: folder -> names drawn inside it; folders drawn without contents are left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"^## The tree\n.*?```(?:text)?\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert block, f"{page} has no section `The tree` with a block"
    inside: dict[str, set[str]] = {}
    path: list[str] = []
    for line in block[1].splitlines():
        name, _, phrase = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        assert phrase.strip() or name.endswith("/"), f"{name} has no phrase that says what it is for"
        path = path[:depth]
        inside.setdefault("/".join(path), set()).add(name)
        path.append(name.rstrip("/"))
    return inside


def _kept(folder: Path) -> set[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode != 0 or not listed.stdout.strip():
        pytest.skip("not a git checkout: what belongs to the project is not known")
    found = set()
    for line in listed.stdout.splitlines():
        if not (ROOT / line).exists():
            continue
        first, *below = (ROOT / line).relative_to(folder).parts
        if not first.startswith(".") and first != "__init__.py":
            found.add(first + ("/" if below else ""))
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/tree.md"])
def test_a_tree_on_paper_is_the_tree_on_disk(page: str) -> None:
    faults = []
    for folder, names in _drawn(page).items():
        real = _kept(ROOT / folder)
        faults += [f"draw {folder}/{name}" for name in sorted(real - names)]
        faults += [f"remove {folder}/{name}" for name in sorted(names - real)]
    assert not faults, "\n".join(faults)


def test_recipes_exist() -> None:
    assert list((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "recipes").rglob("*.yaml"), *(SOURCE / "assets").rglob("stack.yaml")]), ids=_short
)
def test_recipe_loads(path: Path) -> None:
    from cairn.config import load_config

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    kind = content.get("recipe", "stack" if "stages" in content else None)
    assert kind in RECIPES, f"{path.name}: put its kind and reader into RECIPES"
    module, name = RECIPES[kind].split(":")
    reader = getattr(importlib.import_module(module), name)
    loaded = load_config(reader, path) if inspect.isclass(reader) else reader(path)
    assert loaded is not None
