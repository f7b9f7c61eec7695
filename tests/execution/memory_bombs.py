"""Programs that hold as much memory as they can, each by another mechanism, and then sleep."""

_ATTEMPT = """
import array, ctypes, mmap, multiprocessing, os, resource, socket, threading, time
MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def attempt(step, count):
    for number in range(count):
        try:
            kept.append(step(number))
        except (OSError, MemoryError, ValueError, BufferError, RuntimeError):
            return
def in_children(work, count=8):
    for number in range(count):
        try:
            if os.fork() == 0:
                try: work()
                except BaseException: pass
                time.sleep(60)
        except OSError:
            break
def fill(view, step=4096):
    for position in range(0, len(view), step):
        view[position] = 1
    return view
def dropped(size):
    shared = mmap.mmap(-1, size)
    fill(shared)
    shared.madvise(mmap.MADV_DONTNEED)
    return shared
def mostly_unmapped(size):
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, 0)
    if address in (None, 2 ** 64 - 1): raise MemoryError
    ctypes.memset(address, 1, size)
    libc.munmap(ctypes.c_void_p(address + 4096), ctypes.c_size_t(size - 4096))
def stuffed(kind):
    pair = socket.socketpair(socket.AF_UNIX, kind)
    for end in pair:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF): end.setsockopt(socket.SOL_SOCKET, option, 1 << 30)
        try:
            while True: end.send(b"x" * (65536 if kind == socket.SOCK_STREAM else 4096))
        except OSError: pass
    return pair
def in_flight(number):
    pair = stuffed(socket.SOCK_STREAM)
    carrier = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    carrier[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [p.fileno() for p in pair]))])
    for end in pair: end.close()
    return carrier
def full_pipe(number):
    import fcntl
    ends = os.pipe()
    try: fcntl.fcntl(ends[1], 1031, MIB)
    except OSError: pass
    os.set_blocking(ends[1], False)
    try:
        while True: os.write(ends[1], b"x" * 65536)
    except OSError: pass
    return ends
def part_of_a_huge_page(number):
    libc.mmap.restype = ctypes.c_void_p
    size = 2 * MIB
    address = libc.mmap(None, ctypes.c_size_t(2 * size), 3, 0x22, -1, 0)
    if address in (None, 2 ** 64 - 1): raise MemoryError
    start, end = (address + size - 1) // size * size, address + 2 * size
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 14)
    ctypes.memset(start, 1, size)
    if start > address: libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(start - address))
    return start, end
def trimmed(number):
    libc.prctl(41, 0, 0, 0, 0)
    start, end = part_of_a_huge_page(number)
    libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t(end - start - 4096))
def spliced(number):
    class Piece(ctypes.Structure): _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    taken = 1
    while taken > 0:
        start, end = part_of_a_huge_page(number)
        taken = libc.vmsplice(ends[1], ctypes.byref(Piece(start, 4096)), ctypes.c_ulong(1), 2)
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
    return ends
def watched_folder(number):
    file = libc.inotify_init1(0o4000)
    if file < 0: raise OSError
    os.makedirs("watched", exist_ok=True)
    libc.inotify_add_watch(file, b"watched", 0xFFF)
    return file
def file_events():
    for number in range(5000):
        name = os.path.join("watched", str(number).ljust(250, "x"))
        try:
            open(name, "w").close()
            os.unlink(name)
        except OSError: return
def record_locks(number):
    import fcntl
    file = open(f"locks{number}", "w+b")
    for start in range(20000): fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * start)
def page_tables():
    block = mmap.mmap(-1, 400 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(block, 2 * MIB)
    kept.append(block)
def many_mappings():
    libc.mmap.restype = ctypes.c_void_p
    for number in range(60000):
        libc.mmap(None, ctypes.c_size_t(4096), number % 2 + 1, 0x22, -1, 0)
"""

