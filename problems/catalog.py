"""The problems of the paper's Table 1 and Appendix E.2, by name."""

from functools import partial

from . import networks
from .problem import Problem

_wider = partial(networks.cnn, filters=(32, 64))
_resnet28 = partial(networks.resnet, depth=28)
_resnet52 = partial(networks.resnet, depth=52)

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem("mnist_cnn", "mnist", networks.cnn),
        Problem("mnist_mlp", "mnist", networks.mlp),
        Problem("mnist_wider", "mnist", _wider),
        Problem("mnist_deeper", "mnist", networks.deeper),
        Problem("mnist_deeper_strided", "mnist", networks.deeper_strided),
        Problem("fmnist_cnn", "fashion_mnist", networks.cnn),
        Problem("svhn_cnn", "svhn_cropped", networks.cnn),
        Problem("cifar10_wider", "cifar10", _wider),
        Problem("cifar10_resnet28", "cifar10", _resnet28),
        Problem("mnist_small_batch", "mnist", networks.cnn, batch_size=32),
        Problem("mnist_dp", "mnist", networks.cnn, private=True),
        Problem("kmnist_cnn", "kmnist", networks.cnn),
        Problem("kmnist_dp", "kmnist", networks.cnn, private=True),
        Problem("cifar10_resnet52", "cifar10", _resnet52),
        Problem("cifar100_resnet52", "cifar100", _resnet52),
        Problem("digits_cnn", "digits", networks.cnn),
    )
}


def get_problem(name: str) -> Problem:
    """The problem of that name.

    Raises:
        ValueError: There is none; the message lists the names there are.
    """
    try:
        return PROBLEMS[name]
    except KeyError:
        names = ", ".join(PROBLEMS)
        raise ValueError(
            f"No problem has that name; there are {names}. Received: {name!r}"
        ) from None
