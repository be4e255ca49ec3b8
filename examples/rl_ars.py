"""Train a linear policy on a Gymnasium task with augmented random search: no gradient, and no closure either.

    python examples/rl_ars.py                                         # CartPole-v1, some seconds
    python examples/rl_ars.py --env Swimmer-v5 --steps 500000 --checkpoint swimmer.pt --plot swimmer.png  # 2 minutes
    python examples/rl_ars.py --resume swimmer.pt --steps 1000000

The loop is in ``train``: ``ask()`` gives policies, a simulator plays an episode with each, ``tell()`` takes what they
earned. Observations are normalised by their running mean and standard deviation, renewed between steps of the search:
V2 of https://arxiv.org/abs/1803.07055. Needs ``pip install gymnasium``, or ``gymnasium[mujoco]`` for Swimmer.
"""

import argparse
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

import torch_gfo

TEST_SEEDS = 1_000_000  # the episodes of the test begin where none of the training did


@dataclass(frozen=True)
class Settings:
    """What a training depends on. The defaults do well on CartPole and Swimmer."""

    env: str = "CartPole-v1"
    steps: int = 50_000  # of the simulator, at most
    n_directions: int = 4
    sigma: float = 0.05
    lr: float = 0.4  # in units of sigma
    seed: int = 0


