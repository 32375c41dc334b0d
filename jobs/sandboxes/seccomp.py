"""The system calls a sandbox may not make, as the classic BPF program that bubblewrap loads.

A deny list that answers EPERM: a library that probes for a feature sees "not permitted" and goes on, where a killed
process would look like a crash. It stands behind the namespaces, not instead of them: most of these calls fail
anyway without capabilities, and the filter keeps a kernel bug in one of them out of reach.
"""

import errno
import struct

# name: (x86-64, arm64); None where the architecture has no such call. From the kernel's unistd tables.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other namespaces
    "unshare": (272, 97),
    "setns": (308, 268),
    # the mount family, old and new
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # kernel keyrings are not namespaced by uid alone
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large kernel surfaces with a history of holes
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_secret": (447, 447),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # System V IPC keeps memory that no process maps
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    # identities
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "personality": (135, 92),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "query_module": (178, None),
    "get_kernel_syms": (177, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}

# Calls that are fine with some arguments; `_conditions` says which.
CLONE, CLONE3 = (56, 220), (435, 435)
IOCTL, SOCKET, SOCKETPAIR = (16, 29), (41, 198), (53, 199)
MEMFD_CREATE = (319, 279)
SETPRIORITY, IOPRIO_SET = (141, 140), (251, 30)
# The first argument names a process, and 0 is the caller. Init has the same uid as the program, so without this the
# program could starve or cripple the process that watches over it.
OWN_PROCESS_ONLY = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
}

CLONE_NEW_NAMESPACE = 0x7E02_0000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10  # not vsock (40): it crosses network namespaces
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # typing into, or pasting from, somebody's terminal
X32_BIT = 0x4000_0000

# struct seccomp_data: u32 nr; u32 arch; u64 ip; u64 args[6]
NR_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000

ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}  # column above, AUDIT_ARCH

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def filter_program(machine: str, *, allow_memfd: bool) -> bytes:
    """The filter for `machine` (os.uname().machine) as an array of struct sock_filter.

    `allow_memfd=False` where no cgroup counts memory: a memfd holds pages that no process's size shows.
    Raises KeyError on an architecture without a table.
    """
    column, audit_arch = ARCHITECTURES[machine]
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCH_OFFSET),
        (JUMP_EQUAL, 1, 0, audit_arch),
        (RETURN, 0, 0, KILL_PROCESS),  # 32-bit calls have other numbers: the list would not hold
        (LOAD, 0, 0, NR_OFFSET),
    ]
    if machine == "x86_64":
        code += _when((JUMP_AT_LEAST, X32_BIT), _refuse(errno.ENOSYS))
    # libc falls back from clone3, whose flags lie in memory that a filter cannot read, to clone.
    code += _when((JUMP_EQUAL, CLONE3[column]), _refuse(errno.ENOSYS))
    for numbers in NUMBERS.values():
        number = numbers[column]
        if number is not None:
            code += _when((JUMP_EQUAL, number), _refuse())
    if not allow_memfd:
        code += _when((JUMP_EQUAL, MEMFD_CREATE[column]), _refuse())
    for number, body in _conditions(column):
        code += _when((JUMP_EQUAL, number), body)
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _conditions(column: int) -> list[tuple[int, list[Instruction]]]:
    """Calls whose arguments decide. Only the low half of an argument is compared: the kernel reads these as ints."""
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | errno.EPERM)
    families = [
        _argument(0),
        (JUMP_EQUAL, 3, 0, AF_UNIX),
        (JUMP_EQUAL, 2, 0, AF_INET),
        (JUMP_EQUAL, 1, 0, AF_INET6),
        refuse,
        allow,
    ]
    own_process = [_argument(0), (JUMP_EQUAL, 1, 0, 0), refuse, allow]
    own_priority = [
        _argument(1),
        (JUMP_EQUAL, 0, 2, 0),
        _argument(0),
        (JUMP_AT_LEAST, 0, 1, 2),
        refuse,
        allow,
    ]
    terminal = [_argument(1), (JUMP_EQUAL, 1, 0, TIOCSTI), (JUMP_EQUAL, 0, 1, TIOCLINUX), refuse, allow]
    return [
        (CLONE[column], [_argument(0), (JUMP_ANY_BIT, 0, 1, CLONE_NEW_NAMESPACE), refuse, allow]),
        (SOCKET[column], families),
        (SOCKETPAIR[column], families),
        (IOCTL[column], terminal),
        (SETPRIORITY[column], own_priority),
        (IOPRIO_SET[column], own_priority),
        *((numbers[column], own_process) for numbers in OWN_PROCESS_ONLY.values()),
    ]


def _argument(index: int) -> Instruction:
    return (LOAD, 0, 0, ARGS_OFFSET + 8 * index)  # little endian: the low half comes first


def _refuse(error: int = errno.EPERM) -> list[Instruction]:
    return [(RETURN, 0, 0, ERRNO | error)]


def _when(test: tuple[int, int], body: list[Instruction]) -> list[Instruction]:
    """`body` if the loaded word passes `test`; it must end in a return, the loaded word may change in it."""
    return [(test[0], 0, len(body), test[1]), *body]
