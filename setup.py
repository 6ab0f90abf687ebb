"""The one thing of the build that pyproject.toml cannot say: the kernels, where they can be built.

A plain shared library of C, loaded with ctypes: no header of Python or torch is needed. Without a
compiler the package is installed all the same and computes with torch alone.
"""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("src/ontogeny/model/kernels")

setup(
    ext_modules=[
        Extension(
            "ontogeny.model.kernels._kernels",
            sources=sorted(path.as_posix() for path in KERNELS.glob("*.c")),
            depends=sorted(path.as_posix() for path in KERNELS.glob("*.h")),
            # No product is fused with a sum unless the source says so: the bits are the source's.
            extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread", "-lm"],
            optional=True,
        )
    ]
)
