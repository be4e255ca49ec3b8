"""A simulator in plain Python: a ball that is thrown at a hoop in a wind. Nothing in it has a gradient."""

import math

HOOP = (20.0, 6.0, 3.0)  # metres ahead, to the left, up
WIND = (-4.0, 3.0, 0.0)  # metres a second
GRAVITY = (0.0, 0.0, -9.81)
DRAG = 0.02  # a metre


def miss(throw: list[float], time_step: float = 1e-3) -> float:
    """Returns by how many metres the ball misses the hoop.

    Args:
        throw: Speed in metres a second, and two angles in radians: above the ground, and to the left.
        time_step: Of the simulation, in seconds.
    """
    speed, up, left = throw
    position = [0.0, 0.0, 2.0]
    velocity = [speed * math.cos(up) * math.cos(left), speed * math.cos(up) * math.sin(left), speed * math.sin(up)]
    nearest = math.dist(position, HOOP)
    while position[2] > 0:
        air = [v - w for v, w in zip(velocity, WIND, strict=True)]
        drag = DRAG * math.hypot(*air)
        velocity = [v + time_step * (g - drag * a) for v, g, a in zip(velocity, GRAVITY, air, strict=True)]
        position = [x + time_step * v for x, v in zip(position, velocity, strict=True)]
        nearest = min(nearest, math.dist(position, HOOP))
    return nearest