BOMBS = {
    "blocks": "attempt(lambda n: fill(bytearray(8 * MIB)), 500)",
    "blocks in children": "in_children(lambda: attempt(lambda n: fill(bytearray(8 * MIB)), 500))",
    "a block shared by fork, then written": "block = bytearray(60 * MIB)\nin_children(lambda: fill(block), 100)",
    "shared mapping": "attempt(lambda n: fill(mmap.mmap(-1, 8 * MIB)), 500)",
    "large shared mapping": "attempt(lambda n: fill(mmap.mmap(-1, 100 * MIB)), 50)",
    "dropped shared mapping": "attempt(lambda n: dropped(8 * MIB), 500)",
    "dropped shared mapping in children": "in_children(lambda: attempt(lambda n: dropped(10 * MIB), 40))",
    "shared mapping, mostly unmapped": "attempt(lambda n: mostly_unmapped(8 * MIB), 500)",
    "mostly unmapped in children": "in_children(lambda: attempt(lambda n: mostly_unmapped(8 * MIB), 500))",
    "mapping of /dev/zero": "file = open('/dev/zero', 'r+b')\n"
    "attempt(lambda n: fill(mmap.mmap(file.fileno(), 8 * MIB)), 500)",
    "mapped scratch files": "def mapped(number):\n    with open(f'f{number}', 'w+b') as file:\n"
    "        file.truncate(8 * MIB)\n        return fill(mmap.mmap(file.fileno(), 0))\nattempt(mapped, 500)",
    "scratch files": "attempt(lambda n: open(f'f{n}', 'wb').write(bytes(8 * MIB)), 500)",
    "memory files": "attempt(lambda n: os.write(os.memfd_create('x'), bytes(8 * MIB)), 500)",
    "streams": "attempt(lambda n: stuffed(socket.SOCK_STREAM), 2000)",
    "datagrams": "attempt(lambda n: stuffed(socket.SOCK_DGRAM), 2000)",
    "sequenced packets": "attempt(lambda n: stuffed(socket.SOCK_SEQPACKET), 2000)",
    "streams in children": "in_children(lambda: attempt(lambda n: stuffed(socket.SOCK_STREAM), 2000), 60)",
    "sockets in flight": "attempt(in_flight, 2000)",
    "sockets in flight in children": "in_children(lambda: attempt(in_flight, 2000), 60)",
    "pipes": "attempt(full_pipe, 2000)",
    "pipes in children": "in_children(lambda: attempt(full_pipe, 2000), 60)",
    "page tables in children": "in_children(page_tables, 100)",
    "many mappings in children": "in_children(many_mappings, 100)",
    "parts of huge pages": "attempt(trimmed, 1000)",
    "parts of huge pages in children": "in_children(lambda: attempt(trimmed, 200))",
    "huge pages in pipes": "attempt(spliced, 100)",
    "huge pages in pipes of children": "in_children(lambda: attempt(spliced, 60), 20)",
    "queues of file events": "attempt(watched_folder, 100)\nfile_events()",
    "record locks in children": "in_children(lambda: attempt(record_locks, 30), 40)",
    "threads": "threading.stack_size(256 << 10)\n"
    "attempt(lambda n: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(), 2000)",
    "stacks of children": "resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
    "import sys\nsys.setrecursionlimit(10 ** 9)\n"
    "def deep(n): return list(map(deep, [n - 1])) if n else time.sleep(60)\nin_children(lambda: deep(150_000), 60)",
    "locked": "attempt(lambda n: libc.mlock(ctypes.c_char_p(bytes(8 * MIB)), 8 * MIB), 500)",
    "huge pages": "def huge():\n    block = mmap.mmap(-1, 64 * MIB, flags=34)\n"
    "    block.madvise(14)\n    return fill(block)\nattempt(lambda n: huge(), 50)",
}


def program(bomb: str) -> str:
    return f"{_ATTEMPT}\n{BOMBS[bomb]}\ntime.sleep(0.3)\n"
