"""How far float32 arithmetic may carry the native runtime from the numbers that it stands for.

The reference is the torch twin in float64. It rounds what the native runtime rounds on purpose,
keys and values to halves and the input of quantised matrices to bytes; its own errors are 2^-29 of
those of float32 and count for nothing. What separates the two is every other rounding of the native
runtime, and its size is derived, one operation at a time.

**One operation.** A float32 result is the exact one times 1 + d with |d| <= U = 2^-24: the standard
model. The probabilistic model takes the d of different operations as uncorrelated with mean zero
(Higham and Mary, SIAM J. Sci. Comput. 41, 2019). For a result m 2^e with 1 <= m < 2, d is uniform
within U / m, of variance U^2 / (3 m^2); over mantissas that follow Benford's law, of density
1 / (m ln 2), the mean is U^2 / (8 ln 2). Call that *one rounding*. Then

- k operations in turn make k roundings, and a relative error that is uniform within b U makes
  b^2 8 ln 2 / 3;
- a sum of positive terms that each pass at most k additions makes at most k: the partial sums of
  one level add up to the whole, so their squares add up to no more than its square;
- a chain of n fused multiply-adds rounds every partial sum s_j once, so that its variance is one
  rounding's times the sum of s_j^2. Where the signs of the terms t_i are unrelated, s_j^2 is on
  average the sum of t_i^2 over i <= j, and the sum of those is that of (n - i) t_i^2, counted from
  0: the later a term comes, the fewer roundings it meets. No order of summing has a larger variance
  than a chain. (The worst case, gamma_n sum |t_i|, is about 3 n times as large as its root.)

`roundings` and `chain_variance` give each operation's count, with what in `native/kernels/` it
counts.

**All together.** To first order an output is off by the sum of all local errors times its
derivatives by them. A pass with random local errors of the derived sizes has exactly this sum's
variance, whatever the derivatives are: `sigma` is the root mean square deviation of such a pass,
over the outputs of one row. So no derivative needs a bound, and no bound multiplies with depth.

**The tolerance** is `SIGMAS` times sigma, for the root mean square over a row's outputs. A sum of
many small independent errors is close to normal. Its mean square over a row then exceeds 36 times
its mean with a probability of at most 2e-9, that of a single normal number beyond 6 sigma: the
extreme case, in which all outputs move as one.

**Jumps.** A value near the edge between two halves, or two bytes, may fall to either side, and then
no small tolerance holds. In the pass that gives sigma all values fall as in the reference. Another
pass with errors is free to jump, as often as the native runtime does: the number of sequences in
which it stays within the tolerance all the same is what to expect of the native runtime, and
`fewest` is what it must reach. That sigma is known from one pass only weighs on both alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

U = 2.0**-24
ONE = U / math.sqrt(8 * math.log(2))  # the standard deviation of one rounding
SIGMAS = 6.0

EXP, TANH = (1.2e-7 / ONE) ** 2 / 3, (2e-7 / ONE) ** 2 / 3
"""math.h's bounds on the relative errors, which ops_test.cc checks."""

ROUNDINGS = {
    "add": 1,
    "sub": 1,
    "sub_": 1,
    "mul": 1,
    "div": 2,  # or a product with an inverse, which is rounded too
    "cos": 1,
    "sin": 1,
    "exp_": EXP,
    "tanh": TANH,
    # Attention joins blocks of 64 positions in one chain, with the sum so far in every step:
    # (a + b)^2 <= 2 a^2 + 2 b^2. Merging two sections instead takes fewer.
    "add_": 128,
}


def fewest(agreeing: int, count: int) -> int:
    """How many of `count` cases must agree if `agreeing` did in another run that was as likely to:
    fewer have a chance below 1e-6 (Fisher's exact test). Cases that differ only make it rarer."""
    every = math.comb(2 * count, count)

    def chance(least: int) -> float:
        both = agreeing + least
        ways = (
            math.comb(both, k) * math.comb(2 * count - both, count - k) for k in range(least + 1)
        )
        return sum(ways) / every

    return next(least for least in range(count + 1) if chance(least) >= 1e-6)


def depth(count: int) -> int:
    """Roundings of a sum of positive terms: 16 or more lanes, their sum, and a division."""
    return -(-count // 16) + 5


def roundings(name: str, args: tuple[Any, ...]) -> float | Tensor:
    """How many a result of torch.<name>(*args) has behind it. Products have a rule of their own."""
    x = args[0]
    if name == "pow":  # squares go into fused multiply-adds; a root and its inverse
        return 2 if args[1] == -0.5 else 0
    if name in ("mean", "sum"):
        return depth(x.shape[-1])
    if name == "gelu":  # x / (1 + exp(-a)): a has 5, which exp turns into |a| as many
        a = 1.5957691216 * (x + 0.044715 * x**3)
        closed = torch.sigmoid(-a)
        return 5 * (a * closed).square() + (EXP + 1) * closed.square() + 1
    if name == "softmax":  # exp of a rounded difference; the sum, its inverse and a product
        return (x - x.amax(-1, keepdim=True)).square() + EXP + depth(x.shape[-1]) + 2
    return ROUNDINGS.get(name, 0)


def chain_variance(x: Tensor, weight: Tensor, block: int = 1) -> Tensor:
    """Of x [..., n] times weight [..., n, O], in squares of `ONE`. [..., O]

    Args:
        block: columns that are added as integers, exactly. A block's sum meets one chain, and two
            more roundings: of its activations' scale, and of that times the weights' scale.
    """
    count = x.shape[-1]
    left = torch.arange(count, 0, -1, dtype=x.dtype).div(block).ceil()
    if block > 1:
        left += 2
    return (x.square() * left) @ weight.square()


class Float32Errors:
    """Draws errors of the derived sizes, for one or more passes side by side in dimension 0."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def of_product(self, x: Tensor, weight: Tensor, block: int = 1) -> Tensor:
        deviation = ONE * chain_variance(x, weight, block).sqrt()
        return deviation * self._normal(*deviation.shape)

    def of(self, name: str, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
        """Errors of y = torch.<name>(*args); None where torch only moves numbers."""
        count = roundings(name, args)
        if not isinstance(count, Tensor) and not count:
            return None
        errors = torch.as_tensor(count).sqrt() * self._normal(*y.shape)
        if name == "mul" and not (isinstance(args[1], Tensor) and args[1].dim()):
            # A constant is rounded too, once or twice, and for all elements alike.
            errors = errors + 2**0.5 * self._normal(*y.shape[:1], *[1] * (y.dim() - 1))
        return (ONE * y * errors).nan_to_num(0.0, 0.0, 0.0)  # scores of keys that no row sees
