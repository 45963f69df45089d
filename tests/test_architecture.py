"""The architecture page is true: it names every module, and its state table is the machine's.

Run as a program, this file writes the state table into the page.
"""

import inspect
import re
from pathlib import Path
from typing import get_args

from batchframe.core import batches
from batchframe.core.batches import (
    BatchSeen,
    BatchStatus,
    Collected,
    CreateRefused,
    CreateStarted,
    Creating,
    Dropped,
    Ended,
    Event,
    FileLost,
    FileUploaded,
    IllegalTransitionError,
    Live,
    NotFound,
    Planned,
    ResultsCommitted,
    ResultsLost,
    ShardDropped,
    ShardFrozen,
    State,
    TurnedAway,
    Uploaded,
    Uploading,
    UploadStarted,
    Usage,
    advance,
    next_action,
)

PACKAGE = Path(batches.__file__).parents[1]
PAGE = PACKAGE / "README.md"
BEGIN, END = "<!-- state table -->\n", "<!-- end of state table -->"

RUNNING = BatchSeen(
    batch_id="batch_1", input_file_id="file-1", status=BatchStatus.IN_PROGRESS, created_at=0.0
)
OVER = BatchSeen(
    batch_id="batch_1", input_file_id="file-1", status=BatchStatus.COMPLETED, created_at=0.0
)
COMMITTED = ResultsCommitted(
    downloads={},
    usage=Usage(input_tokens=0, cached_tokens=0, output_tokens=0, reasoning_tokens=0),
    n_duplicate=0,
    n_foreign=0,
    n_unreadable=0,
)
STATES = (
    Planned(),
    Uploading(),
    Uploaded(file_id="file-1"),
    Creating(file_id="file-1", token="t", since=0.0),
    Live(batch=RUNNING),
    Ended(batch=OVER),
    Collected(batch=OVER, results=COMMITTED),
    Dropped(),
)
EVENTS = {
    "ShardFrozen": ShardFrozen(n_requests=1, n_bytes=1, n_tokens=1, sha256="0" * 64, round=0),
    "UploadStarted": UploadStarted(),
    "FileUploaded": FileUploaded(file_id="file-1"),
    "CreateStarted": CreateStarted(token="t", at=0.0),
    "CreateRefused": CreateRefused(code="c", message="m"),
    "NotFound": NotFound(),
    "BatchSeen, still running": RUNNING,
    "BatchSeen, at an end": OVER,
    "ResultsCommitted": COMMITTED,
    "ResultsLost": ResultsLost(),
    "FileLost": FileLost(),
    "TurnedAway": TurnedAway(),
    "ShardDropped": ShardDropped(),
}


def state_table() -> str:
    """The machine as Markdown, found out by trying every event in every state."""
    rows = ["| state | what it means | the engine then | event -> next |", "|---|---|---|---|"]
    rows.append(f"| (none) | | | {_transitions(None)} |")
    for state in STATES:
        action = next_action(state)
        does = _sentence(action)
        name = type(state).__name__
        rows.append(f"| {name} | {_sentence(state)} | {does} | {_transitions(state)} |")
    return "\n".join(rows) + "\n"


def _transitions(state: State | None) -> str:
    reached = []
    for name, event in EVENTS.items():
        try:
            reached.append(f"{name} -> {type(advance(state, event)).__name__}")
        except IllegalTransitionError:
            continue
    return "; ".join(reached)


def _sentence(value: object) -> str:
    return (inspect.getdoc(type(value)) or "").splitlines()[0].rstrip(".")


def test_the_samples_cover_every_state_and_every_event():
    assert {type(state) for state in STATES} == set(get_args(State))
    assert {type(event) for event in EVENTS.values()} == set(get_args(Event))


def test_the_state_table_of_the_page_is_the_one_of_the_code():
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]

    assert table == state_table(), "run: python tests/test_architecture.py"


def test_the_page_names_every_module():
    page = PAGE.read_text()
    modules = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "emulator"
    }

    assert {name for name in modules if f"`{name}`" not in page} == set()


def test_the_emulator_names_every_one_of_its_modules():
    folder = PACKAGE / "emulator"
    text = (folder / "__init__.py").read_text().split('"""')[1]

    modules = {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
    assert {name for name in modules if not re.search(rf"\b{name}\b", text)} == set()


def test_every_module_says_what_it_is_and_what_it_offers():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert source.startswith(('"""', 'r"""')), path
        if path.name != "__init__.py":
            assert "__all__" in source, path


def test_the_table_of_faults_names_tests_that_exist_and_leaves_out_no_fault():
    tests = Path(__file__).parent
    page = (tests / "README.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    source = "".join(path.read_text() for path in tests.rglob("*.py"))
    written = set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))

    assert named - written == set()
    faults, inputs = page.split("## Input\n")
    not_yet = {59, 62}  # the page says so
    for part, numbers in ((faults, range(1, 50)), (inputs, set(range(1, 63)) - not_yet)):
        rows = re.findall(r"^\| (\d+)(?:-(\d+))? \|", part, re.MULTILINE)
        covered = [n for low, high in rows for n in range(int(low), int(high or low) + 1)]
        assert covered == sorted(numbers)


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + state_table() + END + rest.split(END)[1])
