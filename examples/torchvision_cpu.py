"""Import torchvision beside a PyTorch that it was not built for.

torchvision's wheel for CUDA, beside a PyTorch for the CPU alone, fails to load its compiled operators, and
``import torchvision`` then raises ``RuntimeError: operator torchvision::nms does not exist``: its Python code registers
shape functions for operators that were never declared. The data sets and transforms need none of them. Declaring the
two missing operators by hand lets the import succeed; where torchvision imports by itself nothing is touched.

    from torchvision_cpu import torchvision

    torchvision.datasets.MNIST("data", download=True)
"""

import torch

__all__ = ["torchvision"]

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    # The declarations live as long as this object.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