class Observations:
    """Running mean and standard deviation of what the policies have observed."""

    def __init__(self, size: int) -> None:
        """Begins with no observation."""
        self.count, self.sum, self.squares = 0, np.zeros(size), np.zeros(size)

    def add(self, observed: NDArray[np.float64]) -> None:
        """Takes in observations ``(n, size)``."""
        self.count += len(observed)
        self.sum += observed.sum(0)
        self.squares += (observed**2).sum(0)

    def normalisation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the mean and the standard deviation: infinite, so that it counts for nothing, where it is zero."""
        if self.count < 2:
            return np.zeros_like(self.sum), np.ones_like(self.sum)
        mean = self.sum / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return mean, np.where(std < 1e-7, np.inf, std)


class Run:
    """A policy in training; can be saved after any step, and resumed exactly."""

    def __init__(self, settings: Settings) -> None:
        """Makes the simulator, the policy and the optimizer."""
        self.settings = settings
        self.env = gymnasium.make(settings.env)
        n_inputs, space = gymnasium.spaces.flatdim(self.env.observation_space), self.env.action_space
        self.is_discrete = isinstance(space, gymnasium.spaces.Discrete)
        self.weight = torch.nn.Parameter(torch.zeros(gymnasium.spaces.flatdim(space), n_inputs))
        self.optimizer = torch_gfo.ARS(
            [self.weight],
            lr=settings.lr,
            sigma=settings.sigma,
            n_directions=settings.n_directions,
            maximize=True,
            seed=settings.seed,
        )
        self.observations = Observations(n_inputs)
        self.steps = self.iterations = self.costliest = 0
        self.curve: list[tuple[int, float]] = []  # simulated steps, and the model's return

    def play(self, weight: torch.Tensor, seed: int) -> tuple[float, NDArray[np.float64]]:
        """Plays an episode and returns its return, and what was observed."""
        mean, std = self.observations.normalisation()
        policy = weight.detach().view_as(self.weight).double().numpy() / std
        observation, _ = self.env.reset(seed=seed)
        observed, total, done = [], 0.0, False
        while not done:
            observed.append(np.asarray(observation, np.float64).ravel())
            action = policy @ (observed[-1] - mean)
            choice = action.argmax() if self.is_discrete else self._within_limits(action)
            observation, reward, terminated, truncated, _ = self.env.step(choice)
            total, done = total + float(reward), terminated or truncated
        return total, np.stack(observed)

    def _within_limits(self, action: NDArray[np.float64]) -> NDArray[np.float32]:
        space: Any = self.env.action_space
        return np.clip(action, space.low, space.high).astype(space.dtype)

    def test(self, episodes: int = 100) -> float:
        """Returns the mean return of the model in episodes that the training has not seen."""
        return float(np.mean([self.play(self.weight, TEST_SEEDS + i)[0] for i in range(episodes)]))

    def state_dict(self) -> dict[str, Any]:
        """Returns what ``load_state_dict`` needs to continue from here."""
        seen = self.observations
        return {
            "settings": asdict(self.settings),
            "weight": self.weight.detach(),
            "optimizer": self.optimizer.state_dict(),
            "observations": (seen.count, torch.from_numpy(seen.sum), torch.from_numpy(seen.squares)),
            "counters": (self.steps, self.iterations, self.costliest),
            "curve": self.curve,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where ``state`` was taken."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])
        count, total, squares = state["observations"]
        seen = self.observations
        seen.count, seen.sum, seen.squares = count, total.numpy().copy(), squares.numpy().copy()
        self.steps, self.iterations, self.costliest = state["counters"]
        self.curve = list(state["curve"])


def train(run: Run, checkpoint: Path | None = None) -> None:
    """Trains until another step of the search could exceed the allowed steps of the simulator."""
    while run.steps + run.costliest <= run.settings.steps:
        before, observed, told = run.steps, [], 0
        while told < 1 + 2 * run.settings.n_directions:  # the model, then both ends of each direction
            policies = run.optimizer.ask()
            episodes = [run.play(policy, seed=run.iterations) for policy in policies]  # the same start for all
            run.optimizer.tell([total for total, _ in episodes])
            observed += [states for _, states in episodes]
            if told == 0:
                run.curve.append((run.steps, episodes[0][0]))
            told += len(episodes)
        run.observations.add(np.concatenate(observed))
        run.iterations += 1
        run.steps += sum(map(len, observed))
        run.costliest = max(run.costliest, run.steps - before)
        if checkpoint:
            save(run, checkpoint)
        print(f"\r{run.steps:9,} steps, return {run.curve[-1][1]:8.1f}", end="", file=sys.stderr)
    print(file=sys.stderr)


def save(run: Run, path: Path) -> None:
    """Writes a checkpoint; an earlier one is replaced when the new one is complete."""
    part = path.with_name(path.name + ".part")
    torch.save(run.state_dict(), part)
    os.replace(part, path)


def draw(run: Run, path: Path) -> None:
    """Draws the return of the model against the steps of the simulator."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*run.curve, strict=True))
    axes.set(xlabel="steps of the simulator", ylabel="return of an episode", title=f"ARS on {run.settings.env}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> float:
    """Runs the command line; returns the mean return of the test."""
    parser = argparse.ArgumentParser(prog="rl_ars.py", description="Train a linear policy without gradients.")
    parser.add_argument("--env", help=f"any task of Gymnasium (default: {Settings.env})")
    parser.add_argument("--steps", type=int, help=f"of the simulator, at most (default: {Settings.steps})")
    parser.add_argument("--n-directions", type=int, help="of ARS")
    parser.add_argument("--sigma", type=float, help="of ARS")
    parser.add_argument("--lr", type=float, help="of ARS, in units of sigma")
    parser.add_argument("--seed", type=int, help=f"(default: {Settings.seed})")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="save the training here after every step")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="continue the training saved here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the learning curve")
    args = parser.parse_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None and name in asdict(Settings())}

    saved = torch.load(args.resume, weights_only=True) if args.resume else None
    if saved and given.keys() - {"steps"}:
        parser.error("a resumed training keeps its settings; only --steps may change")
    settings = Settings(**saved["settings"]) if saved else Settings()
    run = Run(replace(settings, **given))
    if saved:
        run.load_state_dict(saved)

    torch.set_num_threads(1)
    train(run, args.checkpoint or args.resume)
    score = run.test()
    print(f"{run.settings.env}: mean return {score:.1f} in 100 test episodes after {run.steps:,} steps")
    if args.plot:
        draw(run, args.plot)
    return score


if __name__ == "__main__":
    main()
