"""Models of limits, as admins and tenants set them. docs/limits.md says what each name means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_NAMES = 200
MAX_RATE = 100_000_000
MAX_BUDGET = 2**52
"""Redis' Lua counts exactly up to 2**53, and a budget and a request over it must fit together."""

LimitName = Literal[
    "max_streams",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "nano_dollars_per_day",
    "nano_dollars_per_month",
]


def _distinct(names: list[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


Rate = Annotated[int, Field(strict=True, ge=1, le=MAX_RATE)]
Budget = Annotated[int, Field(strict=True, ge=1, le=MAX_BUDGET)]
Streams = Annotated[int, Field(ge=1, le=1_000_000)]
ShadowNames = Annotated[list[LimitName], Field(max_length=MAX_NAMES), AfterValidator(_distinct)]
MaxWaiters = Annotated[int, Field(strict=True, ge=0, le=10_000)]
MaxWaitSeconds = Annotated[int, Field(strict=True, ge=1, le=300)]
Weight = Annotated[int, Field(strict=True, ge=1, le=1000)]
LimitsOut = dict[str, int | list[str]]


class Limits(BaseModel):
    """Limits by name; those that are left out stay as they are, and null takes one away (RFC 7396).

    Tokens are input and output together; money is nano-dollars, 1,000,000,000 to the dollar. Limits named in
    `shadow` refuse nothing: it is only counted what they would have refused. `shadow` is replaced as a whole.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"requests_per_minute": 60, "tokens_per_day": 1_000_000}},
    )

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    tokens_per_day: Budget | None = None
    tokens_per_month: Budget | None = None
    nano_dollars_per_day: Budget | None = None
    nano_dollars_per_month: Budget | None = None
    shadow: ShadowNames | None = None

    def stored(self) -> dict[str, Any]:
        """What to create: the names that are set."""
        return self.model_dump(exclude_none=True)


class EndUserLimits(Limits):
    """The same for each end user of a tenant, whose cap on streams is one of them."""

    max_streams: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
