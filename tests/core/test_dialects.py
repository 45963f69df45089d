"""An address says how its service speaks, or that it speaks another protocol altogether."""

import re

import pytest

from batchframe.core.addresses import is_loopback
from batchframe.core.dialects import (
    DIALECTS,
    GENERIC,
    REFUSED,
    Dialect,
    dialect_of,
    hours_of,
    price_list_of,
)
from batchframe.core.spec import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
)
from batchframe.errors import ParameterError

# Addresses


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://api.openai.com/v1/", "openai"),
        ("https://eu.api.openai.com/v1/", "openai"),
        ("http://127.0.0.1:8000/v1/", "openai"),
        ("http://[::1]:8000/v1/", "openai"),
        ("http://localhost:11434/v1/", "openai"),
        ("https://contoso.openai.azure.com/openai/v1/", "azure-v1"),
        ("https://contoso.services.ai.azure.com/openai/v1/", "azure-v1"),
        ("https://contoso.openai.azure.com/openai/", "azure"),
        ("https://contoso.openai.azure.us/openai/deployments/gpt/", "azure"),
        ("https://contoso.cognitiveservices.azure.com/openai/", "azure"),
        ("https://api.groq.com/openai/v1/", "groq"),
        ("https://dashscope.aliyuncs.com/compatible-mode/v1/", "dashscope"),
        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1/", "dashscope"),
        ("https://ws1.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1/", "dashscope"),
        ("https://api.doubleword.ai/v1/", "doubleword"),
        ("https://api.parasail.io/v1/", "parasail"),
        ("https://api.deepinfra.com/v1/openai/", "deepinfra"),
        ("https://api.moonshot.ai/v1/", "moonshot"),
        ("https://api.moonshot.cn/v1/", "moonshot"),
        ("https://api.siliconflow.cn/v1/", "siliconflow"),
        ("https://gateway.example.com/v1/", "generic"),
        # A host that only looks like one of them.
        ("https://api.openai.com.example.com/v1/", "generic"),
        ("https://notapi.groq.com/v1/", "generic"),
        ("https://example.com/api.groq.com/", "generic"),
        ("https://127.0.0.1.example.com/v1/", "generic"),
    ],
)
def test_the_address_says_how_its_service_speaks(address, name):
    assert dialect_of(address).name == name


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/openai/", "https://apim.contoso.com/x/"])
def test_a_client_of_azure_speaks_azure_whatever_stands_in_front_of_it(address):
    assert dialect_of(address, is_azure=True).name == "azure"


def test_a_client_of_azure_at_the_v1_address_speaks_that():
    address = "https://contoso.openai.azure.com/openai/v1/"
    assert dialect_of(address, is_azure=True).name == "azure-v1"


@pytest.mark.parametrize("name", DIALECTS)
def test_a_name_holds_whatever_the_address_is(name):
    for address in ("https://api.openai.com/v1/", "https://api.anthropic.com/v1/"):
        assert dialect_of(address, name) is DIALECTS[name]
        assert dialect_of(address, name, is_azure=True) is DIALECTS[name]


def test_a_record_holds_whatever_the_address_is():
    house = Dialect(name="house")
    assert dialect_of("https://api.mistral.ai/v1/", house) is house


def test_a_name_that_there_is_not_is_refused_with_the_closest():
    with pytest.raises(ParameterError, match=r"Did you mean 'azure'\? Nothing was sent"):
        dialect_of("https://api.openai.com/v1/", "azur")


