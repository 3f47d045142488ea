"""Which error each failure of Redis is."""

from __future__ import annotations

from redis import exceptions as redis

from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    OverloadedError,
    ProtocolError,
    ProviderError,
    ProviderTimeoutError,
)

__all__ = ["failure"]

LOGIN = (
    redis.AuthenticationError,
    redis.AuthenticationWrongNumberOfArgsError,
    redis.AuthorizationError,
    redis.NoPermissionError,
)
RUNS = "check that it runs and can be reached from here"

Row = tuple[type[ProviderError], str, str]

# What redis-py has no class of its own for comes first; in each table, the first row that fits counts.
NO_FREE_CONNECTION: Row = (OverloadedError, "has all connections of this process in use", "raise max_connections")
BY_TEXT: tuple[tuple[str, Row], ...] = (
    ("max number of clients", (OverloadedError, "takes no more connections", "lower max_connections, or raise its maxclients")),
    ("can't run this command", (AuthError, "allows this user too little", "the plugin's README lists what its ACL needs")),
)
BY_CLASS: tuple[tuple[tuple[type[Exception], ...], Row], ...] = (
    (LOGIN, (AuthError, "refused the login", "check the user and the password of the url, and what that user may do (ACL)")),
    ((redis.TimeoutError, TimeoutError), (ProviderTimeoutError, "did not answer in time", f"{RUNS}, or raise timeout_ms")),
    ((redis.OutOfMemoryError,), (OverloadedError, "is out of memory", "raise its maxmemory, or keep sessions for less long")),
    ((redis.BusyLoadingError,), (OverloadedError, "is still loading its data", "try again")),
    ((redis.ReadOnlyError,), (OverloadedError, "is a replica that takes no writes", "wait for the failover, or check the url")),
    ((redis.ClusterDownError, redis.TryAgainError), (OverloadedError, "is a cluster that cannot answer now", "try again")),
    ((redis.MovedError,), (ProtocolError, "is one node of a cluster", "this store speaks to one server or to a proxy")),
    ((redis.ConnectionError, OSError), (ConnectFailedError, "could not be reached", RUNS)),
)
OTHER: Row = (ProtocolError, "answered with an error", "expected Redis 7 or newer, or Valkey")


def failure(error: Exception, where: str, secret: str = "") -> ProviderError:
    """The error to raise for one of redis-py or of the socket.

    Args:
        error: what was caught.
        where: the server, as it may be told: without a password.
        secret: the password, struck out where the server repeats it. (Redis repeats the arguments of commands it does
            not know, and AUTH may be one.)
    """
    text = str(error) or type(error).__name__
    if secret:
        text = text.replace(secret, "***")
    told, what, advice = _row(error, text)
    return told(f"redis at {where} {what} ({text}); {advice}", provider="redis", kind="store")


def _row(error: Exception, text: str) -> Row:
    if isinstance(error, redis.ConnectionError) and isinstance(error.__cause__, TimeoutError):
        return NO_FREE_CONNECTION
    by_text = (row for fragment, row in BY_TEXT if fragment in text)
    by_class = (row for classes, row in BY_CLASS if isinstance(error, classes))
    return next(by_text, None) or next(by_class, OTHER)
