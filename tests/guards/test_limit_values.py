"""What may be said of limits over HTTP: the names, the amounts, and which of them may be null."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from api.schema_accounts import KeyIn, KeyPatch, TenantIn, TenantPatch
from api.schema_limits import EndUserLimits, LimitName, Limits
from auth.principal import LIMITS

OWN_COLUMN = "max_streams"
RATES = {"requests_per_minute": 10**8, "tokens_per_minute": 10**8}
BUDGETS = dict.fromkeys(
    ("tokens_per_day", "tokens_per_month", "nano_dollars_per_day", "nano_dollars_per_month"), 2**52
)
LARGEST = {**RATES, **BUDGETS}
FIELDS: dict[str, tuple[int, int]] = {
    "max_waiters": (0, 10_000),
    "max_wait_seconds": (1, 300),
    "weight": (1, 1000),
}
EVERYWHERE: list[tuple[type[BaseModel], str]] = [
    (TenantIn, "limits"),
    (TenantPatch, "limits"),
    (KeyIn, "limits"),
    (KeyPatch, "limits"),
    (TenantIn, "end_user_limits"),
    (TenantPatch, "end_user_limits"),
]


def asked(model: type[BaseModel], **values: Any) -> BaseModel:
    """A body of that model; a tenant needs a name."""
    return model.model_validate(values | ({"name": "Acme"} if model is TenantIn else {}))


def fault(model: type[BaseModel], **values: Any) -> str:
    """Which field of it is refused; one has to be, and one alone."""
    with pytest.raises(ValidationError) as refused:
        asked(model, **values)
    (first,) = refused.value.errors()
    return ".".join(str(part) for part in first["loc"])


def test_the_names_are_those_that_are_enforced():
    """All of LIMITS but a bought token's allowance; streams have a column of their own, but for end users."""
    settable = set(LIMITS) - {"tokens_in_all"}
    assert set(get_args(LimitName)) == settable == {*LARGEST, OWN_COLUMN}
    assert set(Limits.model_fields) == {*LARGEST, "shadow"}
    assert set(EndUserLimits.model_fields) == {*settable, "shadow"}


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize(("model", "field"), EVERYWHERE)
def test_an_amount_is_a_whole_number_within_its_bounds(model, field, name):
    """From 1 to the largest that is counted exactly; no truth, no fraction, no text, no list."""
    most = LARGEST[name]
    for amount in (1, 2, most):
        said = getattr(asked(model, **{field: {name: amount}}), field)
        assert said.model_dump(exclude_unset=True) == {name: amount}
    for amount in (0, -1, most + 1, 2**64, True, False, 1.0, 1.5, 1e30, "60", "", [60], {}):
        assert fault(model, **{field: {name: amount}}) == f"{field}.{name}"


@pytest.mark.parametrize("model", [TenantIn, TenantPatch])
def test_end_users_have_a_cap_on_streams_among_their_limits(model):
    """From 1 to a million; a tenant's or key's own stands beside its limits and not among them."""
    for amount in (1, 1_000_000):
        assert asked(model, end_user_limits={OWN_COLUMN: amount}).end_user_limits.max_streams == amount
    for amount in (0, 1_000_001, True, 2.0, "2"):
        assert fault(model, end_user_limits={OWN_COLUMN: amount}) == "end_user_limits.max_streams"
    for other in (model, KeyIn, KeyPatch):
        assert fault(other, limits={OWN_COLUMN: 5}) == "limits.max_streams"


@pytest.mark.parametrize(("model", "field"), EVERYWHERE)
def test_a_name_that_is_none_is_refused(model, field):
    """Also a bought token's own; a typing error must not be a limit that does nothing."""
    for name in ("token_per_day", "tokens_in_all", "Tokens_per_day", "tokens-per-day", "", "id"):
        assert fault(model, **{field: {name: 5}}) == f"{field}.{name}"


@pytest.mark.parametrize(("model", "field"), EVERYWHERE)
def test_a_shadow_is_a_list_of_names(model, field):
    """Each once, in the order in which they came; with or without an amount; nothing that is no name."""
    names = list(get_args(LimitName))
    for said, kept in ((names, names), (names[::-1] + names, names[::-1]), ([], [])):
        assert getattr(asked(model, **{field: {"shadow": said}}), field).shadow == kept
    for said in ("tokens_per_day", {"tokens_per_day": True}, 5, True):
        assert fault(model, **{field: {"shadow": said}}) == f"{field}.shadow"
    for said in ("tokens_in_all", "shadow", "", 5, None):
        assert fault(model, **{field: {"shadow": ["max_streams", said]}}) == f"{field}.shadow.1"
    assert fault(model, **{field: {"shadow": ["max_streams"] * 201}}) == f"{field}.shadow"


@pytest.mark.parametrize(("model", "field"), EVERYWHERE)
def test_limits_are_an_object(model, field):
    """Null takes away what is in it, and is nothing that the whole could be."""
    for said in (None, 5, [], "tokens_per_day=5", True):
        assert fault(model, **{field: said}) == field


@pytest.mark.parametrize(("model", "field"), EVERYWHERE)
def test_a_patch_says_what_was_said_and_no_more(model, field):
    """A null is told apart from what was left out; what was not named at all is not in it."""
    said = {"tokens_per_day": None, "requests_per_minute": 5, "shadow": None}
    body = asked(model, **{field: said})
    assert body.model_dump(exclude_unset=True)[field] == said
    assert field not in asked(model).model_dump(exclude_unset=True)
    assert asked(model, **{field: {}}).model_dump(exclude_unset=True)[field] == {}


@pytest.mark.parametrize("name", FIELDS)
def test_queue_and_weight_have_bounds(name):
    """Whole numbers, of a new tenant and of one that is changed; null is none; a key has neither."""
    least, most = FIELDS[name]
    for model in (TenantIn, TenantPatch):
        for value in (least, most):
            assert asked(model, **{name: value}).model_dump()[name] == value
        for value in (least - 1, most + 1, True, 1.0, "1", None):
            assert fault(model, **{name: value}) == name
    for model in (KeyIn, KeyPatch):
        assert fault(model, **{name: most}) == name
        assert fault(model, end_user_limits={}) == "end_user_limits"


def test_what_is_created_has_the_names_that_are_set():
    """Nulls are left out, defaults are those of the port, and two bodies share no object."""
    fields = TenantIn(name="Acme", limits={"tokens_per_day": None, "tokens_per_minute": 5}).fields(20)
    assert (fields.limits, fields.end_user_limits) == ({"tokens_per_minute": 5}, {})
    assert (fields.max_waiters, fields.max_wait_seconds, fields.weight) == (0, 30, 1)
    assert KeyIn(limits={"shadow": ["max_streams"]}).fields().limits == {"shadow": ["max_streams"]}
    assert KeyIn().fields().limits == {}
    assert TenantIn(name="a").fields(1).limits is not TenantIn(name="b").fields(1).limits
