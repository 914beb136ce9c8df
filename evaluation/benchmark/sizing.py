"""How many replicas, cores and pods a rate of pictures takes, by what a picture was measured to cost."""

import math
from dataclasses import dataclass

_HOURS_A_MONTH = 730


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor time of one picture, in ms."""

    detecting_ms: float
    """Decoding and detecting: the limit's."""
    serving_ms: float
    """All the rest: receiving, keeping, answering, Ray."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a rate takes."""

    detector_replicas: int
    ingress_replicas: int
    cores: int
    pods: int
    network_bytes_per_s: float
    """Through the ingresses alone, both ways."""

    def monthly_price(self, core_hour_price: float) -> float:
        """Of its cores, all day and night, in the currency of the price."""
        return self.cores * _HOURS_A_MONTH * core_hour_price


def size(
    pictures_per_s: float,
    costs: Costs,
    picture_bytes: float,
    utilisation: float = 0.6,
    pod_cores: int = 8,
) -> Size:
    """
    Args:
        picture_bytes: Of an upload; it is received once, and sent on once to a detector and once to the store.
        utilisation: Part of each core that is to be busy; at 0.8 some requests already wait for several others.
        pod_cores: Of one pod.
    """
    detectors = math.ceil(pictures_per_s * costs.detecting_ms / 1000 / utilisation)
    # All of serving is counted as the ingress's, whose process has one core at most: Python computes in one thread.
    ingresses = math.ceil(pictures_per_s * costs.serving_ms / 1000 / utilisation)
    cores = detectors + ingresses
    return Size(detectors, ingresses, cores, math.ceil(cores / pod_cores), 3 * picture_bytes * pictures_per_s)
