"""The short examples, in their small modes."""

import math
from typing import Any

import accuracy_and_f1
import binary_weights
import hybrid
import pytest
import simulator
import spiking
import swap
import thrown_ball
import torch


def test_the_swapped_line_trains() -> None:
    accuracies = swap.main(epochs=1)
    assert accuracies["before: Adam"] > 0.5  # chance is 0.1
    assert accuracies["after: EGGROLL"] > 0.4
    assert accuracies["after: PSO"] > 0.2


def test_accuracy_and_f1_train() -> None:
    cross_entropy, accuracy, f1_of_cross_entropy, f1 = accuracy_and_f1.main(evaluations=2000).values()
    assert cross_entropy > 0.5
    assert accuracy > 0.3  # chance is 0.1
    assert f1_of_cross_entropy > 0.3  # calling everything an eight: 0.18
    assert f1 > 0.4


@pytest.mark.parametrize("example", [spiking, binary_weights])
def test_a_network_without_a_gradient_trains(example: Any) -> None:
    assert example.main(evaluations=1000) > 0.3


def test_a_neuron_fires_when_its_potential_reaches_1_and_starts_again() -> None:
    currents = torch.tensor([0.09, 0.35, 0.6, 1.0]).expand(8, -1)  # 0.09 leaks as fast as it adds up, below 1
    spikes = spiking.fire(currents).int().T.tolist()
    assert spikes == [[0] * 8, [0, 0, 0, 1] * 2, [0, 1] * 4, [1] * 8]


def test_the_size_of_a_binary_weight_does_not_matter() -> None:
    layer, inputs = binary_weights.BinaryLinear(16, 4), torch.ones(2, 16)
    before = layer(inputs)
    with torch.no_grad():
        layer.weight.mul_(3)
    assert torch.equal(layer(inputs), before)
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.allclose(layer(inputs) - layer.bias, layer.bias - before)


def test_without_drag_the_ball_flies_along_a_parabola(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thrown_ball, "DRAG", 0.0)
    ahead, left, up = thrown_ball.HOOP
    distance, rise, angle = math.hypot(ahead, left), up - 2, 0.8
    speed = distance / math.cos(angle) * math.sqrt(9.81 / (2 * (distance * math.tan(angle) - rise)))
    assert thrown_ball.miss([speed, angle, math.atan2(left, ahead)]) < 0.02
    assert thrown_ball.miss([speed + 1, angle, math.atan2(left, ahead)]) > 1


def test_the_hoop_is_hit_alike_in_one_process_and_in_two() -> None:
    found = simulator.search(map, time_step=5e-3)
    assert found.missed < 0.01
    assert thrown_ball.miss(found.throw, time_step=5e-3) == found.missed
    assert simulator.search_in_processes(time_step=5e-3) == found


def test_either_optimizer_goes_on_from_the_other() -> None:
    scores = hybrid.main(seeds=1, evaluations=1500)
    noise = 0.01
    assert scores["GA, then Adam"] < noise < scores["GA"] < scores["Adam"]
    assert scores["after"] > scores["before"] + 0.02
