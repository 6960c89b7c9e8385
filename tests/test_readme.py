"""The README's commands exist as written, its result table is the report's, and links between documents lead somewhere."""

import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
import yaml
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser

from stages.cli import app
from tests.readme import README, ROOT, commands

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "report").glob("*.md")),
    ROOT / "store_schema/README.md",
]
COMMANDS = typer.main.get_group(app).commands


def parse_fd3d(words: list[str]) -> None:
    """Parse a command's arguments without running the command.

    Raises:
        AssertionError: there is no such command or option, or an argument is missing or has another type.
    """
    name, *arguments = words
    assert name in COMMANDS, f"unknown command fd3d {name}; known: {', '.join(COMMANDS)}"
    try:
        COMMANDS[name].make_context(name, arguments)
    except Exception as error:  # typer brings a click of its own, whose exceptions have no public name
        raise AssertionError(f"fd3d {shlex.join(words)}: {error}") from error


def parse_dvc(words: list[str]) -> None:
    """Parse a dvc command; targets are stages of dvc.yaml or files, parameters are those of params.yaml."""
    try:
        values = vars(get_main_parser().parse_args(words))
    except DvcParserError as error:
        raise AssertionError(f"dvc {shlex.join(words)}: {error}") from error
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for target in values.get("targets") or []:
        assert target.partition("@")[0] in pipeline or (ROOT / target).exists(), f"dvc.yaml has no stage {target}"
    for assignment in values.get("set_param") or []:
        found = yaml.safe_load((ROOT / "params.yaml").read_text())
        for part in assignment.partition("=")[0].split("."):
            assert part in found, f"params.yaml has no {assignment}"
            found = found[part]


def check(words: list[str]) -> None:
    """Check one command of a page without running the command; make prints what the target would run."""
    match words:
        case ["fd3d", *rest] | ["torchrun", "--nproc-per-node", _, "-m", "stages.cli", *rest]:
            parse_fd3d(rest)
        case ["dvc", *rest]:
            parse_dvc(rest)
        case ["make", target]:
            made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert made.returncode == 0, made.stderr
        case ["cp", source, _]:
            assert (ROOT / source).is_file(), f"{source} does not exist"
        case ["pip", "install", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert what.startswith((".", project["name"])), f"{what} is not this project"
            for extra in re.findall(r"[\w-]+", what.partition("[")[2]):
                assert extra in project["optional-dependencies"], f"pyproject.toml has no extra {extra}"
        case _:
            raise AssertionError(f"no test knows how to check '{shlex.join(words)}'")


def readme_commands() -> list[list[str]]:
    """Commands in the README's blocks, and those in its lines that are complete."""
    inline = re.findall(r"`((?:make|pip install|dvc|fd3d) [^`]+)`", README.read_text())
    found = {shlex.join(words): words for words in commands(README) + [shlex.split(text) for text in inline]}
    return list(found.values())


@pytest.mark.parametrize("words", readme_commands(), ids=shlex.join)
def test_a_command_of_the_readme_exists_with_its_options(words: list[str]):
    check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fd3d_and_python_commands_of_every_page_exist_with_their_options(page: Path):
    for words in commands(page):
        if words[0] in ("fd3d", "torchrun"):
            check(words)
    for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), f"no module {module}"
    for text in re.findall(r"`fd3d ([^`\n]+)`", page.read_text()):  # mentions, which need not be complete
        name, *rest = text.split()
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, text


def test_a_misspelt_option_command_target_or_setting_is_noticed():
    for wrong in (
        "fd3d plan configs/bevformer/base.py --frame 10 --rate 2",  # --frames
        "fd3d dumb --out x",
        "fd3d train --seed many",
        "make lock",
        "dvc exp run -S distill.w_bew=2",
        "dvc repro --singel-item dump@bevformer",
        "dvc repro dumb@bevformer",
    ):
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))


def test_the_readme_takes_ten_minutes():
    assert len(README.read_text().splitlines()) <= 120


def table(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of a Markdown table by their first two cells, each a mapping from the column's name."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head, _, *rows = lines
    return {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}


def test_the_result_table_is_the_report_s():
    shown = table(README.read_text().partition("<!-- result -->")[2].partition("<!-- /result -->")[0])
    report = table((ROOT / "report/summary.md").read_text())
    assert shown.keys() == report.keys()
    for name, row in shown.items():
        common = row.keys() & report[name].keys()
        assert {"NDS", "mAP"} <= common
        assert {column: row[column] for column in common} == {column: report[name][column] for column in common}


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, made as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link} leads to no heading"


def test_the_index_of_documents_lists_every_page():
    index = ROOT / "docs/README.md"
    listed = set(re.findall(r"[\w-]+\.md", index.read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def test_files_that_the_documents_commands_write_are_ignored_by_git():
    """Git would show them, and 'git add' would take them."""
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no checkout of git")
    made = {
        word.rpartition("=")[2]
        for page in PAGES
        for words in commands(page)
        for word in words
        if word.endswith((".onnx", ".plan", ".npz", ".png", ".svg", ".html")) or words[words.index(word) - 1] == ">"
    }
    assert {"student.onnx", "student.plan", "ex.npz", "before.txt"} <= made
    shown = [
        word
        for word in made
        if subprocess.run(["git", "check-ignore", "-q", word], cwd=ROOT).returncode
        and subprocess.run(["git", "ls-files", "--error-unmatch", word], cwd=ROOT, capture_output=True).returncode
    ]
    assert shown == []
