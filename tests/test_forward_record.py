"""What a forward pass could not do by rule is counted from the engine up to the round's record."""

import torch

from forefed.core.types import Order
from forefed.federation.report import RoundReport
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.run import configure
from forefed.run.lines import notices, round_line
from forefed.wire import Dense
from toy import HEAD, ToyLoss, toy_clients, toy_params


class WithoutARule(ToyLoss):
    """The toy loss through an operator that no rule is written for."""

    def __call__(self, params, batch):
        loss = super().__call__(params, batch)
        return torch.nn.functional.softplus(loss)


def test_fallbacks_reach_the_record():
    params = toy_params()
    loss = WithoutARule()
    trainer = Trainer(
        LocalTraining(batch_size=4),
        Forward(micro_batch=2),
        Dense(),
        TaskView(loss, loss, HEAD),
    )
    order = Order(1, 1, 1, tuple(params), params)
    update, _ = trainer(order, toy_clients()[1], {})
    assert update.metrics["fallback/softplus"] == 7  # batches of 4, 4, 4 and 1
    line = round_line(RoundReport(1, (1,), (update, update), (), 0, 0, {}), {})
    assert line["fallbacks"] == {"softplus": 14}


def test_a_run_says_what_went_wrong_in_a_round():
    line = {"steps": 6, "skipped": 6, "fallbacks": {"softplus": 2}}
    low, wide = (configure(sets=[f"model.dtype={d}"]) for d in ("float16", "float32"))
    assert "bfloat16" in notices(line, low, "")[0] and "softplus" in notices(line, low, "")[1]
    assert "optimiser.lr" in notices(line, wide, "")[0]
    fine = {"steps": 6, "skipped": 5, "fallbacks": {}}
    assert notices(fine, low, "") == []
    assert notices(fine, low, "500 MB are full") == [
        "the prefix cache keeps no more examples: 500 MB are full"
    ]
