"""Environment variables of Ray workers that run models."""

# By default glibc returns freed memory to the system immediately, and on a CPU the page faults of getting it back cost
# more than the arithmetic. These settings keep freed memory in the process, in huge pages where the kernel has them.
# One arena, since models run outside the main thread.
MALLOC_TUNABLES = (
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=68719476736"
    ":glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=134217728:glibc.malloc.hugetlb=1"
)


def worker_runtime_env(*, use_gpu: bool) -> dict[str, dict[str, str]]:
    """Build the Ray runtime environment of a training worker or an inference engine."""
    return {"env_vars": {} if use_gpu else {"GLIBC_TUNABLES": MALLOC_TUNABLES}}
