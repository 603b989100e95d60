"""Accounts while their database is away: nobody gets in, in bounded time, and it heals by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from api.adapters.accounts_sql import SqlAccounts
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.database_sql import database_url, open_engine
from api.ports import AccountsUnavailable
from auth.memory import CredentialStore
from tests.contracts.helpers import Clock, bounded, eventually, key, tenant
from tests.contracts.outages import open_impatient
from tests.contracts.walks import CALLS, CHANGES, World, methods, populated
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.contracts.outages import Outage

LOOKS = {
    "find_key": lambda store: store.find_key("0" * 12),
    "find_tenant": lambda store: store.find_tenant("tn_a"),
    "find_user": lambda store: store.find_user("root@example.com"),
    "revoked_tokens": lambda store: store.revoked_tokens(),
    "changes": lambda store: store.changes(7, [3]),
}


@pytest.fixture
async def engine(outage: Outage) -> AsyncIterator[AsyncEngine]:
    """The engine of what is under test."""
    opened = open_impatient(outage)
    yield opened
    await opened.dispose()


@pytest.fixture
async def nowhere() -> AsyncIterator[tuple[AsyncEngine, int]]:
    """An engine on a port where nobody listens, and the port."""
    port = free_port()
    opened = open_engine(f"postgresql://nobody:hush-hush@127.0.0.1:{port}/none")
    yield opened, port
    await opened.dispose()


def says_nothing_of_the_database(error: BaseException, *words: object) -> bool:
    """Whether its text holds nothing of the driver, the address or the statement."""
    return not any(str(word).lower() in str(error).lower() for word in ("127.", "select", "insert", *words))


def test_every_look_is_tried() -> None:
    """A method that authentication gets is a row here."""
    assert methods(CredentialStore) == set(LOOKS)


@pytest.mark.parametrize("name", CALLS)
async def test_a_database_that_is_nowhere_lets_nobody_change_or_see(nowhere, name) -> None:
    """Fails closed, with the one exception that callers of the port know; nothing of the driver gets out."""
    engine, port = nowhere
    with pytest.raises(AccountsUnavailable) as refused:
        await bounded(CALLS[name](World(SqlAccounts(engine, Clock()))))
    assert says_nothing_of_the_database(refused.value, port, "hush-hush", "nobody")


@pytest.mark.parametrize("name", LOOKS)
async def test_a_database_that_is_nowhere_lets_nobody_in(nowhere, name) -> None:
    """P9: whoever cannot be looked up is not let in, whatever is asked."""
    engine, port = nowhere
    with pytest.raises(AccountsUnavailable) as refused:
        await bounded(LOOKS[name](SqlCredentials(engine, Clock())))
    assert says_nothing_of_the_database(refused.value, port, "hush-hush", "nobody")


async def test_authentication_does_not_wait_for_a_database_that_says_nothing(proxied) -> None:
    """A network that swallows everything is AccountsUnavailable too, by the store's own patience."""
    _, detour, proxy = proxied
    engine = create_async_engine(database_url(detour))  # whose driver would wait for a minute
    store = SqlCredentials(engine, Clock())
    await asyncio.gather(*(look(store) for look in LOOKS.values()))
    proxy.mute = True
    asked = (look(store) for look in LOOKS.values())
    answers = await bounded(asyncio.gather(*asked, return_exceptions=True))
    assert [type(answer) for answer in answers] == [AccountsUnavailable] * len(LOOKS)
    await proxy.cut()
    proxy.mute = False
    await proxy.mend()
    await eventually(lambda: answer_again(store))
    await engine.dispose()


async def answer_again(store: SqlCredentials) -> bool:
    """Whether every look has an answer now."""
    asked = (look(store) for look in LOOKS.values())
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return not any(isinstance(answer, AccountsUnavailable) for answer in answers)


async def test_lookups_fail_closed_and_heal(outage, engine) -> None:
    """While the database refuses, nobody is let in; when it answers again, everybody is, by itself."""
    accounts, store = SqlAccounts(engine, Clock()), SqlCredentials(engine, Clock())
    info, _ = await key(accounts, await tenant(accounts))
    found = await store.find_key(info.id)
    await outage.begin()
    if outage.makes_reads_fail:
        for look in LOOKS.values():
            with pytest.raises(AccountsUnavailable) as refused:
                await bounded(look(store))
            assert says_nothing_of_the_database(refused.value)
    else:
        assert await bounded(store.find_key(info.id)) == found  # a lock that keeps writers out
    await outage.end()
    assert await bounded(store.find_key(info.id)) == found
    assert found is not None


async def test_changes_fail_closed_and_heal(outage, engine) -> None:
    """A change that the database did not take is AccountsUnavailable, and can be made when it is back."""
    world = await populated(SqlAccounts(engine, Clock()))
    before = await world.accounts.audit()
    await outage.begin()
    for change in CHANGES.values():
        with pytest.raises(AccountsUnavailable) as refused:
            await bounded(change.call(world))
        assert says_nothing_of_the_database(refused.value)
    await outage.end()
    assert await world.accounts.audit() == before
    for change in CHANGES.values():
        await bounded(change.call(world))
    assert len(await world.accounts.audit()) == len(before) + len(CHANGES)
