"""pure: the compilers that torch calls at run time, whether this machine has them, and what a failure to run means."""

import os
import shutil

from instruct_ray.config.train import TrainConfig
from instruct_ray.errors import one_line

MAX_CHARACTERS = 300
INSTALL_COMPILERS = (
    "install a C and a C++ compiler on every node (apt-get install -y gcc g++), or set CC and CXX to theirs"
)
# Words in the error of a library (in lower case) -> what to do. The first entry that occurs applies.
ADVICE = {
    "compiler": INSTALL_COMPILERS,
    "python.h": "install the headers of Python on every node (apt-get install -y python3-dev)",
    "no space left on device": (
        "free some space in the folder of compiled kernels (TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR, or /tmp)"
    ),
}
OTHER_ADVICE = "mend that and run the command again, or set train.packed=false to train with padding, which is slower"


def missing_compilers(train: TrainConfig) -> list[str]:
    """The compilers that a worker needs at run time and this machine lacks: "C", "C++", both or none.

    On a GPU Triton compiles the launcher of each kernel with a C compiler; `train.compile` also needs a C++ compiler.
    They are looked for as `triton.runtime.build` and `torch._inductor.cpp_builder` do.
    """
    missing = []
    if train.use_gpu and not _find_c_compiler():
        missing.append("C")
    if train.compile and not shutil.which(os.environ.get("CXX", "g++")):
        missing.append("C++")
    return missing


def explain_failure(error: Exception) -> str:
    """What failed, in one line, and what to do about it."""
    # Above the library's own error, torch's compiler gives advice on how to debug it.
    text = one_line(error, MAX_CHARACTERS)
    searched = " ".join(str(error).lower().split())
    advice = next((advice for words, advice in ADVICE.items() if words in searched), OTHER_ADVICE)
    return f"{text}; {advice}"


def _find_c_compiler() -> str | None:
    if "CC" in os.environ:
        return shutil.which(os.environ["CC"])
    return shutil.which("gcc") or shutil.which("clang")
