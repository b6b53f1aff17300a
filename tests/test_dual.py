"""Law 1 for every operator rule: value and tangents equal ``torch.func.jvp`` in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import forefed.gradients.dual.attention as attention
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.gradients.dual import RULES, Dual, Pass, ReadAgain, recording
from forefed.gradients.dual.tensor import METADATA, name_of

K = 2
MASK = torch.tensor([[True, False, True, True], [False, True, True, False], [True] * 4])
INDEX = torch.tensor([2, 0, 2])
MARKS = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).double()
C = Key(8).normal((3, 4)).double()
V = Key(9).normal((4,)).double()
M = Key(10).normal((5, 4)).double()
T4 = Key(11).normal((2, 3, 4)).double()


def inplace(name, *args):
    def run(x, y):
        z = x * 1.5
        shared = z.view(12)
        getattr(z, name)(*[y if a == "y" else a for a in args])
        return z + shared.view(3, 4)  # a view sees what was written

    return run


# Every function is of x [3, 4] and y [3, 4], both perturbed.
CASES = {
    "add": lambda x, y: x + y,
    "add a constant": lambda x, y: C + x + 2.0,
    "add broadcasts": lambda x, y: x + T4 + y[0],
    "add alpha": lambda x, y: torch.add(x, y, alpha=3) + torch.add(C, y, alpha=2),
    "sub": lambda x, y: (x - y) + (C - x) + (x - C) + (1 - y) + (x - 1),
    "rsub": lambda x, y: torch.rsub(x, 2.0) + torch.rsub(x, C),
    "mul": lambda x, y: x * y + x * x,
    "mul broadcasts": lambda x, y: (x * T4) * (y[1] * T4) * 2,
    "mul a column": lambda x, y: x * y.mean(-1, keepdim=True) + y[0] * x,
    "div": lambda x, y: x / (y * y + 2) + x / 3 + C / (x * x + 1) + 2 / (x * x + 1),
    "pow": lambda x, y: (x * x + 1) ** -0.5 + x.pow(2) + torch.pow(x, 3),
    "pow of both": lambda x, y: (x * x + 1) ** y,
    "neg": lambda x, y: -x,
    "add_": inplace("add_", "y"),
    "sub_": inplace("sub_", "y"),
    "mul_": inplace("mul_", "y"),
    "div_": inplace("div_", 3.0),
    "iadd": lambda x, y: _iadd(x, y),
    "exp, log": lambda x, y: torch.log(torch.exp(x) + y.exp()),
    "sqrt, rsqrt": lambda x, y: (x * x + 1).sqrt() + torch.rsqrt(y * y + 1),
    "reciprocal, square": lambda x, y: (x * x + 1).reciprocal() + torch.square(y),
    "abs": lambda x, y: x.abs(),
    "sin, cos, erf": lambda x, y: x.sin() * y.cos() + torch.erf(x),
    "gelu": lambda x, y: F.gelu(x + y) + F.gelu(x, approximate="tanh"),
    "silu": lambda x, y: F.silu(F.linear(x, M)).sum(-1) + F.silu(x).sum(-1),
    "relu": lambda x, y: F.relu(x) + torch.relu(y),
    "tanh, sigmoid": lambda x, y: torch.tanh(x) + torch.sigmoid(y),
    "gated": lambda x, y: F.silu(F.linear(x, M)) * F.linear(y, M),
    "linear": lambda x, y: F.linear(x, M) + F.linear(x, M, Key(2).normal((5,)).double()),
    "linear of both": lambda x, y: F.linear(x, y, y[:, 0]),
    "linear in the weight": lambda x, y: F.linear(C, y) + F.linear(T4, y, x[:, 1]).sum(0),
    "linear bias": lambda x, y: F.linear(C, M, F.linear(x[0], M)),
    "matmul": lambda x, y: x @ y.T + C @ y.mT + x @ C.T,
    "matmul in batches": lambda x, y: torch.matmul(T4 * x, y.T) + T4 @ y.t(),
    "mm": lambda x, y: torch.mm(x, y.T) + x.mm(M.T)[:, :3],
    "matmul vector": lambda x, y: x @ V + C @ y[0],
    "bmm": lambda x, y: torch.bmm(T4 * x, (T4 * y).transpose(1, 2)) + torch.bmm(T4 * x, T4.mT),
    "addmm": lambda x, y: torch.addmm(V, C.T, y) + torch.addmm(x[0], x.T, y, beta=0.5, alpha=2),
    "baddbmm": lambda x, y: torch.baddbmm(T4 @ T4.mT, T4 * x, T4.mT, beta=0.0, alpha=0.5),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y) + torch.einsum("ij,kj->ik", C, x),
    "view": lambda x, y: x.view(2, 6) + y.reshape(2, -1) + x.reshape((2, 6)).view_as(y.view(2, 6)),
    "permute": lambda x, y: (T4 * x).permute(2, 0, 1) + (T4 * y).permute((-1, 0, 1)),
    "transpose": lambda x, y: x.transpose(0, 1) + torch.transpose(y, -1, 0) + x.swapaxes(0, 1),
    "expand": lambda x, y: x.expand(2, 3, 4) + y[:, :1].expand(-1, 4) + x[:1].expand_as(C),
    "repeat": lambda x, y: x.repeat(2, 1, 1) + y.repeat_interleave(2, 0)[::2],
    "getitem": lambda x, y: x[1:] + y[:-1] + x[0, None] + x[..., 1:2][1:],
    "getitem with tensors": lambda x, y: x[INDEX] + y[torch.arange(3), INDEX][:, None],
    "getitem, separated": lambda x, y: (T4 * x)[torch.arange(2), :, torch.tensor([1, 3])],
    "getitem with a mask": lambda x, y: x[MASK] + y[MASK],
    "flatten": lambda x, y: (T4 * x).flatten(1) + torch.flatten(T4 * y, 1, 2),
    "unflatten": lambda x, y: x.unflatten(1, (2, 2)) + y.unflatten(-1, (2, -1)),
    "unsqueeze": lambda x, y: x.unsqueeze(0) + y.unsqueeze(-1).squeeze(-1)[None],
    "squeeze": lambda x, y: x[:1].squeeze() + y[:1].squeeze(0) + x[:1].squeeze(),
    "sum": lambda x, y: x.sum(0) + y.sum() + (x.sum(-1, keepdim=True) * y).sum((0, 1)),
    "mean": lambda x, y: x.mean(0) + y.mean() + torch.mean(x, dim=1)[0],
    "masked_fill": lambda x, y: x.masked_fill(MASK, 7.0) + y.masked_fill(~MASK, -1.0),
    "where": lambda x, y: torch.where(MASK, x, y) + torch.where(MASK, x, 0.5) + x.where(MASK, C),
    "cat": lambda x, y: torch.cat([x, C, y], dim=1) + torch.cat((y, y, x), -1),
    "stack": lambda x, y: torch.stack([x, C, y]) + torch.stack([C, y, y], dim=0),
    "split": lambda x, y: x.split(2, dim=1)[1] + torch.split(y, [1, 2, 1], -1)[1],
    "chunk": lambda x, y: x.chunk(2, dim=-1)[0] * y.chunk(2, 1)[1],
    "unbind": lambda x, y: x.unbind(0)[1] + torch.unbind(y)[2] + next(iter(x)),
    "embedding": lambda x, y: F.embedding(INDEX, x) + y,
    "dropout off": lambda x, y: F.dropout(x, 0.5, training=False),
    "contiguous": lambda x, y: x.T.contiguous() + y.T.clone(),
    "to": lambda x, y: x.to(torch.float64) + y.float().double().to(x).type_as(y),
    "narrow, select": lambda x, y: (
        x.narrow(1, 1, 2) + y.select(0, 1)[:2] + x.index_select(1, INDEX)[:, :2]
    ),
    "cumsum": lambda x, y: x.cumsum(1) + torch.cumsum(y, dim=0),
    "movedim": lambda x, y: x.movedim(0, 1) + torch.movedim(y, -1, 0),
    "roll, flip": lambda x, y: x.roll(1, 0) + y.flip(0) + torch.flip(x, (0, 1)),
    "tril": lambda x, y: x.tril() + torch.triu(y, 1),
    "gather": lambda x, y: x.gather(1, INDEX[:, None]) + y.gather(-1, INDEX[:, None]),
    "pad": lambda x, y: F.pad(x, (1, 1)) + F.pad(y, (0, 2), value=3.0),
    "detach": lambda x, y: x * y.detach() + x.data,
    "comparisons": lambda x, y: x * (y > 0) + y * (x == x) + x * torch.zeros_like(y).add(1),
    "softmax": lambda x, y: x.softmax(-1) * torch.softmax(y, 0) * F.softmax(x, dim=-1),
    "log_softmax": lambda x, y: F.log_softmax(x, dim=-1) + torch.log_softmax(y, 0),
    "layer_norm": lambda x, y: F.layer_norm(x + y, (4,)) + F.layer_norm(x, (4,), V, V, 1e-3),
    "layer_norm weights": lambda x, y: (
        F.layer_norm(C, (4,), x[0], y[0]) + F.layer_norm(x, (4,), y[1])
    ),
    "rms_norm": lambda x, y: F.rms_norm(x, (4,), V, 1e-3) + F.rms_norm(x, (4,), y[0]),
    "rms by pieces": lambda x, y: V * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "cross_entropy": lambda x, y: F.cross_entropy(x * y, INDEX),
    "cross_entropy, ignored": lambda x, y: (
        F.cross_entropy(x, torch.tensor([1, -100, 3]), reduction="sum")
        + F.cross_entropy(y, torch.tensor([1, -100, 3]))
    ),
    "cross_entropy, none": lambda x, y: F.cross_entropy(x, INDEX, reduction="none"),
    "binary_cross_entropy": lambda x, y: (
        F.binary_cross_entropy_with_logits(x * y, MARKS)
        + F.binary_cross_entropy_with_logits(x, MARKS, reduction="sum")
    ),
    "binary_cross_entropy, none": lambda x, y: F.binary_cross_entropy_with_logits(
        x, MARKS, reduction="none"
    ),
    "mse_loss": lambda x, y: F.mse_loss(x * y, MARKS) + F.mse_loss(x, MARKS, reduction="sum"),
    "mse_loss, none": lambda x, y: F.mse_loss(x, MARKS, reduction="none"),
    "written over, then read": lambda x, y: _twice(x, y),
}


def _iadd(x, y):
    z = x * 1
    z += y
    z *= y
    z -= x
    return z


def _twice(x, y):
    h = F.linear(x, M)
    return F.gelu(h) + h  # the first reader may not write over h


def perturbed():
    x, y = Key(1).normal((3, 4)).double(), Key(2).normal((3, 4)).double()
    tangents = [Key(3).normal((K, 3, 4)).double(), Key(4).normal((K, 3, 4)).double()]
    return (x, y), tangents


def by_dual(function, values, tangents, record=None):
    """Value and tangents [K, ...]; repeats a pass that must keep an input."""
    record = record or Pass()
    while True:
        try:
            with recording(record):
                duals = [
                    Dual(torch.cat([x[None], t])) for x, t in zip(values, tangents, strict=True)
                ]
                result = function(*duals)
            return result.slices[0], result.slices[1:]
        except ReadAgain as again:
            record.keep.add(again.operator)


def by_torch(function, values, tangents):
    outs = [
        torch.func.jvp(function, tuple(values), tuple(t[k] for t in tangents)) for k in range(K)
    ]
    return outs[0][0], torch.stack([o[1] for o in outs])


@pytest.mark.parametrize("name", CASES)
def test_rule_equals_torch(name):
    values, tangents = perturbed()
    record = Pass()
    value, found = by_dual(CASES[name], values, tangents, record)
    expected_value, expected = by_torch(CASES[name], values, tangents)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert not record.fallbacks, record.fallbacks


def test_every_rule_has_a_case():
    record = Pass()
    values, tangents = perturbed()
    for function in CASES.values():
        by_dual(function, values, tangents, record)
    used = {RULES[f] for f in RULES if name_of(f) in record.used}
    untested = {rule.__name__ for rule in RULES.values() if rule not in used}
    # attention: below; of_values: comparisons and fillers, which have no tangent
    assert untested <= {"attention", "of_values"}


QKV = [(2, 4, 7, 6), (2, 4, 7, 6), (2, 4, 7, 6)]
GROUPED = [(2, 4, 7, 6), (2, 2, 9, 6), (2, 2, 9, 5)]


def seen(rows, columns):
    mask = Key(5).uniform((2, 1, rows, columns)) < 0.6
    mask[:, :, 0] = False  # a row that sees nothing
    return mask


@pytest.mark.parametrize("scores", [2**16, 20, 7])
@pytest.mark.parametrize("perturb", ["qkv", "q", "k", "v", "kv"])
@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (QKV, {}),
        (QKV, {"is_causal": True}),
        (QKV, {"attn_mask": seen(7, 7), "scale": 0.3}),
        (QKV, {"attn_mask": torch.where(seen(7, 7), 0.0, -1e4).double()}),
        (QKV, {"attn_mask": seen(7, 7)[:1, 0]}),
        (GROUPED, {"enable_gqa": True}),
        (GROUPED, {"enable_gqa": True, "is_causal": True}),
        (GROUPED, {"enable_gqa": True, "attn_mask": seen(7, 9)}),
        ([(3, 5, 4), (3, 6, 4), (3, 6, 4)], {}),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_attention_in_blocks_of_any_size(monkeypatch, scores, perturb, shapes, options):
    monkeypatch.setattr(attention, "SCORES", scores)
    values = [Key(20 + i).normal(shape).double() for i, shape in enumerate(shapes)]
    chosen = ["qkv".index(c) for c in perturb]
    tangents = [Key(30 + i).normal((K, *shapes[i])).double() for i in chosen]

    def function(*xs):
        given = list(values)
        for i, x in zip(chosen, xs, strict=True):
            given[i] = x
        return F.scaled_dot_product_attention(*given, **options)

    moving = [values[i] for i in chosen]
    value, found = by_dual(function, moving, tangents)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected_value, expected = by_torch(function, moving, tangents)
    torch.testing.assert_close(value, expected_value, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_an_operator_without_a_rule_falls_back_and_is_counted():
    values, tangents = perturbed()
    record = Pass()

    def function(x, y):
        return F.softplus(x) * torch.logcumsumexp(y, 0)

    found = by_dual(function, values, tangents, record)
    torch.testing.assert_close(found, by_torch(function, values, tangents))
    assert record.fallbacks == {"softplus": 1, "logcumsumexp": 1}


def test_outputs_of_a_fallback_that_are_indices_stay_plain():
    values, tangents = perturbed()
    function = lambda x, y: x.sort(-1).values + x.topk(2).values.sum() * y  # noqa: E731
    found = by_dual(function, values, tangents)
    torch.testing.assert_close(found, by_torch(function, values, tangents))


class Model(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.inner = nn.ModuleList([nn.Identity(), Layer(operator)])

    def forward(self, x):
        return self.inner[1](self.inner[0](x))


class Layer(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        return self.operator(x)


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        (lambda x: x.cauchy_(), "cauchy_"),
        (lambda x: torch._weight_norm_interface(x, x[:, :1])[0], "_weight_norm_interface"),
    ],
)
def test_what_cannot_be_differentiated_is_named_with_its_module(operator, name):
    values, tangents = perturbed()
    with pytest.raises(UserError, match=rf"'{name}' in module 'inner.1'.*engine.kind"):
        by_dual(lambda x, y: Model(operator)(x), values, tangents)


def test_a_plain_tensor_does_not_swallow_a_tangent():
    values, tangents = perturbed()
    with pytest.raises(TypeError, match="tangents"):
        by_dual(lambda x, y: C.clone().add_(x), values, tangents)


def test_the_head_is_differentiated_in_reverse_by_the_way():
    values, tangents = perturbed()
    head = Key(6).normal((2, 4)).double().requires_grad_(True)
    logits = lambda x, y, w: F.linear(torch.tanh(x * y), w)  # noqa: E731
    with recording(Pass()):
        duals = [Dual(torch.cat([x[None], t])) for x, t in zip(values, tangents, strict=True)]
        loss = F.cross_entropy(logits(*duals, head), INDEX % 2)
    (grad,) = torch.autograd.grad(loss.tracked, head)
    leaf = head.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits(*values, leaf), INDEX % 2), leaf)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    _, slopes = by_torch(
        lambda x, y: F.cross_entropy(logits(x, y, head.detach()), INDEX % 2), values, tangents
    )
    torch.testing.assert_close(loss.slices[1:], slopes, rtol=1e-11, atol=1e-12)
    assert not loss.slices.requires_grad


def test_metadata_is_that_of_the_value():
    (x, _), (t, _) = perturbed()
    dual = Dual(torch.cat([x[None], t]).transpose(1, 2))
    assert dual.shape == (4, 3) and dual.size(-1) == 3 and dual.ndim == 2 and len(dual) == 4
    assert dual.dtype == torch.float64 and dual.device.type == "cpu" and not dual.requires_grad
    assert not dual.is_contiguous() and dual.stride() == (1, 4) and dual.numel() == 12
    assert METADATA.isdisjoint(RULES)
