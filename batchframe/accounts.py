"""The user's openai client: opened, made safe to call, and whose account it is.

The invariant: through a client that `secured` gave, nothing is repeated by itself, nothing follows
a redirect, and no key or prompt goes where others can read it.
"""

import os
import re

import openai
from openai._models import FinalRequestOptions
from openai.lib.azure import API_KEY_SENTINEL

from batchframe.core.addresses import is_private
from batchframe.core.dialects import Dialect, dialect_of
from batchframe.core.spec import Account
from batchframe.errors import ApiKeyError, ParameterError

__all__ = ["account_of", "open_client", "secured"]


def open_client(api_key: str | None = None, base_url: str | None = None) -> openai.OpenAI:
    """A client with this key at this address; what is None comes from the environment.

    Raises ApiKeyError if there is no key, or it is blank or broken.
    """
    key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
    if key is None:
        raise ApiKeyError(
            "There is no API key; nothing was sent. Set the environment variable OPENAI_API_KEY, "
            "or pass client=OpenAI(api_key=...). To try without a key: `batchframe demo`, or "
            "`with bf.emulator.LocalServer() as server:` and client=server.client()."
        )
    _check_key(key)
    return openai.OpenAI(api_key=key, base_url=base_url)


def secured(client: openai.OpenAI) -> openai.OpenAI:
    """A copy of the client that makes each call once, and only where it was sent to.

    Raises:
        ApiKeyError: the key is blank or broken.
        ParameterError: the address is neither https nor on this machine.
    """
    if not _has_other_credentials(client):
        _check_key(client.api_key)
    _check_address(str(client.base_url))
    copied = client.with_options(max_retries=0)
    # No call follows a redirect: the key and the prompts would go where it leads.
    prepare = copied._prepare_options  # noqa: SLF001

    def prepare_without_redirects(options: FinalRequestOptions) -> FinalRequestOptions:
        prepared = prepare(options)
        prepared.follow_redirects = False
        return prepared

    copied._prepare_options = prepare_without_redirects  # type: ignore[method-assign]  # noqa: SLF001
    return copied


def account_of(
    client: openai.OpenAI | None, dialect: str | Dialect | None = None
) -> tuple[Account, Dialect]:
    """Who would answer and pay, and how they speak; no key is needed, and nothing is sent.

    Raises ParameterError for the address of a service with another protocol, or if there is no such
    dialect.
    """
    if client is not None:
        return _account(client), _dialect(client, dialect)
    with openai.OpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none") as made:
        return _account(made), _dialect(made, dialect)


def _dialect(client: openai.OpenAI, named: str | Dialect | None) -> Dialect:
    is_azure = isinstance(client, openai.AzureOpenAI)
    return dialect_of(str(client.base_url), named, is_azure=is_azure)


def _account(client: openai.OpenAI) -> Account:
    address = str(client.base_url)
    if isinstance(client, openai.AzureOpenAI):
        # A client with azure_deployment= has it in its address, and asks for files and batches of
        # the whole resource all the same (openai 3.54, lib/azure.py).
        address = re.sub(r"/openai/deployments/[^/]+/$", "/openai/", address)
    return Account(
        base_url=address,
        organization=client.organization,
        project=client.project,
    )


def _has_other_credentials(client: openai.OpenAI) -> bool:
    """True where the key is not a fixed text: Azure's tokens, or a function that gives keys."""
    return client.api_key == API_KEY_SENTINEL or client._api_key_provider is not None  # noqa: SLF001


def _check_key(key: str) -> None:
    is_header = key.isascii() and key.isprintable() and " " not in key
    if not key or not is_header:
        raise ApiKeyError(
            "The API key is blank, or holds white space or other characters that no key has; "
            "nothing was sent, and the key is not shown here. Set OPENAI_API_KEY, or pass "
            "client=OpenAI(api_key=...)."
        )


def _check_address(address: str) -> None:
    if is_private(address):
        return
    raise ParameterError(
        f"The client's base_url {address} is not https: the key and the prompts would travel in "
        "the clear. Nothing was sent. Plain http is taken for this machine only (127.0.0.1)."
    )
