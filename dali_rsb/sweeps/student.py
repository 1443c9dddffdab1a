"""Quantiles of Student's t distribution, for confidence intervals."""

from __future__ import annotations

import math

import numpy as np

# Abscissas and weights of Gauss and Legendre: enough for 12 digits here.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


def t_quantile(probability: float, degrees: float) -> float:
    """The value that t with so many degrees of freedom stays below with a probability.

    Args:
        probability: of 0.5 to below 1.
        degrees: of freedom, at least 1; they need not be whole.
    """
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cdf(t: float, degrees: float) -> float:
    """Probability that t with so many degrees of freedom is below a value of at least 0.

    With t = sqrt(degrees) tan(angle) the density becomes a power of the cosine, and the integral
    one over a finite range.
    """
    half = math.atan(t / math.sqrt(degrees)) / 2
    powers = np.cos(half * (_NODES + 1)) ** (degrees - 1)
    log_factor = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    factor = math.exp(log_factor) / math.sqrt(math.pi)
    return 0.5 + factor * half * float(_WEIGHTS @ powers)
