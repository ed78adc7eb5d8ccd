"""Environment variables of Ray workers that compute."""

# glibc returns freed blocks to the system at once, and on a CPU the page faults of getting them back cost more than the
# arithmetic in between: with these a worker keeps what it freed, in huge pages where the kernel gives them on request.
# One arena, since models run outside the main thread.
MALLOC_TUNABLES = (
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=68719476736"
    ":glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=134217728:glibc.malloc.hugetlb=1"
)


def worker_runtime_env(*, use_gpu: bool) -> dict[str, dict[str, str]]:
    """The runtime environment of a training worker or an engine."""
    return {"env_vars": {} if use_gpu else {"GLIBC_TUNABLES": MALLOC_TUNABLES}}
