"""The original and ours against the same server: what is equal, and what differs, and why."""

import pytest

from batchframe.emulator import LocalServer

original = pytest.importorskip("openai_batch_api")

N_MESSAGES = 45


def customs(n):
    return [
        {"id": f"calc_{i}", "content": [{"role": "user", "content": f"1 + {i} = "}]}
        for i in range(n)
    ]


def lists(n):
    return [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f'Line {i}\u2028 \N{GRINNING FACE} \\ "quoted"\n'},
        ]
        for i in range(n)
    ]


@pytest.fixture
def original_client(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = original.OpenaiBatchAPI(api_key="sk-local", req_cooldown=0, batch_cooldown=0)
    yield client
    client.client.close()


def place_of(content):
    """Where a message stood. The original puts a random number before an automatic id."""
    return int(content["id"].rpartition("_")[2])


def contents_of(batchs):
    return [content for batch in batchs for content in batch.output_file.contents]


@pytest.mark.parametrize("batch_size", [1, 2, 20, N_MESSAGES + 1])
@pytest.mark.parametrize("messages", [customs(N_MESSAGES), lists(N_MESSAGES)], ids=["ids", "lists"])
def test_both_give_the_same(server, original_client, client_of, messages, batch_size):
    body = {"model": "gpt-4o-mini", "temperature": 0, "max_completion_tokens": 32}
    theirs = original_client.batchs_completion(messages, batch_size=batch_size, **body)
    n_created = server.calls()["batches.create"]
    client = client_of(server)
    ours = client.batchs_completion(messages, batch_size=batch_size, **body)

    assert len(ours) == len(theirs) == n_created
    assert server.calls()["batches.create"] == 2 * n_created
    assert [len(batch.output_file.contents) for batch in ours] == [
        len(batch.output_file.contents) for batch in theirs
    ]
    for our_batch, their_batch in zip(ours, theirs, strict=True):
        # The original gives a batch's answers in the order in which the service wrote them.
        in_order = sorted(their_batch.output_file.contents, key=place_of)
        for our, their in zip(our_batch.output_file.contents, in_order, strict=True):
            assert place_of(our) == place_of(their)
            assert our["choices"] == their["choices"]
            assert our["usage"] == their["usage"]
            assert our["error"] is their["error"] is None
    assert [content["id"] for content in contents_of(ours)] == [
        message["id"] if isinstance(message, dict) else str(i) for i, message in enumerate(messages)
    ]
    for our, their in zip(ours, theirs, strict=True):
        assert our.status == their.status == "completed"
        assert our.done is their.done is True
        assert our.error_file is their.error_file is None
        assert our.output_file.usage == their.output_file.usage
        for category in ("prompt", "completion"):
            assert our.usage[category] == pytest.approx(their.usage[category])
    for category in ("prompt", "completion"):
        assert client.usage[category] == pytest.approx(original_client.usage[category])


def test_both_print_the_same_table(server, original_client, client_of, capsys):
    original_client.batchs_completion(customs(7))
    original_client.print_usage_table()
    theirs = capsys.readouterr().out
    client = client_of(server)
    client.batchs_completion(customs(7))
    client.print_usage_table()
    assert capsys.readouterr().out == theirs

    original_client.print_usage_table(digits=3)
    theirs = capsys.readouterr().out
    client.print_usage_table(digits=3)
    assert capsys.readouterr().out == theirs


def test_the_price_of_a_batch_with_two_files_is_added_once_here(server, original_client, client_of):
    # The original multiplies the tokens of all files so far, and adds that for each file.
    client = client_of(server)
    (batch,) = client.batchs_completion(customs(4))
    (theirs,) = original_client.batchs_completion(customs(4))
    assert batch.usage["prompt"]["price"] == pytest.approx(theirs.usage["prompt"]["price"])

    theirs.update_usage(theirs.output_file)
    tokens = theirs.usage["prompt"]["tokens"]
    assert theirs.usage["prompt"]["price"] == pytest.approx(1.5 * tokens * 0.075e-6)


def test_a_dated_model_runs_here_and_ends_the_original(server, original_client, client_of):
    with pytest.raises(ValueError, match="not supported"):
        original_client.batchs_completion(customs(2), model="gpt-4o-mini-2024-07-18")

    (batch,) = client_of(server).batchs_completion(customs(2), model="gpt-4o-mini-2024-07-18")
    tokens = batch.usage["completion"]["tokens"]
    assert batch.usage["completion"]["price"] == pytest.approx(tokens * 0.30e-6)


def test_a_row_that_failed_is_lost_by_the_original_if_its_batch_has_no_other(
    original_client, monkeypatch, client_of
):
    def refuse(body):
        return 400, {"error": {"message": "no", "code": "invalid_value", "type": None}}

    with LocalServer(refuse) as refusing:
        original_client.client.base_url = refusing.base_url
        (theirs,) = original_client.batchs_completion(customs(2))
        assert theirs.output_file is None  # and the loop of its documentation ends in an error

        (ours,) = client_of(refusing).batchs_completion(customs(2))
        assert ours.output_file.contents == []
        assert [content["error"]["code"] for content in ours.error_file.contents] == [
            "invalid_value"
        ] * 2
