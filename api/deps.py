"""What routes ask for: who is calling, and the gate. Authentication always comes before the body is read."""

from __future__ import annotations

from typing import Annotated, TypedDict

from fastapi import Depends, Request, Security

from api.flow.gate import Gate
from auth.authenticator import Authenticator
from auth.dependencies import Requires
from auth.principal import Principal, Scope
from auth.tokens import TokenSigner


class LifespanState(TypedDict):
    """What the lifespan puts into every request's state."""

    gate: Gate
    authenticator: Authenticator
    signer: TokenSigner


def _gate(request: Request) -> Gate:
    gate: Gate = request.state.gate
    return gate


def _signer(request: Request) -> TokenSigner:
    signer: TokenSigner = request.state.signer
    return signer


def request_id(request: Request) -> str:
    """The id that the edge gave this request."""
    given: str = request.state.request_id
    return given


Caller = Annotated[Principal, Security(Requires(Scope.CHAT))]
UsageReader = Annotated[Principal, Security(Requires(Scope.USAGE_READ))]
Admin = Annotated[Principal, Security(Requires(Scope.ADMIN))]
GateDep = Annotated[Gate, Depends(_gate)]
SignerDep = Annotated[TokenSigner, Depends(_signer)]
RequestId = Annotated[str, Depends(request_id)]
