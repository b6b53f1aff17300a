"""What a forward pass could not do by rule is counted from the engine up to the round's record."""

import torch

from forefed.core.types import Order
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.run.run import round_line
from forefed.run.star import RoundReport
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
