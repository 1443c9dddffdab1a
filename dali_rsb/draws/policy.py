"""The grammar of RandAugment policies: timm's string, as in `rand-m7-mstd0.5-inc1`.

Apart from the draws, so that a configuration can be checked without NumPy.
"""

from __future__ import annotations

import re

from dali_rsb.errors import UserError

_TOKEN = re.compile(r"(mstd|mmax|inc|m|n|p)(\d.*)")
_FRACTIONS = ("mstd", "p")  # the tokens whose number need not be whole
# Far above any policy in use, and below what overflows in the draws.
_LARGEST = {"m": 1000, "mmax": 1000, "n": 100}


def parse_tokens(policy: str) -> dict[str, float | str]:
    """Read a timm policy string into its tokens.

    The tokens are `mN` magnitude, `nN` layers, `pF` probability, `mstdF` noise (above 100:
    uniform), `mmaxN` upper clip, `incN` increasing set unless N is 0, `tNAME` set of operations.
    As in timm 1.0.31, the first `mstd` and `mmax` count and the last of the others. Older versions
    of timm took `inc0` for `inc1`.

    Returns:
        The number of each token that is given, and the name for "t".

    Raises:
        UserError: for another policy than `rand`, a token that timm does not know or would
            silently ignore, or a value out of range.
    """
    head, *tokens = policy.split("-")
    if head != "rand":
        raise UserError(f"auto-augment policy {policy!r}: must begin with 'rand', not {head!r}")
    values: dict[str, float | str] = {}
    for token in tokens:
        if token.startswith("t"):
            values["t"] = token[1:]
            continue
        key, number = _parse_number(policy, token)
        if key in ("mstd", "mmax"):
            values.setdefault(key, number)
        else:
            values[key] = number
    return values


def _parse_number(policy: str, token: str) -> tuple[str, float]:
    where = f"auto-augment policy {policy!r}: token {token!r}"
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise UserError(
            f"{where} is not one of mN, nN, pF, mstdF, mmaxN, incN with a number (for uniform "
            "magnitudes write mstd101)"
        )
    key, text = match.groups()
    try:
        number = float(text) if key in _FRACTIONS else int(text)
    except ValueError:
        kind = "a number" if key in _FRACTIONS else "a whole number"
        raise UserError(f"{where} needs {kind} after {key!r}") from None
    if key == "n" and number < 1:
        raise UserError(f"{where} must leave one layer at least; leave the policy out for none")
    if key == "p" and number > 1:
        raise UserError(f"{where} must be a probability from 0 to 1")
    if number > _LARGEST.get(key, number):
        raise UserError(f"{where} must be at most {_LARGEST[key]}")
    return key, number
