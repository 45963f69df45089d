"""A batch as two tasks of a scheduler: one submits, another collects, each in its own process.

    python etl_pipeline.py submit  questions.parquet runs/questions
    python etl_pipeline.py collect questions.parquet runs/questions answers.parquet

Between them nothing has to run: the batches go on at the provider, and the checkpoint (runs/...)
holds all that is known. It is the one thing that both tasks share, so keep it on a disk that both
reach. Both tasks may be run again at any time, after a crash as well: rows are never paid twice.

`collect` ends with exit code 0 when answers.parquet is written, and with 3 while it is not done.
Each time it collects what has ended and sends what had no room before.

Airflow: two tasks; the second gives its worker back while it waits:

    submit >> PythonSensor(
        task_id="collect",
        python_callable=lambda: collect("questions.parquet", RUN, "answers.parquet"),
        mode="reschedule", poke_interval=600, timeout=36 * 3600,
    )

Dagster: an op for `submit`, and a sensor that calls `collect` and asks for the next op once it
gives True.

cron, with one line for both, as `collect` also submits what was never sent:

    */10 * * * *  python etl_pipeline.py collect questions.parquet runs/questions answers.parquet
"""

import os
import sys

import pyarrow.parquet as pq

import batchframe as bf

#: What is asked, the same in both tasks: a row is found again by it.
CALL = {"prompt_col": "prompt", "id_col": "id", "model": "gpt-4o-mini", "temperature": 0}
NOT_DONE, BUSY = 3, 4


def submit(source: str, checkpoint: str) -> bf.Run:
    """Send what is not sent yet and fits the limits; gives the run's handle."""
    return bf.submit(pq.read_table(source), **CALL, checkpoint=checkpoint, progress=False)


def collect(source: str, checkpoint: str, target: str) -> bool:
    """Collect what has ended; write the target, and give True, if that is all."""
    run = submit(source, checkpoint)  # it takes up what is there, and sends nothing twice
    if not run.detach():
        return False
    # Whole or not at all, as the next task may be looking.
    pq.write_table(run.result(), f"{target}.part")
    os.replace(f"{target}.part", target)
    return True


def main(task: str, *paths: str) -> int:
    """Do one task, as a process of its own; gives the exit code."""
    try:
        if task == "submit":
            submit(*paths).detach()
            return 0
        return 0 if collect(*paths) else NOT_DONE
    except bf.CheckpointBusyError:
        return BUSY  # another process works on it: nothing to do
    except bf.BatchframeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
