"""Memory that a long notebook no longer needs."""

import ctypes
import ctypes.util
import gc


def release() -> None:
    """Give memory that nothing uses any more back to the system.

    Models hold reference cycles, and the C library keeps what was freed for later use; glibc can be asked to let go of
    it. Elsewhere only the cycles are collected.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
