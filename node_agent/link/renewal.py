"""Renews the node's certificate at half of its life, with a fresh key each time.

The new key is on disk before it is asked for, so that a lost reply costs
nothing; the coordinator admits the old certificate until the new one is used.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import uuid4

import grpc
import structlog
from cryptography import x509

from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import CLOCK_TOLERANCE
from hansa.runtime.backoff import delays
from hansa.runtime.clock import Clock
from hansa.sdk.errors import remote_error
from hansa.v1 import node_service_pb2, node_service_pb2_grpc
from node_agent.config import StateFolder
from node_agent.keys.credential import (
    checked_credential,
    fresh_key,
    load_credential,
    signing_request,
    store_credential,
)
from node_agent.keys.rotation import renew_at

_log = structlog.get_logger(__name__)
_CALL_SECONDS: Final = 20.0
_LONGEST_SLEEP: Final = 3600.0
_FIRST_RETRY, _MOST_RETRY = 5.0, 600.0


class RenewedError(Exception):
    """Not a failure: the certificate is new, attach again with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Watches over the certificate of one node."""

    state: StateFolder
    clock: Clock
    draw: Callable[[], float] = random.random

    async def run(self, stub: node_service_pb2_grpc.NodeServiceAsyncStub, asked: asyncio.Event) -> None:
        """Wait for the day, or for the coordinator to ask; then renew.

        A renewal that fails is tried again: half of the certificate's life is
        left, and until its end the session goes on with it.

        Raises:
            RenewedError: done; the session must end, it holds the old one.
        """
        await self._wait(asked)
        for delay in delays(self.draw, first=_FIRST_RETRY, most=_MOST_RETRY):
            try:
                await self._renew(stub)
            except (HansaError, OSError) as error:
                _log.error("certificate_not_renewed", detail=str(error))
                await asyncio.sleep(delay)
                continue
            asked.clear()
            raise RenewedError

    async def _wait(self, asked: asyncio.Event) -> None:
        while not asked.is_set():
            certificate = load_credential(self.state).certificate
            due = renew_at(certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
            wait = (due - self.clock()).total_seconds()
            if wait <= 0:
                break
            try:
                async with asyncio.timeout(min(wait, _LONGEST_SLEEP)):
                    await asked.wait()
            except TimeoutError:
                continue

    async def _renew(self, stub: node_service_pb2_grpc.NodeServiceAsyncStub) -> None:
        old, key_pem = load_credential(self.state).certificate, fresh_key(self.state)
        request = node_service_pb2.RenewCertificateRequest(
            request_id=str(uuid4()), csr_pem=signing_request(key_pem).decode()
        )
        try:
            response = await stub.RenewCertificate(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise remote_error(error) from error
        if load_credential(self.state).certificate != old:
            # Its operator has enrolled it again meanwhile: that certificate stands, ours went with the old one.
            raise RenewedError
        try:
            credential = checked_credential(key_pem, response.certificate_pem.encode())
            _check_successor(old, credential.certificate, self.clock())
        except (ValueError, x509.ExtensionNotFound) as error:
            raise HansaError(Reason.CERTIFICATE_REFUSED, log="the renewed certificate is not ours") from error
        store_credential(self.state, credential)
        _log.info("certificate_renewed", serial=f"{credential.certificate.serial_number:x}")


def _check_successor(old: x509.Certificate, new: x509.Certificate, now: datetime) -> None:
    """Return if ``new`` names whom ``old`` names, and is valid now.

    It takes the place of the only credential there is: one that no honest
    coordinator would admit would shut the node out for good.

    Raises:
        ValueError: it does not.
        x509.ExtensionNotFound: it names nobody.
    """
    named, before = (one.extensions.get_extension_for_class(x509.SubjectAlternativeName) for one in (new, old))
    if named.value != before.value:
        raise ValueError("the certificate names somebody else")
    if not new.not_valid_before_utc - CLOCK_TOLERANCE <= now < new.not_valid_after_utc:
        raise ValueError("the certificate is not valid now")
