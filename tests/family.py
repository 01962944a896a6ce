"""Each method of the SAM family in numpy and float64, written from its paper and its authors' code.

One vector holds all parameters. `gradient` is a function of the vector and the step's number; a
base has ``step(w, g) -> w`` and keeps its momentum in ``v``.
"""

import numpy as np


class SGD:
    """With momentum, coupled weight decay, and Nesterov's form if asked for."""

    def __init__(self, lr, momentum, nesterov, decay):
        self.lr, self.momentum, self.nesterov, self.decay = lr, momentum, nesterov, decay
        self.v = None

    def step(self, w, g):
        g = g + self.decay * w
        self.v = g if self.v is None else self.momentum * self.v + g
        return w - self.lr * (g + self.momentum * self.v if self.nesterov else self.v)


class Adam:
    """With coupled weight decay."""

    def __init__(self, lr, decay):
        self.lr, self.decay, self.t = lr, decay, 0
        self.v = self.u = None

    def step(self, w, g):
        g = g + self.decay * w
        if self.v is None:
            self.v, self.u = np.zeros_like(w), np.zeros_like(w)
        self.t += 1
        self.v = 0.9 * self.v + 0.1 * g
        self.u = 0.999 * self.u + 0.001 * g * g
        m, u = self.v / (1 - 0.9**self.t), self.u / (1 - 0.999**self.t)
        return w - self.lr * m / (np.sqrt(u) + 1e-8)


def climbed(w, d, rho, t):
    """``rho`` and ``t`` are one number an element: groups may differ."""
    return w + rho * t**2 * d / np.linalg.norm(t * d)


def ones(w):
    return np.ones_like(w)


def sam(w, gradient, base, steps, rho, t=ones):
    for i in range(steps):
        w = base.step(w, gradient(climbed(w, gradient(w, i), rho, t(w)), i))
    return w


def periodic(w, gradient, base, steps, rho, interval):
    for i in range(steps):
        g = gradient(w, i)
        if (i + 1) % interval == 0:
            g = gradient(climbed(w, g, rho, ones(w)), i)
        w = base.step(w, g)
    return w


def late(w, gradient, base, steps, rho, start):
    for i in range(steps):
        g = gradient(w, i)
        if i >= start:
            g = gradient(climbed(w, g, rho, ones(w)), i)
        w = base.step(w, g)
    return w


def msam(w, gradient, base, steps, rho):
    for i in range(steps):
        v = base.v
        at = w if v is None else w - rho * v / np.linalg.norm(v)
        w = base.step(w, gradient(at, i))
    return w


def friendly(w, gradient, base, steps, rho, sigma, lmbda, t=ones):
    m = None
    for i in range(steps):
        g = gradient(w, i)
        d = g if m is None else g - sigma * m
        m = g if m is None else lmbda * m + (1 - lmbda) * g
        w = base.step(w, gradient(climbed(w, d, rho, t(w)), i))
    return w


def sam_on(w, gradient, base, steps, rho, mask, t=ones):
    for i in range(steps):
        w = base.step(w, gradient(climbed(w, mask * gradient(w, i), rho, t(w)), i))
    return w


def gsam(w, gradient, base, steps, rho, alpha, t=ones):
    """``rho`` is a function of the step: its schedule follows the learning rate."""
    for i in range(steps):
        g = gradient(w, i)
        gs = gradient(climbed(w, g, rho(i), t(w)), i)
        unit = gs / np.linalg.norm(gs)
        w = base.step(w, gs - alpha * (g - (g @ unit) * unit))
    return w


def looksam(w, gradient, base, steps, rho, alpha, interval):
    for i in range(steps):
        g = gradient(w, i)
        if i % interval == 0:
            gs = gradient(climbed(w, g, rho, ones(w)), i)
            unit = g / np.linalg.norm(g)
            gv = gs - (gs @ unit) * unit
            w = base.step(w, gs)
        else:
            w = base.step(w, g + alpha * np.linalg.norm(g) / np.linalg.norm(gv) * gv)
    return w


def micro(w, gradients, base, steps, rho, shares):
    """``gradients`` holds one function a part, ``shares`` what each counts; they sum to 1."""
    for i in range(steps):
        parts = [f(climbed(w, f(w, i), rho, ones(w)), i) for f in gradients]
        w = base.step(w, sum(s * g for s, g in zip(shares, parts, strict=True)))
    return w
