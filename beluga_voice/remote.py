"""What every provider over a network needs: a key, an address, one client shared by a process, and its errors in our words.

A plugin tells of its vendor once; its engines inherit `Remote` beside their kind, and call `client()` and `failed(error)`:

>>> EXAMPLE = Vendor(
...     name="example",
...     env_var="EXAMPLE_API_KEY",
...     base_url="https://api.example.com",
...     make=lambda access: object(),  # the SDK's client
... )
>>> Access("secret-key", "https://api.example.com").ws_url
'wss://api.example.com'
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

import attrs

from ._redaction import keep_out_of_logs
from .engine import Engine
from .errors import BrokenPluginError, MissingKeyError, OptionError, ProviderError
from .failures import Row, failure
from .options import build, option
from .vendor_socket import proxy_for, tls_context

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Access", "Remote", "Vendor", "base_url_option", "key_option", "max_concurrent_option"]


@attrs.frozen
class Access:
    """With which key, and where: `base_url` is an http:// or https:// root without a slash at its end."""

    api_key: str = attrs.field(repr=lambda _: "***")
    base_url: str

    @property
    def ws_url(self) -> str:
        """The same root for WebSockets."""
        return "ws" + self.base_url.removeprefix("http")

    @property
    def fingerprint(self) -> str:
        """Tells accounts apart without telling the key."""
        return f"{self.base_url}#{hashlib.sha256(self.api_key.encode()).hexdigest()[:8]}"


async def _nothing_to_close(client: Any) -> None:
    return None


@attrs.frozen
class Vendor:
    """A vendor and its SDK.

    Attributes:
        name: the provider's name, as in `stt.new(name)`.
        env_var: where its key is looked for, when none is given.
        base_url: its address, when none is given.
        make: makes the SDK's client; called in a thread, because that takes tens of ms.
        close: frees such a client.
        failures: the one table of its exceptions, in order: the class (or classes) of an exception, and either the error that
            it is, or a function that gives what it tells. What no row has is told by kind: time-outs, the network, the rest.
            A function that gives the table, where the classes are an SDK's that is imported late.
        codes: the vendor's own codes that say more than the status does: {"insufficient_quota": QuotaError}.
    """

    name: str
    env_var: str
    base_url: str
    make: Callable[[Access], Any]
    close: Callable[[Any], Awaitable[object]] = _nothing_to_close
    failures: tuple[Row, ...] | Callable[[], tuple[Row, ...]] = ()
    codes: Mapping[str, type[ProviderError]] = attrs.field(factory=dict)


# --- options ---------------------------------------------------------------------------------------------------------


def key_option(env_var: str) -> Any:
    """The field `api_key` of an options class."""
    return option("", f"the key; empty: the environment variable {env_var}", secret=True)


def base_url_option(base_url: str) -> Any:
    """The field `base_url` of an options class."""
    return option(base_url, "the http:// or https:// root of the service; the root for WebSockets follows from it")


def max_concurrent_option() -> Any:
    """The field `max_concurrent` of an options class."""
    return option(0, "calls or streams at once with this key; more go to the next provider. 0: no limit", at_least=0)


# --- engines ---------------------------------------------------------------------------------------------------------


