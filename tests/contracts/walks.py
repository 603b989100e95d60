"""Every method of Accounts and Keys, as a call: tests walk these tables, so that nobody forgets a method.

`test_audit.test_every_method_is_in_exactly_one_table` fails for a method that has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from api.accounts import KeyFields, TenantFields
from auth.principal import Scope
from tests.contracts.helpers import BY, START, key, tenant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from api.accounts import Accounts, Keys

PASSWORD_HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo"


@dataclass
class World:
    """Accounts, and whom the calls are about; by default, about nobody who exists."""

    accounts: Accounts
    tenant_id: str = "tn_nobody"
    key_id: str = "0" * 12
    view: str | None = None

    @property
    def keys(self) -> Keys:
        """An admin's view of the keys, or that of the tenant `view`."""
        return self.accounts.keys(self.view)


class Change(NamedTuple):
    """A method that changes something: the action it writes, on what, and how it is called."""

    action: str
    target: Callable[[World], str]
    call: Callable[[World], Awaitable[Any]]


def _tenant(world: World) -> str:
    return world.tenant_id


def _key(world: World) -> str:
    return world.key_id


async def _create(world: World) -> str:
    return (await world.accounts.create_tenant(TenantFields("new", 2, "crm-new"), by=BY)).id


async def _issue(world: World) -> str:
    return (await world.keys.issue(world.tenant_id, KeyFields("new", (Scope.CHAT,)), by=BY))[0].id


CHANGES: dict[str, Change] = {
    "create_tenant": Change("tenant.create", lambda w: "", _create),
    "change_tenant": Change(
        "tenant.change",
        _tenant,
        lambda w: w.accounts.change_tenant(w.tenant_id, {"name": "renamed", "max_streams": 9}, by=BY),
    ),
    "suspend": Change("tenant.suspend", _tenant, lambda w: w.accounts.suspend(w.tenant_id, by=BY)),
    "resume": Change("tenant.resume", _tenant, lambda w: w.accounts.resume(w.tenant_id, by=BY)),
    "revoke_token": Change(
        "token.revoke",
        lambda w: f"{w.tenant_id}/jti",
        lambda w: w.accounts.revoke_token(w.tenant_id, "jti", by=BY),
    ),
    "put_admin": Change(
        "user.put",
        lambda w: "root@example.com",
        lambda w: w.accounts.put_admin("Root@example.com", PASSWORD_HASH, by=BY),
    ),
    "remove_admin": Change(
        "user.remove",
        lambda w: "other@example.com",
        lambda w: w.accounts.remove_admin("Other@example.com", by=BY),
    ),
    "note": Change(
        "session.start",
        lambda w: "root@example.com",
        lambda w: w.accounts.note("start", "session", "root@example.com", by=BY),
    ),
    "issue": Change("key.issue", lambda w: "", _issue),
    "change": Change("key.change", _key, lambda w: w.keys.change(w.key_id, {"name": "renamed"}, by=BY)),
    "rotate": Change("key.rotate", _key, lambda w: w.keys.rotate(w.key_id, grace_seconds=60, by=BY)),
    "revoke": Change("key.revoke", _key, lambda w: w.keys.revoke(w.key_id, by=BY)),
    "delete": Change("tenant.delete", _tenant, lambda w: w.accounts.delete(w.tenant_id, by=BY)),
}
"""A target of "" is the id that the call returns. One after the other, in this order, all succeed."""

READS: dict[str, Callable[[World], Awaitable[Any]]] = {
    "tenants": lambda w: w.accounts.tenants(deleted=True),
    "tenant": lambda w: w.accounts.tenant(w.tenant_id),
    "admins": lambda w: w.accounts.admins(),
    "audit": lambda w: w.accounts.audit(),
    "all_of": lambda w: w.keys.all_of(w.tenant_id),
    "get": lambda w: w.keys.get(w.key_id),
}

SILENT: dict[str, Callable[[World], Awaitable[Any]]] = {
    "used": lambda w: w.accounts.used({w.key_id: START}),
}
"""Writes when something was used, which is no change of an account."""

VIEWS = {"keys"}
"""Does nothing by itself."""

CALLS = {name: change.call for name, change in CHANGES.items()} | READS | SILENT


def methods(protocol: type) -> set[str]:
    """The names of a protocol's methods."""
    return {name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")}


async def populated(accounts: Accounts) -> World:
    """A world in which every call of the tables succeeds."""
    someone = await tenant(accounts, external_id="crm-1", metadata={"plan": "gold"})
    info, _ = await key(accounts, someone)
    await accounts.put_admin("other@example.com", PASSWORD_HASH, by=BY)
    return World(accounts, someone.id, info.id)
