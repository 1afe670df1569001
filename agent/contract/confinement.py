"""No network for a process and all its children, whoever starts it: a seccomp filter, as seccomp(2) has it.

The systemd unit forbids the same (RestrictAddressFamilies=); this also holds for `nslora-agent run` in a terminal, and
where the whole service is confined less.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct

ALLOWED_FAMILIES = (1, 16)
"""AF_UNIX, and AF_NETLINK, over which GPU drivers and libraries ask the kernel; every other family is refused."""
IO_URING_SETUP = 425
"""Refused too: its rings open sockets without the system call."""
ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""By the name of `uname -m`: the architecture as the kernel's audit numbers it, and the number of socket()."""
X32 = 0x40000000
"""x86_64 has a second set of numbers from here on."""

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of the filter (BPF)."""
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Places in what the filter is given (struct seccomp_data)."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


def forbid_network() -> bool:
    """Forbid this process and what it starts to open sockets that lead out of the box; False where that cannot be.

    PermissionError meets whoever tries. Not reversible. Machines other than x86_64 and aarch64, and kernels without
    seccomp, are left as they are.
    """
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    code = _program(*known)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(code) // 8, ctypes.addressof(buffer))
    pr_set_no_new_privs, pr_set_seccomp, mode_filter = 38, 22, 2
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return not (prctl(pr_set_no_new_privs, 1, 0, 0, 0) or prctl(pr_set_seccomp, mode_filter, program))


def _program(architecture: int, socket_number: int) -> bytes:
    """The filter: another architecture's system calls and sockets of other families are refused."""
    families = [(EQUAL, len(ALLOWED_FAMILIES) - place, 0, family) for place, family in enumerate(ALLOWED_FAMILIES)]
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, len(families) + 3, 0, X32),
        (EQUAL, len(families) + 2, 0, IO_URING_SETUP),
        (EQUAL, 0, len(families) + 2, socket_number),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        *families,
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def is_confined() -> bool:
    """Try to open a socket of the internet; True if this process is kept from it."""
    try:
        socket.socket(socket.AF_INET).close()
    except PermissionError:
        return True
    return False
