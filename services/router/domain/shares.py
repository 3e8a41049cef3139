"""Percentages as callers write them, in hundredths of a percent."""

from services.router.domain.refusals import Unprocessable


def share_bp(percent: float, param: str = "traffic_split_percent") -> int:
    """A percentage in hundredths of a percent; raises Unprocessable when it is finer than that or out of range."""
    if not 0 <= percent <= 100:
        raise Unprocessable(f"{param} is {percent:g}: give a value from 0 to 100", param=param)
    exact = percent * 100
    whole = round(exact)
    if abs(exact - whole) > 1e-6:
        raise Unprocessable(f"{param} is {percent:g}: splits go in steps of 0.01, such as {whole / 100:g}", param=param)
    return whole