@pytest.mark.parametrize(
    ("address", "title", "instead"),
    [
        ("https://api.anthropic.com/v1/", "Anthropic", "/v1/messages/batches"),
        ("https://api.mistral.ai/v1/", "Mistral", "/v1/batch/jobs"),
        ("https://api.x.ai/v1/", "xAI", "xai-sdk"),
        ("https://api.together.xyz/v1/", "Together", "the package together"),
        ("https://api.fireworks.ai/inference/v1/", "Fireworks", "firectl"),
        ("https://openrouter.ai/api/v1/", "OpenRouter", "its own address"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "Gemini", "google-genai"),
        ("https://us-central1-aiplatform.googleapis.com/v1/", "Vertex AI", "google-genai"),
        ("https://api.novita.ai/openai/v1/", "Novita", "documentation"),
        ("https://open.bigmodel.cn/api/paas/v4/", "Zhipu", "zhipuai"),
        ("https://dbc-1.cloud.databricks.com/serving-endpoints/", "Databricks", "ai_query"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1/", "Amazon Bedrock", "boto3"),
        ("https://batch.dashscope.aliyuncs.com/compatible-mode/v1/", "DashScope", "takes files"),
    ],
)
def test_a_service_with_another_protocol_is_refused_by_name(address, title, instead):
    with pytest.raises(ParameterError) as caught:
        dialect_of(address)
    assert str(caught.value).startswith(title)
    assert instead in str(caught.value)
    assert "Nothing was sent." in str(caught.value)


def test_other_hosts_of_a_cloud_are_not_refused():
    assert dialect_of("https://abc.execute-api.eu-west-1.amazonaws.com/v1/") is GENERIC


def test_no_host_is_both_a_service_of_ours_and_refused():
    hosts = [host.replace("*", "x") for dialect in DIALECTS.values() for host in dialect.hosts]
    for host in hosts:
        dialect_of(f"https://{host}/v1/")
    assert not {*hosts} & REFUSED.keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_known_by_its_names(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "10.0.0.1", "localhost.example.com", "example.com"])
def test_nothing_else_is_this_machine(host):
    assert not is_loopback(host)


# What a service takes


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("openai", ["24h"], ["1h", "1d", "48h"]),
        ("azure", ["24h"], ["1d"]),
        ("azure-v1", ["24h"], ["1d"]),
        ("groq", ["24h", "1d", "36h", "7d", "168h"], ["23h", "169h", "8d"]),
        ("dashscope", ["24h", "336h", "14d"], ["12h", "337h", "15d"]),
        ("doubleword", ["1h", "24h"], ["2h", "7d"]),
        ("parasail", ["24h"], ["1h"]),
        ("deepinfra", ["24h"], ["1h"]),
        ("moonshot", ["12h", "1d", "3d", "7d"], ["11h", "8d"]),
        ("siliconflow", ["24h", "336h"], ["1h", "337h"]),
        ("generic", ["1h", "24h", "90d"], []),
    ],
)
def test_each_service_takes_its_own_completion_windows(name, taken, refused):
    dialect = DIALECTS[name]
    for window in taken:
        dialect.check(endpoint=CHAT_COMPLETIONS, window=window)
    for window in refused:
        with pytest.raises(ParameterError, match=f"completion_window='{window}'.*Nothing was sent"):
            dialect.check(endpoint=CHAT_COMPLETIONS, window=window)


ALL = {CHAT_COMPLETIONS, RESPONSES, COMPLETIONS, EMBEDDINGS, MODERATIONS}


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("openai", ALL),
        ("azure", ALL),
        ("groq", {CHAT_COMPLETIONS}),
        ("dashscope", {CHAT_COMPLETIONS, EMBEDDINGS}),
        ("parasail", {CHAT_COMPLETIONS, EMBEDDINGS}),
        ("deepinfra", {CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS}),
        ("moonshot", {CHAT_COMPLETIONS}),
        ("siliconflow", {CHAT_COMPLETIONS}),
        ("doubleword", ALL),
        ("generic", ALL),
    ],
)
def test_an_endpoint_that_the_service_has_not_is_refused(name, taken):
    dialect = DIALECTS[name]
    for endpoint in taken:
        dialect.check(endpoint=endpoint, window="24h")
    for endpoint in ALL - taken:
        with pytest.raises(ParameterError, match=f"{dialect} makes no batches for {endpoint}"):
            dialect.check(endpoint=endpoint, window="24h")


