"""The wheel holds the tree's files, each once, and works from another folder; requirements are declared."""

import ast
import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[1]
FOLDERS = {"gentf": "gentf", "kernels": "gentf/kernels", "cli": "gentf/cli"}  # in the tree -> in the wheel
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
LINKS = {"gentf/kernels": "../kernels", "gentf/cli": "../cli"}  # what `make dev` adds


def sources(tree: Path, pattern: str = "*") -> dict[str, str]:
    """Path in the tree -> path in the wheel, of every source file and preset."""
    found = {}
    for folder, target in FOLDERS.items():
        for path in (tree / folder).rglob(pattern):
            inside = path.relative_to(tree / folder)
            linked = folder == "gentf" and inside.parts[0] in ("kernels", "cli")
            if path.suffix in (".py", ".yaml") and not linked:
                found[f"{folder}/{inside}"] = f"{target}/{inside}"
    return found


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(TREE / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[bool, Path]:
    """The wheel built from a copy of the tree without and with the links of `make dev`."""
    built = {}
    for linked in (False, True):
        tree = tmp_path_factory.mktemp("linked" if linked else "plain")
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(TREE / name, tree / name)
        for source in sources(TREE):
            (tree / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TREE / source, tree / source)
        if linked:
            for link, target in LINKS.items():
                (tree / link).symlink_to(target)
        command = [*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tree / "dist")]
        if all(importlib.util.find_spec(name) for name in ("setuptools", "wheel")):
            command.append("--no-build-isolation")
        subprocess.run([*command, str(tree)], check=True, capture_output=True)
        (built[linked],) = (tree / "dist").glob("gentf_keras-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """Runs Python in an empty folder, where gentf comes from the installed wheel."""
    target, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    command = [*PIP, "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*command, str(wheels[False])], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(target), "TF_CPP_MIN_LOG_LEVEL": "2"}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run.target = target
    return run


@pytest.mark.parametrize("linked", [False, True])
def test_wheel_holds_every_file_of_the_tree_once(wheels, linked):
    with zipfile.ZipFile(wheels[linked]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(sources(TREE).values())


def test_wheel_metadata(wheels):
    with zipfile.ZipFile(wheels[False]) as wheel:
        (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        text = wheel.read(f"{info}/METADATA").decode()
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
        names = wheel.namelist()
    assert "\nName: gentf-keras\n" in text and "\nRequires-Python: >=3.11\n" in text
    assert {"gpu", "test", "dev"} <= set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    assert "gentf = gentf.cli.main:main" in scripts
    assert any(name.endswith("LICENSE") for name in names)
    import gentf

    assert f"\nVersion: {gentf.__version__}\n" in text


def test_installed_wheel_works_from_another_folder(installed):
    code = "import gentf.kernels, gentf.cli; print(*(m.__file__ for m in (gentf, gentf.kernels, gentf.cli)))"
    assert installed("-c", code).split() == [
        f"{installed.target}/{package}/__init__.py" for package in ("gentf", "gentf/kernels", "gentf/cli")
    ]
    assert "Usage: gentf" in installed("-m", "gentf", "--help")
    presets = installed("-m", "gentf", "presets")
    for preset in (TREE / "gentf" / "presets").glob("*.yaml"):
        assert re.search(rf"^{re.escape(preset.stem)} ", presets, re.MULTILINE)


def test_installed_wheel_has_one_top_level_package(installed):
    names = [path.name for path in installed.target.iterdir() if path.suffix != ".dist-info"]
    assert sorted(names) == ["bin", "gentf"]
    script = installed.target / "bin" / "gentf"
    assert "Usage: gentf" in installed(str(script), "--help")


def package(target: str) -> str:
    """Name of the package that a path in the wheel belongs to."""
    return os.path.dirname(target).replace("/", ".")


def test_every_package_on_disk_is_listed():
    listed = settings()["options"]["packages"].split()
    on_disk = {package(target) for target in sources(TREE, "__init__.py").values()}
    assert sorted(listed) == sorted(on_disk)
    strays = [source for source, target in sources(TREE).items() if package(target) not in on_disk]
    assert not strays, "a folder without __init__.py is no package"


def imports(path: Path) -> set[str]:
    """Top-level names that the module at `path` imports absolutely."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def test_every_import_of_the_package_is_declared():
    indirect = {"google": "tensorflow"}  # google.protobuf: TensorFlow cannot do without it
    owners = metadata.packages_distributions()
    canonical = {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in requirements()}
    undeclared = {}
    for source in sources(TREE, "*.py"):
        for name in imports(TREE / source) - {"gentf"}:
            names = [indirect.get(name)] if name in indirect else owners.get(name, [name])
            if not canonical & {str(owner).lower().replace("_", "-") for owner in names}:
                undeclared.setdefault(name, []).append(source)
    assert not undeclared


def requirements() -> list[str]:
    lines = settings()["options"]["install_requires"].splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_no_module_imports_kernels_or_cli_by_its_bare_name():
    folders = ("gentf", "kernels", "cli", "tests", "benchmarks", "docs")
    files = [path for folder in folders for path in (TREE / folder).rglob("*.py")]
    assert not [str(path) for path in files if imports(path) & {"kernels", "cli"}]


def test_every_requirement_has_a_bound_and_a_reason():
    lines = [line for line in settings_text("install_requires") if line]
    for comment, requirement in zip(lines, lines[1:], strict=False):
        if not requirement.startswith("#"):
            assert comment.startswith("# "), f"no comment above {requirement}"
            assert ">=" in requirement
    assert len(requirements()) >= 8


def settings_text(key: str) -> list[str]:
    """The raw lines of a setup.cfg value, comments included."""
    text = (TREE / "setup.cfg").read_text().split(f"\n{key} =\n")[1]
    return [line.strip() for line in text.split("\n[")[0].splitlines()]


def test_ci_runs_the_documented_test_command():
    script = TREE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(), re.MULTILINE)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "make test" in (TREE / "README.md").read_text()
