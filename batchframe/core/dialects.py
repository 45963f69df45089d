"""Services that speak this protocol, one small record each: what differs from one to the other.

    a client's address --dialect_of--> Dialect (or an error that names what does not fit)

Only what must differ is in a record. What is harmless everywhere, every reader does for everyone:
statuses in capitals, "canceled", unknown ones; "" for no file; counts that are null; bodies as
strings. A record says by which sources it is known: none of them was tried on the service itself,
but on the local server, which speaks each dialect (`emulator/dialects.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import msgspec

from batchframe.core.addresses import is_loopback
from batchframe.core.spec import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from batchframe.errors import ParameterError

__all__ = [
    "DIALECTS",
    "GENERIC",
    "OPENAI",
    "REFUSED",
    "Dialect",
    "dialect_of",
    "hours_of",
    "price_list_of",
]

#: Ids of files and batches as OpenAI has them (API reference, 2026-08).
_PREFIXED = r"(?:batch|file)[-_][A-Za-z0-9_-]{1,200}"
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
#: What any id must be before it goes into an address, whatever a record says.
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,210}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One service's way of speaking the Files and Batches API.

    The defaults are those of a tolerant service that nothing is known of. Raises ParameterError for
    what no service can be.
    """

    #: What it is called in `dialect=`.
    name: str
    #: What it is called in messages; "": as in `dialect=`.
    title: str = ""
    #: The hosts by which it is chosen; * stands for anything.
    hosts: tuple[str, ...] = ()
    #: What the path of an address begins with, where one host has several dialects.
    path: str = ""
    #: What an endpoint is called in lines and creates, where it is not called by its own name.
    urls: Mapping[str, str] = field(default_factory=dict)
    #: The endpoints that batches can be made for; None: not known, so none is refused here.
    endpoints: tuple[str, ...] | None = None
    #: The completion windows that it takes; None: any, or those of `hours`.
    windows: tuple[str, ...] | None = None
    #: The shortest and the longest completion window, in hours; None: any, or those of `windows`.
    hours: tuple[int, int] | None = None
    #: Requests in one batch, at most. Where nothing is known: as at OpenAI.
    max_requests: int = 50_000
    #: Texts to embed in one batch, at most; each request has one.
    max_inputs: int = 50_000
    #: Size of one input file, in bytes, at most. Where nothing is known: "200 MB".
    max_bytes: int = 200_000_000
    #: A regular expression for the ids of its files and batches.
    ids: str = f"{_PREFIXED}|{_UUID}"
    #: Batches can carry metadata. Without it, a lost batch is found by its input file alone.
    takes_metadata: bool = True
    #: A batch ends when its window does; else it goes on until it is done.
    expires: bool = True
    #: Batches name their result files by web addresses, and the service has no other way to them.
    links_results: bool = False
    #: Whose published prices hold, as the package genai-prices names it; None: nobody's.
    price_list: str | None = None
    #: By which sources this is known, and when they were read.
    verified: str = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            try:  # a text, say, is no tuple of texts: what is no price list is seen when it is paid
                msgspec.convert(value, one.type)
            except msgspec.ValidationError as error:
                raise ParameterError(f"Dialect({one.name}={value!r:.60}): {error}.") from None
        for name in ("max_requests", "max_inputs", "max_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ParameterError(f"Dialect({name}={value!r}) must be a whole number from 1.")
        if not self.name:
            raise ParameterError(f"Dialect(name={self.name!r}) must be a word.")
        try:
            re.compile(self.ids)
        except (re.error, TypeError):
            raise ParameterError(
                f"Dialect(ids={self.ids!r}) must be a regular expression."
            ) from None

    def __str__(self) -> str:
        return self.title or self.name

    def url(self, endpoint: str) -> str:
        """What the endpoint is called in the lines of an input file, and in a create."""
        return self.urls.get(endpoint, endpoint)

    def is_id(self, value: object) -> bool:
        """True for an id of this service that can go into an address."""
        return (
            isinstance(value, str)
            and _SAFE.fullmatch(value) is not None
            and re.fullmatch(self.ids, value) is not None
        )

    def check(self, *, endpoint: str, window: str) -> None:
        """Raise ParameterError for an endpoint or a completion window that it does not take."""
        if self.endpoints is not None and endpoint not in self.endpoints:
            raise ParameterError(
                f"{self} makes no batches for {endpoint}, only for {_listed(self.endpoints)}. "
                f"Nothing was sent. {_OVERRIDE}"
            )
        if not self.takes_window(window):
            raise ParameterError(
                f"completion_window={window!r}: {self} takes {self.window_words}. "
                f"Nothing was sent. {_OVERRIDE}"
            )

    def takes_window(self, window: str) -> bool:
        """True for a completion window, such as "24h" or "7d", that it takes."""
        if self.windows is not None and self.hours is None:
            return window in self.windows
        if self.hours is None:
            return True
        least, most = self.hours
        return least <= hours_of(window) <= most or window in (self.windows or ())

    @property
    def window_words(self) -> str:
        """The completion windows that it takes, in words."""
        if self.hours is None:
            return _listed(self.windows or ("any",))
        return f"{self.hours[0]}h to {self.hours[1]}h"


#: The way out where a record is wrong.
_OVERRIDE = "If that has changed, pass dialect='generic', which takes what it is given."


def hours_of(window: str) -> int:
    """How long a completion window lasts, such as "24h" or "7d"."""
    return int(window[:-1]) * (24 if window.endswith("d") else 1)


def _listed(words: tuple[str, ...]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


# --- The services ---------------------------------------------------------------------------------

#: OpenAI itself, and servers on this machine: the emulator, gateways, model servers.
OPENAI = Dialect(
    name="openai",
    title="OpenAI",
    hosts=("api.openai.com",),
    windows=("24h",),
    # "up to 50,000 requests"; the guide says 200 MB, the service's own refusal "larger than the
    # 209715200 maximum" (OpenAI, Batch guide, API spec and error text, 2026-08).
    max_requests=50_000,
    max_bytes=209_715_200,
    ids=_PREFIXED,
    price_list="openai",
    verified="spec (openai-openapi 2.3, 2026-08), docs, emulator",
)

#: The same in a region. "Regional processing (data residency) endpoints are charged a 10% uplift
#: for models released on or after March 5, 2026" (https://developers.openai.com/api/docs/pricing,
#: 2026-08), and no list says which those are: so no price is known there.
_OPENAI_REGION = replace(OPENAI, hosts=("*.api.openai.com",), price_list=None)

#: Azure OpenAI through `AzureOpenAI(api_version=...)`; the model is the name of a deployment. What
#: a token costs depends on the deployment (global, data zone), which no answer names. Jobs that
#: take longer than 24 hours go on until they are cancelled.
AZURE = Dialect(
    name="azure",
    title="Azure OpenAI",
    hosts=tuple(
        f"*.{service}.{cloud}"
        for service in ("openai", "cognitiveservices", "services.ai")
        for cloud in ("azure.com", "azure.us", "azure.cn")
    ),
    urls={
        CHAT_COMPLETIONS: "/chat/completions",
        EMBEDDINGS: "/embeddings",
        COMPLETIONS: "/completions",
    },
    windows=("24h",),
    max_requests=100_000,
    ids=_PREFIXED,
    expires=False,
    verified="docs (MicrosoftDocs/azure-ai-docs, batch, 2026-11), emulator",
)
#: Azure OpenAI through `OpenAI(base_url="https://NAME.openai.azure.com/openai/v1")`.
AZURE_V1 = replace(AZURE, name="azure-v1", path="/openai/v1", urls={})

_SERVICES = (
    _OPENAI_REGION,
    OPENAI,  # the one of that name
    AZURE_V1,
    AZURE,
    Dialect(
        name="groq",
        title="Groq",
        hosts=("api.groq.com",),
        endpoints=(CHAT_COMPLETIONS,),
        hours=(24, 168),
        ids=_PREFIXED,
        price_list="groq",
        verified="docs (https://console.groq.com/docs/batch, 2026-11), emulator",
    ),
    Dialect(
        name="dashscope",
        title="DashScope",
        hosts=(
            "dashscope.aliyuncs.com",
            "dashscope-intl.aliyuncs.com",
            "*.maas.aliyuncs.com",
        ),
        endpoints=(CHAT_COMPLETIONS, EMBEDDINGS),
        hours=(24, 336),
        max_bytes=500_000_000,
        ids=_PREFIXED,
        verified="docs (https://help.aliyun.com/en/model-studio/"
        "batch-interfaces-compatible-with-openai, 2026-11), emulator",
    ),
    Dialect(
        name="doubleword",
        title="Doubleword",
        hosts=("api.doubleword.ai",),
        windows=("1h", "24h"),
        verified="source of its server (https://github.com/doublewordai/control-layer, 2026-11), "
        "docs (2026-08), its limits are not known, emulator",
    ),
    Dialect(
        name="parasail",
        title="Parasail",
        hosts=("api.parasail.io", "api.saas.parasail.io"),
        endpoints=(CHAT_COMPLETIONS, EMBEDDINGS),
        windows=("24h",),
        max_bytes=100_000_000,
        verified="docs (https://docs.parasail.io/parasail-docs/batch/batch-file-format, 2026-11), "
        "emulator",
    ),
    Dialect(
        name="deepinfra",
        title="DeepInfra",
        hosts=("api.deepinfra.com",),
        endpoints=(CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS),
        windows=("24h",),
        verified="docs (https://docs.deepinfra.com/batch/introduction, 2026-11), its limits are "
        "not known, emulator",
    ),
    Dialect(
        name="moonshot",
        title="Moonshot",
        hosts=("api.moonshot.cn", "api.moonshot.ai"),
        endpoints=(CHAT_COMPLETIONS,),
        hours=(12, 168),
        max_bytes=100_000_000,
        verified="docs (https://platform.kimi.ai/docs/api/batch-create, 2026-11), the number of "
        "requests is not known, emulator",
    ),
    Dialect(
        name="siliconflow",
        title="SiliconFlow",
        hosts=("api.siliconflow.cn", "api.siliconflow.com"),
        endpoints=(CHAT_COMPLETIONS,),
        hours=(24, 336),
        max_requests=5_000,
        max_bytes=1_000_000_000,
        links_results=True,
        verified="docs (https://docs.siliconflow.cn/cn/userguide/guides/batch, 2026-11); that "
        "results are addresses, by a program that uses it; emulator",
    ),
    Dialect(
        name="generic",
        title="this service",
        verified="emulator: a service that differs in all that readers tolerate",
    ),
)

#: All records by their names.
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in _SERVICES}
#: For services that nothing is known of.
GENERIC = DIALECTS["generic"]

_ADAPTER = "Put a gateway in front of it that speaks the Files and Batches API of OpenAI"
#: Hosts of services with another protocol: what they are called, and what to use instead (their own
#: documentation, 2026-11).
REFUSED: Mapping[str, tuple[str, str]] = {
    "api.anthropic.com": ("Anthropic", "its own /v1/messages/batches, by the package anthropic"),
    "api.mistral.ai": ("Mistral", "its own /v1/batch/jobs, by the package mistralai"),
    "api.x.ai": ("xAI", "its own batches, by the package xai-sdk"),
    "api.together.xyz": ("Together", "its own batches, by the package together"),
    "api.together.ai": ("Together", "its own batches, by the package together"),
    "api.fireworks.ai": ("Fireworks", "its own datasets and batch inference jobs, by firectl"),
    "openrouter.ai": ("OpenRouter", "the service that runs the model, by its own address"),
    "generativelanguage.googleapis.com": (
        "Gemini",
        "its own batches, by the package google-genai: this address takes no input files",
    ),
    "*aiplatform.googleapis.com": ("Vertex AI", "its own batches, by the package google-genai"),
    "api.novita.ai": ("Novita", "its own lines and statuses, by its documentation"),
    "open.bigmodel.cn": ("Zhipu", "its own /api/paas/v4/batches, by the package zhipuai"),
    "api.z.ai": ("Z.ai", "its own batches, by the package zai-sdk"),
    "inference.do-ai.run": ("DigitalOcean", "its own batch inference, by its documentation"),
    "*.cloud.databricks.com": ("Databricks", "its own ai_query"),
    "*.azuredatabricks.net": ("Databricks", "its own ai_query"),
    "bedrock-*.amazonaws.com": ("Amazon Bedrock", "its own batch inference, by the package boto3"),
    "api.deepseek.com": ("DeepSeek", "another host of its models: it has no batches"),
    "batch.dashscope.aliyuncs.com": (
        "DashScope's batch chat",
        "the address https://dashscope.aliyuncs.com/compatible-mode/v1, which takes files",
    ),
}


def dialect_of(
    address: str, named: "str | Dialect | None" = None, *, is_azure: bool = False
) -> Dialect:
    """The dialect of a client.

    Args:
        address: The client's base_url.
        named: A record, or the name of one, that holds whatever the address is; None: the address
            says it.
        is_azure: The client is an `AzureOpenAI`, which may stand in front of any address.

    Raises:
        ParameterError: there is no such name, or the address is that of a service with another
            protocol. Nothing was sent.
    """
    if isinstance(named, Dialect):
        return named
    if named is not None:
        if named in DIALECTS:
            return DIALECTS[named]
        near = get_close_matches(named, DIALECTS, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ParameterError(
            f"dialect={named!r:.60} must be one of {', '.join(map(repr, DIALECTS))}, a bf.Dialect, "
            f"or None.{meant} Nothing was sent."
        )
    host = _host(address)
    for pattern, (title, instead) in REFUSED.items():
        if fnmatchcase(host, pattern):
            raise ParameterError(
                f"{title} ({host}) has batches of another protocol, or none, and an OpenAI client "
                f"cannot use them. Nothing was sent. Use {instead}. {_ADAPTER}, and give its "
                "address; or, if this address does speak it, pass dialect='generic'."
            )
    return _by_address(address, is_azure=is_azure)


def price_list_of(address: str) -> str | None:
    """Whose published prices hold at an address: what `Dialect.price_list` says."""
    return _by_address(address).price_list


def _by_address(address: str, *, is_azure: bool = False) -> Dialect:
    host, path = _host(address), urlsplit(address).path
    if is_azure:
        return AZURE_V1 if path.startswith(AZURE_V1.path) else AZURE
    if is_loopback(host):
        return OPENAI
    for dialect in _SERVICES:
        if path.startswith(dialect.path) and any(fnmatchcase(host, one) for one in dialect.hosts):
            return dialect
    return GENERIC


def _host(address: str) -> str:
    return (urlsplit(address).hostname or "").rstrip(".")
