"""Names for containers and services that were given none. Pure but for the random source."""

import random
from collections.abc import Container

_LEFT = (
    "able brave calm clear clever crisp daring eager early fair fast fleet gentle glad golden "
    "happy jolly keen kind lively lucky merry nimble noble plain proud quick quiet ready "
    "sharp silver smart steady still stout swift tidy vivid warm wise"
)
_RIGHT = (
    "anchovy barracuda bass bream carp catfish char chub clam cod conger crab dace dolphin "
    "eel flounder gar goby grouper gurnard haddock hake halibut herring lamprey lobster "
    "mackerel marlin minnow mullet otter oyster perch pike plaice pollock ray roach salmon "
    "sardine seal shad shark shrimp smelt snapper sole sprat squid sturgeon tarpon tench "
    "trout tuna turbot urchin wahoo walrus whale whiting wrasse"
)


def new(rng: random.Random, taken: Container[str], joined_by: str = "_") -> str:
    """A name that is not `taken`: swift_herring, and with a number once that gets hard."""
    for attempt in range(1000):
        name = f"{rng.choice(_LEFT.split())}{joined_by}{rng.choice(_RIGHT.split())}"
        if attempt > 5:
            name += str(rng.randrange(10 ** (attempt // 5)))
        if name not in taken:
            return name
    raise AssertionError("a thousand random names were all taken")