def test_azure_of_old_calls_endpoints_without_their_version():
    azure = DIALECTS["azure"]
    assert azure.url("/v1/chat/completions") == "/chat/completions"
    assert azure.url("/v1/embeddings") == "/embeddings"
    assert azure.url("/v1/responses") == "/v1/responses"
    for name in DIALECTS.keys() - {"azure"}:
        assert DIALECTS[name].url("/v1/chat/completions") == "/v1/chat/completions"


@pytest.mark.parametrize(("window", "hours"), [("24h", 24), ("7d", 168), ("1h", 1)])
def test_a_window_lasts_so_many_hours(window, hours):
    assert hours_of(window) == hours


@pytest.mark.parametrize(
    ("address", "price_list"),
    [
        ("https://api.openai.com/v1/", "openai"),
        ("http://127.0.0.1/v1/", "openai"),
        ("https://api.groq.com/openai/v1/", "groq"),
        ("https://contoso.openai.azure.com/openai/v1/", None),
        ("https://gateway.example.com/v1/", None),
        # Of a refused one, nobody's: its results may be there all the same.
        ("https://api.anthropic.com/v1/", None),
    ],
)
def test_prices_are_those_of_the_service_or_nobodys(address, price_list):
    assert price_list_of(address) == price_list


# Ids

UUID = "6caaf24d-54a5-46be-b1b7-518884fcbdde"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("openai", ["file-6FGbTZ", "batch_67a5", "file_01jh6x76", "batch-abc"]),
        ("azure", [f"file-{UUID}", f"batch_{UUID}", "file-655111ec9cfc44489d9af078f08116ef"]),
        ("groq", ["file_01jh6x76wtemjr74t1fh0faj5t", "batch_01jh6xa7reempvjyh6n3yst2zw"]),
        ("dashscope", ["file-batch-ADvrUmLWW8TFuKNjGDUUig1c", f"batch_{UUID}"]),
        ("doubleword", [UUID, f"file-{UUID}"]),
        ("siliconflow", ["file-jkvytbjtow", "batch_rdyqgrcgjg"]),
        ("generic", [UUID, "file-x", "batch_x"]),
    ],
)
def test_ids_as_the_service_makes_them_are_ids(name, taken):
    for value in taken:
        assert DIALECTS[name].is_id(value), value


UNSAFE = [
    "",
    "file-",
    "../files",
    "batch_a/cancel",
    "batch_a?x=1",
    "batch_a#b",
    "batch_a%2e",
    "batch_a b",
    "batch_a\n",
    "file-\u00e9",
    "file-" + "a" * 300,
    "nothing",
    None,
    7,
    ["file-a"],
]


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("value", UNSAFE, ids=repr)
def test_what_would_change_an_address_is_an_id_of_nobody(name, value):
    assert not DIALECTS[name].is_id(value)


@pytest.mark.parametrize("value", [value for value in UNSAFE if value != "nothing"], ids=repr)
def test_not_even_of_a_record_that_takes_everything(value):
    anything = Dialect(name="anything", ids=r"(?s:file-.+|.*[/ ?#%\n].*)")
    assert not anything.is_id(value)
    assert anything.is_id("file-a")


def test_an_id_without_a_prefix_is_one_only_where_the_service_makes_such():
    assert not DIALECTS["openai"].is_id(UUID)


# Records


@pytest.mark.parametrize(
    "fields",
    [
        {"max_requests": 0},
        {"max_bytes": 1.5},
        {"max_inputs": True},
        {"name": ""},
        {"ids": "("},
        {"hosts": "api.example.com"},
        {"endpoints": "/v1/chat/completions"},
        {"windows": "24h"},
        {"hours": (24,)},
        {"hours": "24"},
        {"urls": ["/v1/chat/completions"]},
        {"price_list": 3},
        {"links_results": "no"},
    ],
    ids=str,
)
def test_a_record_that_no_service_can_have_is_refused(fields):
    with pytest.raises(ParameterError, match=r"Dialect\("):
        Dialect(**{"name": "house", **fields})


@pytest.mark.parametrize("name", DIALECTS)
def test_each_record_says_how_it_is_known(name):
    verified = DIALECTS[name].verified
    assert "emulator" in verified
    assert name == "generic" or re.search(r"2026-\d\d", verified)
