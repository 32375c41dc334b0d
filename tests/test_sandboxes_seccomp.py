"""The system call filter, run on a small machine of our own: both architectures, every call."""

import errno
import re
import struct
from pathlib import Path

import pytest

from jobs.sandboxes import seccomp

KILLED, ALLOWED = "killed", "allowed"
MACHINES = ("x86_64", "aarch64")


def judge(
    machine: str, number: int, *arguments: int, arch: int | None = None, allow_memfd: bool = True
) -> str:
    """What the filter answers to one call, as the kernel's BPF machine would find out."""
    program = seccomp.filter_program(machine, allow_memfd=allow_memfd)
    code = list(struct.iter_unpack("=HBBI", program))
    own = seccomp.ARCHITECTURES[machine][1]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, own if arch is None else arch, 0, *padded)
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        if operation == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, operand)
            continue
        if operation == seccomp.RETURN:
            if operand == seccomp.ALLOW:
                return ALLOWED
            if operand == seccomp.KILL_PROCESS:
                return KILLED
            return errno.errorcode[operand & 0xFFFF]
        holds = {
            seccomp.JUMP_EQUAL: accumulator == operand,
            seccomp.JUMP_AT_LEAST: accumulator >= operand,
            seccomp.JUMP_ANY_BIT: bool(accumulator & operand),
        }[operation]
        position += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_refused_and_ordinary_ones_are_not(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]
    listed = {
        name: numbers[column] for name, numbers in seccomp.NUMBERS.items() if numbers[column] is not None
    }

    assert {judge(machine, number) for number in listed.values() if number is not None} == {"EPERM"}
    ordinary = {"x86_64": [0, 1, 2, 9, 57, 59, 202, 231, 257], "aarch64": [56, 63, 64, 93, 94, 98, 221, 222]}
    assert {judge(machine, number) for number in ordinary[machine]} == {ALLOWED}


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_a_call_is_both_useful_and_dangerous(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]
    clone, socket, ioctl = seccomp.CLONE[column], seccomp.SOCKET[column], seccomp.IOCTL[column]
    prlimit = seccomp.OWN_PROCESS_ONLY["prlimit64"][column]

    assert judge(machine, clone, 0x3D0F00) == ALLOWED, "a thread"
    assert judge(machine, clone, 0x11) == ALLOWED, "a process"
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(machine, clone, bit | 0x11) == "EPERM"
    assert judge(machine, seccomp.CLONE3[column]) == "ENOSYS"
    assert {judge(machine, socket, family) for family in (1, 2, 10)} == {ALLOWED}
    assert {judge(machine, socket, family) for family in (0, 3, 16, 17, 38, 40, 44)} == {"EPERM"}
    assert judge(machine, ioctl, 0, 0x5401) == ALLOWED
    assert {judge(machine, ioctl, 0, request) for request in (0x5412, 0x541C, 0x5412 | 1 << 32)} == {"EPERM"}
    assert (judge(machine, prlimit, 0), judge(machine, prlimit, 1)) == (ALLOWED, "EPERM")


@pytest.mark.parametrize("machine", MACHINES)
def test_priorities_of_others_cannot_be_set(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]
    for call in (seccomp.SETPRIORITY[column], seccomp.IOPRIO_SET[column]):
        assert judge(machine, call, 0, 0) == ALLOWED
        assert judge(machine, call, 0, 1) == "EPERM"
        assert judge(machine, call, 2, 0) == "EPERM"


@pytest.mark.parametrize("machine", MACHINES)
def test_memfd_goes_where_nothing_counts_it(machine: str) -> None:
    number = seccomp.MEMFD_CREATE[seccomp.ARCHITECTURES[machine][0]]

    assert judge(machine, number) == ALLOWED
    assert judge(machine, number, allow_memfd=False) == "EPERM"


def test_other_call_tables_do_not_slip_past() -> None:
    assert judge("x86_64", 39, arch=0x4000_0003) == KILLED, "32-bit calls"
    assert judge("x86_64", 0x4000_0000 | 39) == "ENOSYS", "x32"
    assert judge("aarch64", 39, arch=0x4000_0028) == KILLED, "32-bit arm"


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(KeyError):
        seccomp.filter_program("riscv64", allow_memfd=True)


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_the_kernel_s(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} comes with linux-libc-dev")
    real = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", Path(header).read_text(), re.MULTILINE))
    ours = {**seccomp.NUMBERS, **seccomp.OWN_PROCESS_ONLY, "clone": seccomp.CLONE, "clone3": seccomp.CLONE3}
    ours |= {"ioctl": seccomp.IOCTL, "socket": seccomp.SOCKET, "socketpair": seccomp.SOCKETPAIR}
    ours |= {
        "setpriority": seccomp.SETPRIORITY,
        "ioprio_set": seccomp.IOPRIO_SET,
        "memfd_create": seccomp.MEMFD_CREATE,
    }

    known = {name: numbers[column] for name, numbers in ours.items() if name in real}
    assert len(known) > 80
    assert known == {name: int(real[name]) for name in known}
