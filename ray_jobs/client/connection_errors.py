"""What a connection may raise, aiohttp's exceptions above all, in our words."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
from yarl import URL

from ray_jobs import errors
from ray_jobs.client.address import Address, redact
from ray_jobs.client.plain import NotHttpError
from ray_jobs.client.proxies import HINT

Mapper = Callable[[str, BaseException, Address], errors.RayJobsError]


def _refused(_where: str, error: BaseException, address: Address) -> errors.RayJobsError:
    reason = redact(str(getattr(error, "strerror", None) or error))
    return errors.ServerUnreachable(
        f"No job server answers at {address.url}: {reason}.", hint=address.hint
    )


def _no_such_host(_where: str, _error: BaseException, address: Address) -> errors.RayJobsError:
    return errors.ServerUnreachable(
        f"The host {address.host!r} of {address.url} can't be found.", hint=address.hint
    )


def _proxy(_where: str, error: BaseException, address: Address) -> errors.RayJobsError:
    return errors.ServerUnreachable(
        f"The proxy on the way to {address.url} doesn't let us through: {redact(str(error))}.",
        hint=HINT,
    )


def _no_proxy(error: aiohttp.ClientConnectorError, address: Address) -> errors.RayJobsError:
    if type(error).__name__ == "ClientConnectorDNSError":
        reason = f"the host {error.host!r} can't be found"
    else:
        reason = error.strerror or str(error.os_error)
    return errors.ServerUnreachable(
        f"The proxy {error.host}:{error.port} on the way to {address.url} can't be reached: "
        f"{redact(reason)}.",
        hint=HINT,
    )


def _tls(_where: str, error: BaseException, address: Address) -> errors.RayJobsError:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    reason = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or str(cause)
    return errors.ServerUnreachable(
        f"No secure connection to {address.url}: {reason}.",
        hint="verify= (--verify) takes the path of the CA's certificates; False trusts anyone.",
    )


def _timeout(where: str, _error: BaseException, address: Address) -> errors.RayJobsError:
    return errors.ServerUnreachable(f"{where} wasn't answered in time.", hint=address.hint)


def _lost(where: str, error: BaseException, address: Address) -> errors.RayJobsError:
    reason = redact(str(error)) or type(error).__name__
    return errors.ServerUnreachable(
        f"The connection was lost during {where}: {reason[:200]}.",
        hint=address.hint if address.is_gcs_like else None,
    )


def _unexpected(where: str, error: BaseException, address: Address) -> errors.RayJobsError:
    # The status line, when there is one; the rest may be the raw bytes of another protocol.
    status = getattr(error, "status", 0) or 0
    message = " ".join(redact(str(getattr(error, "message", "") or error)).split())[:120]
    return errors.UnexpectedResponse(
        f"{where} was not answered as HTTP has it"
        + (f" (status {status})" if status else "")
        + (f": {message}." if message else "."),
        hint=address.hint if address.is_gcs_like else "Does a Ray job server listen there?",
    )


def _bad_url(_where: str, _error: BaseException, address: Address) -> errors.RayJobsError:
    return errors.InvalidAddress(f"{address.url} is not the address of a job server.")


#: Every exception class of aiohttp's client, by its name: some are younger than the oldest aiohttp
#: that we work with.
MAPPING: dict[str, Mapper] = {
    "ClientError": _lost,
    "ClientResponseError": _unexpected,
    "ContentTypeError": _unexpected,
    "WSServerHandshakeError": _unexpected,
    "WSMessageTypeError": _unexpected,
    "ClientHttpProxyError": _proxy,
    "TooManyRedirects": _unexpected,
    "ClientConnectionError": _lost,
    "ClientConnectionResetError": _lost,
    "ClientOSError": _lost,
    "ClientConnectorError": _refused,
    "ClientConnectorDNSError": _no_such_host,
    "ClientProxyConnectionError": _proxy,
    "UnixClientConnectorError": _refused,
    "ClientSSLError": _tls,
    "ClientConnectorSSLError": _tls,
    "ClientConnectorCertificateError": _tls,
    "ServerConnectionError": _lost,
    "ServerDisconnectedError": _lost,
    "ServerTimeoutError": _timeout,
    "ConnectionTimeoutError": _timeout,
    "SocketTimeoutError": _timeout,
    "ServerFingerprintMismatch": _tls,
    "ClientPayloadError": _lost,
    "UploadAbortedError": _lost,
    "InvalidURL": _bad_url,
    "InvalidUrlClientError": _bad_url,
    "InvalidUrlRedirectClientError": _unexpected,
    "RedirectClientError": _unexpected,
    "NonHttpUrlClientError": _bad_url,
    "NonHttpUrlRedirectClientError": _unexpected,
}


@contextmanager
def mapped(where: str, address: Address, proxy: URL | None = None) -> Iterator[None]:
    """Turn what aiohttp and `plain` raise into our exceptions.

    Args:
        where: The request, as in `GET http://host:8265/api/jobs/`.
        proxy: Asked instead of the server.
    """
    try:
        yield
    except errors.RayJobsError:
        raise  # some of them are OSErrors too
    except aiohttp.ClientError as error:
        # A proxy is the only one that is looked up and connected to; TLS is between the ends.
        is_tls = isinstance(error, aiohttp.ClientSSLError)
        if isinstance(error, aiohttp.ClientConnectorError) and proxy is not None and not is_tls:
            raise _no_proxy(error, address) from error
        for error_class in type(error).__mro__:
            mapper = MAPPING.get(error_class.__name__)
            if mapper is not None:
                raise mapper(where, error, address) from error
        raise
    except NotHttpError as error:
        raise _unexpected(where, error, address) from error
    except asyncio.TimeoutError as error:
        raise _timeout(where, error, address) from error
    except ssl.SSLError as error:
        raise _tls(where, error, address) from error
    except OSError as error:
        raise _lost(where, error, address) from error


def is_tls_failure(error: BaseException) -> bool:
    """Return whether a connection failed for its certificates, so that trying again is in vain."""
    cause = error.__cause__
    return isinstance(
        cause, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError
    )


def was_sent(error: BaseException) -> bool:
    """Return whether the server may have got the request that failed with this exception."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError):
        return False
    younger = getattr(aiohttp, "ConnectionTimeoutError", ())
    return not isinstance(cause, younger)
