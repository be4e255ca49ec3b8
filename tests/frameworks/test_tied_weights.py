"""Weights that two layers share stay one tensor, and one coordinate of the search for each of its numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_gfo
from tests.frameworks.tasks import each_way
from tests.helpers import Task, seeded


class Language(nn.Module):
    """Predicts a word from the one before it; the output layer has the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.hidden = nn.Linear(6, 6)
        self.output = nn.Linear(6, 4, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        result: Tensor = self.output(self.hidden(self.embedding(words)).tanh())
        return result


def language() -> Task:
    with seeded():
        words = torch.arange(4).repeat(1, 4)
        return Task(Language(), words, (words + 1) % 4)


BUDGETS = {"GA": 80, "CMAES": 120, "EGGROLL": 60, "OpenAIES": 60, "PSO": 80, "SPSA": 200, "MeZO": 400}


@pytest.mark.parametrize(("name", "evaluation"), each_way(BUDGETS))
def test_tied_weights(name: str, evaluation: str) -> None:
    task = language()
    model, pointer = task.model, task.model.embedding.weight.data_ptr()
    optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, evaluation=evaluation)
    assert optimizer.ask().shape[1] == 4 * 6 + 6 * 6 + 6
    task.train(optimizer, BUDGETS[name])
    assert task.total() < 0.4  # from about log(4) = 1.39
    assert model.output.weight is model.embedding.weight
    assert model.output.weight.data_ptr() == pointer
    assert model.state_dict()["output.weight"].data_ptr() == pointer
