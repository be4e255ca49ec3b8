"""Choose an optimizer's setting by cross-validation, with skorch and scikit-learn.

python examples/with_skorch.py
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

import torch_gfo


def build_model() -> nn.Module:
    """Returns a network for 30 features and two classes, with the same initial weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 2))


def classifier(epochs: int = 100) -> Pipeline:
    """Returns a network that is trained by PSO, all data at a time."""
    net = NeuralNetClassifier(
        build_model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch_gfo.PSO,
        lr=1.0,  # skorch always passes one, and its default of 0.01 would make a hundredth of every move
        optimizer__seed=0,
        max_epochs=epochs,
        batch_size=-1,
        train_split=None,
        verbose=0,
    )
    return make_pipeline(StandardScaler(), net)


def data() -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the features (569, 30) of tumours, and whether they are benign."""
    inputs, targets = load_breast_cancer(return_X_y=True)
    return inputs.astype(np.float32), targets


def search(epochs: int = 100) -> GridSearchCV:
    """Tries two sizes of the swarm on three folds, and trains once more with the better one."""
    grid = {"neuralnetclassifier__optimizer__popsize": [8, 32]}
    return GridSearchCV(classifier(epochs), grid, cv=3, scoring="accuracy").fit(*data())


if __name__ == "__main__":
    found = search()
    print(f"{found.best_params_}: accuracy {found.best_score_:.1%}")
