"""The course's convolutional net."""

from typing import Any

from xpnn.arguments import check_flag, check_whole
from xpnn.backend import Backend, Shape
from xpnn.layers import Affine, BatchNorm, Conv, MaxPool, ReLU, Sequential
from xpnn.layers.initializers import kaiming, normal
from xpnn.layers.standardize import Standardization, standardizing
from xpnn.models.fully_connected import CourseModel
from xpnn.random import Generator


class ThreeLayerConvNet(CourseModel):
    """conv - [spatial batch norm] - relu - 2x2 max pool - affine - [batch norm] - relu - affine - softmax.

    The first relu is done after pooling, which gives the same.

    Parameters
    ----------
    input_dim : (int, int, int)
        Channels, height and width of an image.
    num_filters, filter_size : int
        Of the convolution, which keeps the image's size for an odd `filter_size`.
    hidden_dim, num_classes : int
    weight_scale : float or None
        The standard deviation of the first weights; None for Kaiming's, which fits any width.
    reg : float
        The strength of the L2 penalty on W1, W2 and W3.
    dtype : str or dtype
    use_batchnorm : bool
    backend : str or Backend, optional
    rng : Generator or int, optional
        For the first weights.
    standardize : (mean, std), optional
        Arrays or numbers for a first layer ``(x - mean) / std``, so that the net takes raw images; std may be None.

    Attributes
    ----------
    params : Parameters
        W1 (F, C, k, k), b1, [gamma1, beta1], W2, b2, [gamma2, beta2], W3, b3.
    bn_params : list of dict
        The dict of each batch norm layer, with its running statistics.

    Source: UCLA ECE C147, homework 5.
    """

    def __init__(
        self,
        input_dim: Shape = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float | None = 1e-3,
        reg: float = 0.0,
        dtype: Any = "float32",
        use_batchnorm: bool = False,
        *,
        backend: str | Backend | None = None,
        rng: Generator | int | None = None,
        standardize: Standardization | None = None,
    ) -> None:
        check_whole("ThreeLayerConvNet", "filter_size", filter_size)
        self.use_batchnorm = check_flag("ThreeLayerConvNet", "use_batchnorm", use_batchnorm)
        init = kaiming if weight_scale is None else normal(weight_scale)
        layers = standardizing(standardize)
        layers.append(Conv(num_filters, filter_size, pad=(filter_size - 1) // 2, init=init, name="conv1"))
        if use_batchnorm:
            layers.append(BatchNorm(name="batchnorm1"))
        # ReLU keeps the order of numbers, and has a quarter of them left.
        layers += [MaxPool(2), ReLU(), Affine(hidden_dim, init, name="affine2")]
        if use_batchnorm:
            layers.append(BatchNorm(name="batchnorm2"))
        layers += [ReLU(), Affine(num_classes, init, name="affine3")]
        self.bn_params = [layer.bn_param for layer in layers if isinstance(layer, BatchNorm)]
        super().__init__(Sequential(*layers), input_dim, reg=reg, dtype=dtype, backend=backend, rng=rng)
