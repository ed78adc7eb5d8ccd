"""Capacity: whether a run fits the memory, the disks and the nodes of a cluster, checked before it is trained."""
