"""Images go along with the prompts: URLs as they are, files and bytes as data."""

import base64
import json
from pathlib import Path

import pandas as pd
import pytest

import batchframe as bf

PNG = b"\x89PNG\r\n\x1a\n" + b"the rest"
JPEG = b"\xff\xd8\xff\xe0 the rest"
GIF = b"GIF89a the rest"
WEBP = b"RIFF\x00\x00\x00\x00WEBP the rest"


def data_url(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def contents(client):
    """What the newest batch sent, by the text of each row."""
    batch = client.batches.list(limit=1).data[0]
    lines = client.files.content(batch.input_file_id).text.split("\n")[:-1]
    bodies = [json.loads(line)["body"] for line in lines]
    found = [(body.get("messages") or body["input"])[-1]["content"] for body in bodies]
    return {parts[0]["text"]: parts[1:] for parts in found}


def test_urls_paths_and_bytes_become_parts(frames, complete, client, tmp_path):
    path = tmp_path / "photo.anything"
    path.write_bytes(JPEG)
    frame = frames.make(
        {
            "id": range(4),
            "prompt": ["one", "two", "three", None],
            "where": ["https://example.org/a.png", str(path), None, "not looked at"],
            "bytes": [PNG, None, None, GIF],
        }
    )
    out = complete(frame, images=["where", "bytes"])

    assert contents(client) == {
        "one": [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "image_url", "image_url": {"url": data_url("png", PNG)}},
        ],
        "two": [{"type": "image_url", "image_url": {"url": data_url("jpeg", JPEG)}}],
        "three": [],
    }
    assert frames.values(out, "completion") == ["echo: one", "echo: two", "echo: three", None]
    assert frames.values(out, "completion_status")[3] == "skipped"


@pytest.mark.parametrize(("kind", "data"), [("gif", GIF), ("webp", WEBP)])
def test_the_media_type_is_that_of_the_content(frames, complete, client, kind, data):
    frame = frames.make({"id": [1], "prompt": ["x"], "picture": [data]})
    complete(frame, images="picture", endpoint="/v1/responses")
    assert contents(client) == {"x": [{"type": "input_image", "image_url": data_url(kind, data)}]}


def test_another_image_is_another_row_and_the_same_is_not(frames, complete, paid, checkpoint):
    frame = frames.make({"id": [1], "prompt": ["x"], "picture": [PNG]})
    complete(frame, images="picture")
    complete(frame, images=["picture"])
    assert paid() == 1
    attached = bf.attach(frame, checkpoint, "prompt", "id", images="picture")
    assert frames.values(attached, "completion") == ["echo: x"]
    complete(frames.make({"id": [1], "prompt": ["x"], "picture": [GIF]}), images="picture")
    assert paid() == 2


def test_a_template_may_have_images(frames, complete, client):
    frame = frames.make({"id": [1], "what": ["a dog"], "picture": [PNG]})
    complete(frame, None, template="Is this {what}?", images="picture")
    assert list(contents(client)) == ["Is this a dog?"]


def test_what_is_no_image_is_refused_with_its_row(
    frames, complete, calls, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # its own path may be longer than what a message shows
    Path("secret.png").write_text("password", encoding="utf-8")
    for values, words in (
        (["https://x", "secret.png"], "Row 1 of column 'picture' is 'secret.png', which is no PNG"),
        (["https://x", "none.png"], r"Row 1 .* nor a file .*FileNotFoundError"),
        (["https://x", "a\0b"], "Row 1 .* nor a file that can be read"),
        ([b"text", PNG], "Row 0 .* which is no PNG"),
    ):
        frame = frames.make({"id": [1, 2], "prompt": ["a", "b"], "picture": values})
        with pytest.raises(bf.RowError, match=words) as caught:
            complete(frame, images="picture")
        assert "password" not in str(caught.value)
    frame = frames.make({"id": [1], "prompt": ["a"], "picture": [7]})
    with pytest.raises(
        bf.ColumnError, match="images are URLs, paths or bytes, and it has 7 in row 0"
    ):
        complete(frame, images="picture")
    with pytest.raises(bf.ColumnError, match=r"no column 'pictures' for images\. Did you mean"):
        complete(frame, images="pictures")
    assert calls() == {}
    assert not checkpoint.exists()


def test_lists_of_messages_hold_their_images_themselves(complete, calls):
    chat = [{"role": "user", "content": "x"}]
    frame = pd.DataFrame({"id": [1], "prompt": [chat], "picture": ["https://x"]})
    with pytest.raises(bf.ParameterError, match="hold their images themselves"):
        complete(frame, images="picture")
    assert calls() == {}


def test_urls_and_bytes_may_stand_in_one_column_of_objects(complete, client):
    frame = pd.DataFrame({"id": [1, 2], "prompt": ["a", "b"], "picture": ["https://x/y.png", PNG]})
    out = complete(frame, images="picture")
    assert out["completion_status"].tolist() == ["ok", "ok"]


def test_paths_are_paths_of_files(complete, client, paid, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    frame = pd.DataFrame({"id": [1, 2], "prompt": ["a", "b"], "picture": [path, None]})
    complete(frame, images="picture")
    assert contents(client)["a"] == [
        {"type": "image_url", "image_url": {"url": data_url("png", PNG)}}
    ]
    complete(frame.assign(picture=[str(path), None]), images="picture")
    assert paid() == 2
    with pytest.raises(bf.RowError, match=r"Row 0 of column 'picture' is 'none\.png'"):
        complete(frame.assign(picture=[Path("none.png"), None]), images="picture")