class Remote(Engine):
    """An engine that calls a vendor's service. Inherit it first: `class DeepgramSTT(Remote, STT)`.

    Its options class, `Options`, has `api_key`, `base_url` and `max_concurrent` (see the functions above).

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: no key is given, and the vendor's environment variable is not set.
    """

    vendor: ClassVar[Vendor]
    Options: ClassVar[type[Any]]
    _lease: _Lease | None = None

    def __init__(self, **options: Any) -> None:
        self.options = build(self.Options, options, f"{self.kind} {self.vendor.name!r}")
        self._set_access()

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider or self.vendor.name

    def _set_access(self) -> None:
        owner = f"{self.kind} {self.vendor.name!r}"
        api_key = self.options.api_key or os.environ.get(self.vendor.env_var, "")
        if not api_key:
            raise MissingKeyError(
                f"{owner} has no key; set the environment variable {self.vendor.env_var}, or give api_key "
                '(in a configuration file: api_key = "${' + self.vendor.env_var + '}")',
                env_var=self.vendor.env_var,
            )
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise OptionError(f"{owner}: option 'api_key' is *** (a text with spaces or signs no key has); copy it again")
        self.access = Access(api_key, _root(self.options.base_url or self.vendor.base_url, owner))
        _check_proxy(self.access.base_url, owner)
        keep_out_of_logs(api_key, self.access)
        self.account = f"{self.vendor.name}@{self.access.fingerprint}"
        self.max_concurrent = self.options.max_concurrent or None
        if self.kind in ("stt", "s2s"):  # a session holds one of them from its beginning to its end
            self.max_streams = self.max_concurrent

    async def client(self) -> Any:
        """The SDK's client: one for all engines of this process with the same key and address, made at the first need.

        Raises:
            BrokenPluginError: the SDK is not installed.
            ProviderError: the SDK does not make one.
        """
        if self._lease is None:
            self._lease = _lease(self.vendor, self.access)
            self._lease.users += 1
        try:
            return await self._lease.client()
        except ImportError as error:
            if _proxy_scheme(self.access.base_url).startswith("socks"):
                raise BrokenPluginError(
                    f"{self.kind} {self.name!r}: the environment names a SOCKS proxy; what speaks with one is not installed; "
                    "install it: pip install socksio 'python-socks[asyncio]'"
                ) from error
            raise BrokenPluginError(
                f"{self.kind} {self.name!r} needs something that is not installed ({error}); "
                f"install its plugin again: pip install --force-reinstall beluga-voice-{self.vendor.name}"
            ) from error
        except Exception as error:
            raise self.failed(error) from None

    def failed(self, error: BaseException, doing: str = "") -> ProviderError:
        """The error of ours to raise for one of the SDK's: `raise self.failed(error) from None`, so that no key is printed."""
        rows = self.vendor.failures
        return failure(
            error,
            rows() if callable(rows) else rows,
            self.vendor.codes,
            provider=self.name,
            kind=self.kind,
            env_var=self.vendor.env_var,
            secret=self.access.api_key,
            doing=doing,
            address=_way(self.access.base_url),
        )

    async def prewarm(self) -> None:
        """Make the client now. An SDK that imports more at its first call: override this, call it, and touch that."""
        await self.client()

    async def aclose(self) -> None:
        """Give the client back; the last engine that does closes it."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.give_back()

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options. Raises what the class does."""
        other = super().with_options(**changes)
        if other is not self:
            other._lease = None
            other._set_access()
        return other


class _Lease:
    """One client, and how many engines use it."""

    def __init__(self, vendor: Vendor, access: Access, shared: WeakValueDictionary[Any, _Lease]) -> None:
        self.users = 0
        self._vendor, self._access, self._shared = vendor, access, shared
        self._making = asyncio.Lock()
        self._client: Any = None

    async def client(self) -> Any:
        async with self._making:
            if self._client is None:
                self._client = await asyncio.to_thread(self._make)
            return self._client

    def _make(self) -> Any:
        if self._access.base_url.startswith("https:"):
            tls_context()
        return self._vendor.make(self._access)

    async def give_back(self) -> None:
        self.users -= 1
        async with self._making:
            if self.users == 0:
                client, self._client = self._client, None
                self._shared.pop((self._vendor.name, self._access), None)
                if client is not None:
                    await self._vendor.close(client)


# Held by the engines alone: a client knows its event loop, so that held here, one that was not closed would keep both for ever.
_leases: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[Any, _Lease]] = WeakKeyDictionary()


def _lease(vendor: Vendor, access: Access) -> _Lease:
    shared = _leases.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return shared.setdefault((vendor.name, access), _Lease(vendor, access, shared))


def _root(url: str, owner: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment or parts.username)
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or any(sign.isspace() for sign in url):
        shown = re.sub(r"(?<=//)[^/]*@|[?#].*", "***", url)  # what is there may be a secret
        raise OptionError(
            f"{owner}: option 'base_url' is {shown!r}; expected an http:// or https:// root without user and query, "
            "like 'https://api.example.com'"
        )
    return url.rstrip("/")


PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def _check_proxy(url: str, owner: str) -> None:
    """Refuse a proxy that is no address, which SDKs tell in words of their own, or not at all."""
    proxy = proxy_for(url) or "http://none"
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in PROXY_SCHEMES and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        shown = re.sub(r"(?<=//).*@", "***@", proxy)  # a password
        names = f"{urlsplit(url).scheme.upper()}_PROXY or ALL_PROXY"
        raise OptionError(
            f"{owner}: the proxy in the environment variable {names} is {shown!r}; expected one like 'http://proxy.example:3128'"
        )


def _proxy_scheme(url: str) -> str:
    return urlsplit(proxy_for(url) or "").scheme


def _way(url: str) -> str:
    """An address, and the proxy on the way there."""
    proxy = proxy_for(url)
    return f"{url} (by way of the environment's proxy {proxy.rpartition('@')[2].rpartition('//')[2]})" if proxy else url
