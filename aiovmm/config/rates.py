"""Rate limits, by the reference's keys: a bucket of bytes and one of operations."""

from __future__ import annotations

from aiovmm.config.checks import check_id
from aiovmm.config.kinds import dataclass
from aiovmm.config.placed import PlacedConfig
from aiovmm.errors import ConfigError

__all__ = ["RATES", "REFILL_TIME", "LimitedConfig", "RateLimit", "RateLimitGroupConfig"]

_BUCKETS = tuple(tuple(f"{kind}_{key}" for key in ("size", "one_time_burst", "refill_time")) for kind in ("bw", "ops"))
RATES = tuple(key for keys in _BUCKETS for key in keys)

REFILL_TIME = 1000
"""Milliseconds, where it is not given."""
_MOST = 1 << 60
_LONGEST = 1_000_000_000  # milliseconds, eleven days


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """At most `bw_size` bytes in each `bw_refill_time` milliseconds, after a first `bw_one_time_burst` bytes; likewise
    operations, `ops_*`. A size of 0 is no limit. A bucket is refilled all the time, not once in its time: 100 ms and a tenth of
    the size allow the same in the long run, and less at once."""

    bw_size: int = 0
    bw_one_time_burst: int = 0
    bw_refill_time: int = REFILL_TIME
    ops_size: int = 0
    ops_one_time_burst: int = 0
    ops_refill_time: int = REFILL_TIME

    def __post_init__(self) -> None:
        _check("rate_limit", self)


@dataclass(frozen=True, kw_only=True)
class RateLimitGroupConfig(RateLimit):
    """A limit that several disks share: those that name its `id` as their `rate_limit_group`."""

    id: str

    def __post_init__(self) -> None:
        check_id("rate_limit_group.id", self.id)
        _check("rate_limit_group", self)
        if not self.bw_size and not self.ops_size:
            raise ConfigError("rate_limit_group.bw_size", "is missing, and so is ops_size", "it would limit nothing")


@dataclass(frozen=True, kw_only=True)
class LimitedConfig(PlacedConfig):
    """A device with a limit of its own, see RateLimit."""

    bw_size: int = 0
    bw_one_time_burst: int = 0
    bw_refill_time: int = REFILL_TIME
    ops_size: int = 0
    ops_one_time_burst: int = 0
    ops_refill_time: int = REFILL_TIME

    @property
    def rate_limit(self) -> RateLimit | None:
        """The six keys in one, or None if they limit nothing."""
        if not self.bw_size and not self.ops_size:
            return None
        return RateLimit(**{key: getattr(self, key) for key in RATES})

    def _check_rates(self, option: str) -> None:
        _check(option, self)


def _check(option: str, rates: RateLimit | LimitedConfig) -> None:
    for size_key, burst_key, time_key in _BUCKETS:
        size, burst, time = (getattr(rates, key) for key in (size_key, burst_key, time_key))
        for key, value, least, most in (
            (size_key, size, 0, _MOST),
            (burst_key, burst, 0, _MOST),
            (time_key, time, 1 if size else 0, _LONGEST),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{option}.{key}", f"{value} is not in {least}..{most}")
        if not size and burst:
            raise ConfigError(f"{option}.{burst_key}", f"goes with {size_key}", f"say {size_key}=, too")
