"""What routes ask for: who is calling, and the gate. Authentication always comes before the body is read."""

from __future__ import annotations

from typing import Annotated, TypedDict

from fastapi import Depends, Request, Security

from api.accounts import Actor
from api.exports import Outbox
from api.flow.gate import Gate
from auth.authenticator import Authenticator
from auth.dependencies import Requires, address_of, authenticated
from auth.principal import Principal, Scope
from auth.tokens import TokenSigner


class LifespanState(TypedDict):
    """What the lifespan puts into every request's state."""

    gate: Gate
    authenticator: Authenticator
    signer: TokenSigner
    outbox: Outbox


async def _gate(request: Request) -> Gate:
    gate: Gate = request.state.gate
    return gate


async def _signer(request: Request) -> TokenSigner:
    signer: TokenSigner = request.state.signer
    return signer


async def _outbox(request: Request) -> Outbox:
    outbox: Outbox = request.state.outbox
    return outbox


def actor_named(name: str, request: Request) -> Actor:
    """Somebody of that name, for the audit log."""
    return Actor(name, address_of(request), request.state.request_id)


async def _by(request: Request, principal: Annotated[Principal, Security(authenticated)]) -> Actor:
    return actor_named(principal.name, request)


Caller = Annotated[Principal, Security(Requires(Scope.CHAT))]
Embedder = Annotated[Principal, Security(Requires(Scope.EMBEDDINGS))]
ModelReader = Annotated[Principal, Security(Requires(Scope.CHAT, Scope.EMBEDDINGS))]
Tenant = Annotated[Principal, Security(Requires())]
UsageReader = Annotated[Principal, Security(Requires(Scope.USAGE_READ, Scope.TENANT_ADMIN))]
TenantAdmin = Annotated[Principal, Security(Requires(Scope.TENANT_ADMIN))]
Admin = Annotated[Principal, Security(Requires(Scope.ADMIN))]
Anyone = Annotated[Principal, Security(authenticated)]
By = Annotated[Actor, Depends(_by)]
GateDep = Annotated[Gate, Depends(_gate)]
SignerDep = Annotated[TokenSigner, Depends(_signer)]
OutboxDep = Annotated[Outbox, Depends(_outbox)]
