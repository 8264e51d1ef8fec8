"""A process whose `flock` fails as on a file system without locks: the kernel answers so, by a filter of its calls."""

from __future__ import annotations

import ctypes
import platform
import struct

_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: a word, a jump, the answer
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
FLOCK = {"x86_64": 73, "aarch64": 32}.get(platform.machine())


def forbid_flock(number: int) -> None:
    """Have every `flock` of this process and its children fail with error `number` from now on. Linux alone."""
    assert FLOCK is not None
    program = [(_LOAD, 0, 0, 0), (_IF_EQUAL, 0, 1, FLOCK), (_RETURN, 0, 0, _ERROR | number), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.c_char_p(head), 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")
