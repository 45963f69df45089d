"""Guards, each removed once: the tests named with it must then fail.

    python -m tests.mutations [WORDS]

runs those whose name holds the words, all by default, each on a copy of the project. It ends with
the number of mutations that no test noticed. `tests/test_mutations.py` keeps the list true.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """One guard removed."""

    #: The guard.
    name: str
    #: The module, below `batchframe`.
    module: str
    #: Its text, once in the module, and what it becomes.
    old: str
    new: str
    #: The tests that must notice: a file below `tests`, and a selection for `-k`.
    tests: str
    select: str


MUTATIONS = (
    Mutation(
        "fsync of a commit",
        "storage.py",
        "                self._flush(file)\n            self._link(temporary, path)",
        "            self._link(temporary, path)",
        "engine/test_crashes.py",
        "completed and power",
    ),
    Mutation(
        "fsync of a shard, a download, a table",
        "storage.py",
        "                self._flush(file)\n            self._rename(temporary, path)",
        "            self._rename(temporary, path)",
        "engine/test_crashes.py",
        "completed and power",
    ),
    Mutation(
        "fsync of the directory of a commit",
        "storage.py",
        "            temporary.unlink(missing_ok=True)\n"
        "        self._flush_directory(path.parent)\n        return True",
        "            temporary.unlink(missing_ok=True)\n        return True",
        "engine/test_crashes.py",
        "completed and power",
    ),
    Mutation(
        "put if absent",
        "storage.py",
        "        os.link(source, target)",
        "        target.write_bytes(source.read_bytes())",
        "engine/test_processes.py",
        "stopped_process",
    ),
    Mutation(
        "the intent before the create",
        "steps.py",
        "            job.searches, job.searched_since = 0, None\n            return AT_ONCE",
        "            checkpoint.commit(job.number, CreateRefused(code='', message=''))\n"
        "            job.searches, job.searched_since = 0, None\n            return AT_ONCE",
        "engine/test_engine.py",
        "reply_was_lost",
    ),
    Mutation(
        "rows that an expired batch did, and lost, are not free",
        "collecting.py",
        "if batch.status in _CUT_SHORT and _n_told(collected) < batch.n_done:",
        "if False:",
        "engine/test_endings.py",
        "has_no_line_for",
    ),
    Mutation(
        "answers are in an output file that has a name",
        "steps.py",
        "seen.error_file_id is not None and not seen.n_answered",
        "seen.error_file_id is not None",
        "engine/test_endings.py",
        "after_its_error_file",
    ),
    Mutation(
        "no retries of the SDK",
        "accounts.py",
        "client.with_options(max_retries=0)",
        "client.with_options(max_retries=2)",
        "engine/test_engine.py",
        "reply_was_lost or never_arrived",
    ),
    Mutation(
        "the search again and again",
        "steps.py",
        "    if left > 0:",
        "    if left > grace:",
        "engine/test_engine.py",
        "lands_late",
    ),
    Mutation(
        "the search by file",
        "core/replies.py",
        "return batch.input_file_id == file_id or batch.metadata",
        "return batch.metadata",
        "client/test_client.py",
        "found_by_its_file",
    ),
    Mutation(
        "a batch of ours with an odd id is not none",
        "client.py",
        "if nameless and not found:",
        "if False:",
        "client/test_client.py",
        "not_taken_for_none",
    ),
    Mutation(
        "results at an address are not gone",
        "client.py",
        "        if not self.dialect.links_results:\n            raise",
        "        if not self.dialect.links_results:\n            return None\n            raise",
        "client/test_client.py",
        "whoever_it_is_taken_for",
    ),
    Mutation(
        "no address of our own network is asked",
        "client.py",
        "if not self._is_local and not is_public(",
        "if not self._is_local and is_loopback(",
        "client/test_client.py",
        "our_own_network",
    ),
    Mutation(
        "the fence: a file that is given up is deleted",
        "steps.py",
        "    provider.delete_file(search.file_id)\n",
        "",
        "engine/test_engine.py",
        "given_up_is_deleted",
    ),
    Mutation(
        "one status for every request",
        "core/results.py",
        "    line_of = pc.replace_with_mask(line_of, is_without, rest)\n",
        "",
        "engine/test_engine.py",
        "line_that_is_missing",
    ),
    Mutation(
        "the size of a download",
        "client.py",
        "        if isinstance(expected, int) and n_bytes != expected:\n            raise",
        "        if False:\n            raise",
        "client/test_client.py",
        "download",
    ),
    Mutation(
        "both files, whatever the counts say",
        "collecting.py",
        '        "output": batch.output_file_id,',
        '        "output": batch.output_file_id if batch.n_done else None,',
        "engine",
        "null_counts",
    ),
    Mutation(
        "nothing is sent once nobody waits",
        "engine.py",
        "            left = [(j, how) for j in self._jobs.values() "
        "if (how := j.watchers.pop(owner, None))]",
        "            left = []",
        "engine/test_engine.py",
        "wait_is_over",
    ),
    Mutation(
        "who leaves waits for steps with its client",
        "engine.py",
        "(not job.watchers or job.used is how)",
        "not job.watchers",
        "engine/test_sharing.py",
        "with_its_client",
    ),
    Mutation(
        "what waits for its next try is written down",
        "rounds.py",
        "        except (ProviderError, BudgetExceededError, ErrorRatioExceededError):",
        "        except ():",
        "engine/test_going_on.py",
        "when_a_run_stops",
    ),
    Mutation(
        "a shard with unwanted rows is dropped",
        "planning.py",
        "            if not self._is_worth_it(number, n_wanted):",
        "            if n_wanted < 0:",
        "engine/test_engine.py",
        "never_sent",
    ),
    Mutation(
        "the seal of a commit",
        "commits.py",
        "        if data != _sealed(payload):",
        "        if False:",
        "checkpoint",
        "broken_log",
    ),
    Mutation(
        "no prices of another service",
        "core/rates.py",
        "    if price_list is None or _BILLED_BESIDE.search(name):\n        return None\n",
        "    price_list = price_list or OPENAI_LIST\n",
        "core/test_prices.py",
        "own_prices",
    ),
    Mutation(
        "no key for an address of results",
        "client.py",
        'httpx2.Request("GET", link, headers=dict(headers))',
        'httpx2.Request("GET", link, headers={"authorization": self._client.api_key})',
        "client/test_client.py",
        "without_the_key",
    ),
    Mutation(
        "a create calls the endpoint what its lines call it",
        "steps.py",
        "checkpoint.url_of(job.number) or dialect.url(",
        "dialect.url(",
        "frames/test_dialects.py",
        "goes_out_as",
    ),
    Mutation(
        "lines that are sent again are addressed anew",
        "rounds.py",
        "(addressed(chunk, url) for chunk in chunks)",
        "chunks",
        "frames/test_dialects.py",
        "addressed_anew",
    ),
    Mutation(
        "rows that were prepared for another service are prepared anew",
        "planning.py",
        " and self._is_addressed(number))",
        ")",
        "frames/test_dialects.py",
        "prepared_anew",
    ),
    Mutation(
        "rows that are cut anew count on their tries",
        "rounds.py",
        "            self._hold(requests, round_)\n            # Rows",
        "            self._hold(requests, 0)\n            # Rows",
        "engine/test_engine.py",
        "count_on_their_tries",
    ),
    Mutation(
        "damaged results are made anew where somebody waits",
        "frames/runs.py",
        "                self._repair(there)\n",
        "",
        "frames/test_runs.py",
        "damaged",
    ),
    Mutation(
        "what was cancelled stays so when a call begins anew",
        "checkpoint.py",
        "self._keep_cancelled(self.cancelled_shards.union(shards))",
        "self._keep_cancelled(self.cancelled_shards)",
        "engine/test_again.py",
        "nor_",
    ),
    Mutation(
        "a call takes back what it asks for",
        "rounds.py",
        "has_rows = self.windows is not None",
        "has_rows = False",
        "engine/test_again.py",
        "asks_for_again",
    ),
)


def is_noticed(mutation: Mutation) -> bool:
    """Whether its tests pass with the guard, and fail once it is removed."""
    # 1 is a failed test; anything else, such as a selection without tests, proves nothing.
    return _run(mutation, is_removed=False) == 0 and _run(mutation, is_removed=True) == 1


def _run(mutation: Mutation, *, is_removed: bool) -> int:
    """The exit code of its tests, on a copy of the project."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("batchframe", "tests", "pyproject.toml", "README.md", "CHANGELOG.md"):
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=ignored)
            else:
                shutil.copy(source, place / name)
        module = place / "batchframe" / mutation.module
        if is_removed:
            module.write_text(module.read_text().replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"tests/{mutation.tests}", "-k", mutation.select],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    return done.returncode


def main(words: str) -> int:
    """Remove the guards one by one; returns how many went unnoticed."""
    unnoticed = 0
    for mutation in MUTATIONS:
        if words in mutation.name:
            noticed = is_noticed(mutation)
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED':<12} {mutation.name}", flush=True)  # noqa: T201
    return unnoticed


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
