"""The catalog: which entry holds for a name, and who is asked first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict

import pytest

from api.core.catalog import Catalog, ModelSpec, ProviderKey, Target, UpstreamSpec, in_order, taken

ONE = (Target("one"),)


def catalog(*names: str, tenant: str = "") -> Catalog:
    return Catalog(models=[ModelSpec(name, ONE, tenant_id=tenant) for name in names])


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["gpt-4o", "gpt-*", "*"], "gpt-4o", "gpt-4o"),
        (["gpt-4o", "gpt-*", "*"], "gpt-4o-mini", "gpt-*"),
        (["gpt-4o", "gpt-*", "*"], "claude", "*"),
        (["gpt-4*", "gpt-*"], "gpt-4o", "gpt-4*"),
        (["gpt-4o"], "gpt-4o-mini", None),
        (["gpt-*"], "gpt", None),
        (["gpt-*"], "gpt-", "gpt-*"),
    ],
)
def test_the_closest_name_holds(names, asked, found):
    """The very name, else the longest beginning; without one the model does not exist."""
    spec = catalog(*names).of(asked, "tn_1")
    assert (None if spec is None else spec.name) == found


def test_a_tenants_own_entry_goes_before_the_general_one():
    """Even a beginning of its own; other tenants do not see it."""
    mine = ModelSpec("gpt-*", (Target("mine"),), tenant_id="tn_1")
    both = Catalog(models=[ModelSpec("gpt-4o", ONE), mine])
    assert both.of("gpt-4o", "tn_1") is mine
    assert both.of("gpt-4o", "tn_2").targets == ONE
    assert both.of("gpt-5", "tn_2") is None
    assert Catalog(models=[mine, ModelSpec("own", ONE, tenant_id="tn_1")]).names("tn_1") == ["own"]
    assert Catalog(models=[ModelSpec("own", ONE, tenant_id="tn_1")]).names("tn_2") == []


def test_order_goes_before_weight_and_weights_are_shares():
    """Three in four begin at the heavier of two equals; what comes later in order always does."""
    targets = [Target("a", weight=3), Target("b"), Target("late", order=1, weight=100)]
    chance = random.Random(7)
    drawn = [in_order(targets, chance.random) for _ in range(4000)]
    assert {order[-1].upstream for order in drawn} == {"late"}
    assert 2850 < Counter(order[0].upstream for order in drawn)["a"] < 3150


def test_a_tenants_key_is_its_own_and_is_never_shown():
    """By tenant and upstream; not in a text that a log might get."""
    key = ProviderKey("tn_1", "openai", "sk-SECRET")
    assert Catalog(keys=[key]).key_of("tn_1", "openai") == "sk-SECRET"
    assert Catalog(keys=[key]).key_of("tn_2", "openai") is None
    assert "SECRET" not in repr(key)


def test_what_is_stored_comes_back_and_what_a_newer_release_adds_is_left_out():
    """So that two releases can share a database."""
    model = ModelSpec("m", (Target("a", "x", 2, 1), Target("b")), first_token_seconds=1.5, retries=2)
    upstream = UpstreamSpec("a", "openai", dialects=("openai_chat",))
    stored = asdict(model) | {"later": 1}
    stored["targets"] = [target | {"later": 1} for target in stored["targets"]]
    assert taken(ModelSpec, stored) == model
    assert taken(UpstreamSpec, asdict(upstream) | {"dialects": ["openai_chat"], "later": 1}) == upstream


def test_an_upstream_speaks_what_its_kind_does_unless_it_says():
    """VLLM that knows chats alone, or messages too."""
    assert "openai_responses" in UpstreamSpec("a", "openai").spoken
    assert UpstreamSpec("a", "anthropic").spoken == ("anthropic_messages",)
    assert UpstreamSpec("a", "openai", dialects=("openai_chat",)).spoken == ("openai_chat",)
