"""Which numbers the cluster's networks and nodes have."""

from manager.allocator.rotation import Rotation

VNI_FIRST = 4096  # below are the numbers that other VXLANs of a site tend to use
VNI_LAST = (1 << 24) - 1
NODE_INDEX_FIRST = 1
NODE_INDEX_LAST = 4094  # a node pool of /10 has 4096 subnets of /22; the outer two stay unused


def vnis() -> Rotation:
    return Rotation(VNI_FIRST, VNI_LAST)


def node_indexes() -> Rotation:
    return Rotation(NODE_INDEX_FIRST, NODE_INDEX_LAST)
