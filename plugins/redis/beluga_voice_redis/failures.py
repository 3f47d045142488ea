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

CHECK_PASSWORD = "check the user and the password of the url, and what that user may do (ACL)"
CHECK_RUNS = "check that it runs and can be reached from here"

# The first row that fits counts. "No free connection" is told apart by its cause: redis-py has no class of its own for it.
TABLE: tuple[tuple[tuple[type[Exception], ...], type[ProviderError], str, str], ...] = (
    (
        (
            redis.AuthenticationError,
            redis.AuthenticationWrongNumberOfArgsError,
            redis.AuthorizationError,
            redis.NoPermissionError,
        ),
        AuthError,
        "refused the login",
        CHECK_PASSWORD,
    ),
    ((redis.TimeoutError, TimeoutError), ProviderTimeoutError, "did not answer in time", f"{CHECK_RUNS}, or raise timeout_ms"),
    ((redis.MaxConnectionsError,), OverloadedError, "takes no more connections", "raise its maxclients, or lower max_connections"),
    ((redis.OutOfMemoryError,), OverloadedError, "is out of memory", "raise its maxmemory, or keep sessions for less long"),
    ((redis.BusyLoadingError,), OverloadedError, "is still loading its data", "try again"),
    ((redis.ReadOnlyError,), OverloadedError, "is a replica that takes no writes", "wait for the failover, or check the url"),
    (
        (redis.ClusterDownError, redis.TryAgainError),
        OverloadedError,
        "is a cluster that cannot answer now",
        "try again",
    ),
    ((redis.MovedError,), ProtocolError, "is one node of a cluster", "this store speaks to one server or to a proxy"),
    ((redis.ConnectionError, OSError), ConnectFailedError, "could not be reached", CHECK_RUNS),
)


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
    if isinstance(error, redis.ConnectionError) and isinstance(error.__cause__, TimeoutError):
        return OverloadedError(
            f"redis at {where}: none of this process's connections came free in time; raise max_connections or pool_timeout_ms",
            provider="redis",
            kind="store",
        )
    for classes, told, what, advice in TABLE:
        if isinstance(error, classes):
            return told(f"redis at {where} {what} ({text}); {advice}", provider="redis", kind="store")
    return ProtocolError(
        f"redis at {where} answered with an error ({text}); expected Redis 6 or newer, or Valkey",
        provider="redis",
        kind="store",
    )
