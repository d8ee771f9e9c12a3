"""The base class of all records, and the numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Seconds = Annotated[float, Field(ge=-1e10, le=1e10)]
"""A time of a run in seconds. It lies within 300 years of the zero, so differences and sums are finite."""

Number = Annotated[float, Field(ge=-1e18, le=1e18)]
"""A number of any unit. Its limits keep squares and sums of such numbers finite."""

Count = Annotated[int, Field(ge=-(2**63), le=2**63)]
"""A whole number that fits into 64 bits."""


class FrozenModel(BaseModel):
    """An immutable model that refuses unknown fields, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FORMER_KINDS = {"here": "host"}
"""Kinds of sandboxes that had another word in records from before 2026-11-27."""


def _kind(word: object) -> object:
    return FORMER_KINDS.get(word, word) if isinstance(word, str) else word


SandboxKind = Annotated[str, BeforeValidator(_kind)]
"""``gvisor`` or ``host``."""
