"""The directory of a server: who may have it, and what is in it after a failure."""

import subprocess
import sys
from stat import S_IMODE

import pytest

from batchframe.emulator import LocalServer
from tests.emulator.processes import ROOT

HOUR = 3600


def test_a_directory_has_one_server_at_a_time(serve, tmp_path):
    first = serve(directory=tmp_path)
    with pytest.raises(OSError, match="another server uses the directory"):
        serve(directory=tmp_path)
    program = (
        "import sys\nfrom batchframe.emulator import LocalServer\n"
        "LocalServer(directory=sys.argv[1]).start()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    other = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert "another server uses the directory" in other.stderr

    assert first.client.files.list().data == []
    first.server.stop()
    assert serve(directory=tmp_path).client.files.list().data == []


def test_records_that_are_none_are_an_error_that_names_them(tmp_path):
    (tmp_path / "store.sqlite").write_text("no database, but a text that is long enough" * 100)
    with pytest.raises(OSError, match=r"store\.sqlite cannot be used: file is not a database"):
        LocalServer(directory=tmp_path).start()


def test_nobody_else_may_read_a_new_directory(serve, tmp_path):
    serve(directory=tmp_path / "new" / "batches")
    assert S_IMODE((tmp_path / "new" / "batches").stat().st_mode) == 0o700


def test_an_end_that_was_not_written_did_not_happen(serve, tmp_path):
    bench = serve(directory=tmp_path, webhook_url="http://127.0.0.1:9/")
    batch = bench.submit(bench.lines(2))
    for _ in ("in_progress", "finalizing"):
        bench.after(batch, 10)
    archive = bench.server._store._archive
    with archive.changed:
        archive._database.execute("PRAGMA query_only = ON")
    bench.clock.advance(10)
    assert bench.raw("GET", f"/batches/{batch.id}").status_code == 500
    with archive.changed:
        assert archive.batches[batch.id].status == "finalizing"
        assert archive.deliveries == {}
        assert [file.purpose for file in archive.files.values()] == ["batch"]
        archive._database.execute("PRAGMA query_only = OFF")

    ended = bench.batch(batch)
    assert ended.status == "completed"
    bench.server.stop()
    again = serve(directory=tmp_path)
    assert again.batch(batch) == ended
    assert len(again.rows(ended.output_file_id)) == 2


def test_a_file_whose_bytes_are_gone_is_not_found(serve, tmp_path):
    # As when it is deleted between its look-up and its download.
    bench = serve(directory=tmp_path)
    file = bench.upload(bench.lines(1))
    (tmp_path / "files" / file.id).unlink()

    for headers in ({}, {"range": "bytes=0-3"}):
        reply = bench.raw("GET", f"/files/{file.id}/content", headers=headers)
        assert reply.status_code == 404
        assert reply.json()["error"]["message"] == f"No such File object: {file.id}"
    bench.client.files.delete(file.id)
