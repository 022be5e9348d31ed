# ruff: noqa: SIM115, PTH102, PTH103, PTH106, PTH116, PTH208 (what is open stays open)
"""A guest that holds one of everything a program may hold, and tells what of it is no longer as it was.

Run as the guest's first process. Each class below is one kind of thing: its constructor acquires it, ``check`` uses it and returns whether
all is as it must be. A unix socket (``ask.py``) returns {"broken": {name: reason}, "checked": [names]}.
"""

import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.sem_open.restype = ctypes.c_void_p
KINDS = []


def kind(cls):
    KINDS.append(cls)
    return cls


def need(result, what):
    if result in (-1, None):
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def forked(function):
    """A child that runs a function for ever; returns its number."""
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid


@kind
class Threads:
    """Threads that compute, with state of their own, hand each other work by a condition variable and wait on futexes."""

    def __init__(self):
        self.local = threading.local()
        self.condition = threading.Condition()
        self.turn, self.steps, self.wrong = 0, [0] * 6, 0
        for number in range(6):
            threading.Thread(target=self.work, args=(number,), daemon=True).start()

    def work(self, number):
        self.local.mine = number
        while True:
            with self.condition:
                while self.turn != number:
                    self.condition.wait()
                self.wrong += self.local.mine != number
                self.steps[number] += 1
                self.turn = (number + 1) % 6
                self.condition.notify_all()
            sum(range(2000))
            time.sleep(0.001)

    def check(self):
        before = list(self.steps)
        time.sleep(0.2)
        return self.wrong == 0 and max(self.steps) - min(self.steps) <= 1 and all(a < b for a, b in zip(before, self.steps, strict=True))


@kind
class SystemV:
    """Shared memory, a set of semaphores with one of them held, a message queue with two messages waiting."""

    def __init__(self):
        self.memory = need(libc.shmget(0, 3 * 4096, 0o1600), "shmget")
        self.bytes = ctypes.cast(libc.shmat(self.memory, None, 0), ctypes.POINTER(ctypes.c_char * (3 * 4096))).contents
        self.bytes[8192:8197] = b"third"
        self.semaphores = need(libc.semget(0, 3, 0o1600), "semget")
        need(libc.semctl(self.semaphores, 1, 16, 7), "semctl")
        need(libc.semop(self.semaphores, struct.pack("Hhh", 1, -2, 0x1000), 1), "semop")  # SEM_UNDO
        self.queue = need(libc.msgget(0, 0o1600), "msgget")
        for text in (b"first", b"second"):
            self.send(text)
        self.waiter = forked(self.wait)

    def send(self, text):
        need(libc.msgsnd(self.queue, struct.pack("l", 5) + text, len(text), 0), "msgsnd")

    def receive(self):
        buffer = ctypes.create_string_buffer(100)
        size = need(libc.msgrcv(self.queue, buffer, 90, 0, 0o4000), "msgrcv")
        return buffer.raw[8 : 8 + size]

    def wait(self):
        """A process asleep in semop: it answers in shared memory each time it is woken."""
        while True:
            libc.semop(self.semaphores, struct.pack("Hhh", 2, -1, 0), 1)
            self.bytes[0] = bytes([(self.bytes[0][0] + 1) % 256])

    def check(self):
        texts = [self.receive(), self.receive()]
        for text in texts:
            self.send(text)
        before = self.bytes[0][0]
        need(libc.semop(self.semaphores, struct.pack("Hhh", 2, 1, 0), 1), "semop")
        woken = eventually(lambda: self.bytes[0][0] == (before + 1) % 256)
        return (
            texts == [b"first", b"second"] and libc.semctl(self.semaphores, 1, 12, 0) == 5 and woken and self.bytes[8192:8197] == b"third"
        )


@kind
class PosixShared:
    """Shared memory and a named semaphore in /dev/shm, anonymous memory shared with a child that keeps counting in it, a memfd."""

    def __init__(self):
        with open("/dev/shm/memory", "w+b") as file:
            file.truncate(8192)
            self.named = mmap.mmap(file.fileno(), 8192)
        self.named[5000:5005] = b"named"
        self.semaphore = need(libc.sem_open(b"/semaphore", os.O_CREAT, 0o600, 3), "sem_open")
        libc.sem_wait(ctypes.c_void_p(self.semaphore))
        self.shared = mmap.mmap(-1, 4096)
        self.memfd = os.memfd_create("memory")
        os.write(self.memfd, b"memfd")
        self.child = forked(self.count)

    def count(self):
        while True:
            (number,) = struct.unpack_from("Q", self.shared, 0)
            struct.pack_into("Q", self.shared, 0, number + 1)
            self.named[0:8] = struct.pack("Q", number + 1)
            time.sleep(0.002)

    def check(self):
        value = ctypes.c_int()
        libc.sem_getvalue(ctypes.c_void_p(self.semaphore), ctypes.byref(value))
        before = struct.unpack_from("Q", self.shared, 0)
        counts = eventually(lambda: struct.unpack_from("Q", self.shared, 0) > before and struct.unpack_from("Q", self.named, 0) > before)
        return value.value == 2 and self.named[5000:5005] == b"named" and os.pread(self.memfd, 5, 0) == b"memfd" and counts


@kind
class Locks:
    """File locks: POSIX by record, flock shared and exclusive, open file description, a lease."""

    def __init__(self):
        self.files = {name: open(f"/var/tmp/lock-{name}", "w+") for name in ("posix", "flock", "shared", "ofd", "lease")}
        fcntl.lockf(self.files["posix"], fcntl.LOCK_EX, 10, 100)
        fcntl.flock(self.files["flock"], fcntl.LOCK_EX)
        fcntl.flock(self.files["shared"], fcntl.LOCK_SH)
        fcntl.fcntl(self.files["ofd"], 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 5, 5, 0))
        fcntl.fcntl(self.files["lease"], fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def others(self):
        """What another process may and may not lock."""
        files = {name: open(f"/var/tmp/lock-{name}", "r+") for name in ("posix", "flock", "shared", "ofd")}
        return [
            refused(lambda: fcntl.lockf(files["posix"], fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 105)),
            not refused(lambda: fcntl.lockf(files["posix"], fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)),
            refused(lambda: fcntl.flock(files["flock"], fcntl.LOCK_SH | fcntl.LOCK_NB)),
            refused(lambda: fcntl.flock(files["shared"], fcntl.LOCK_EX | fcntl.LOCK_NB)),
            not refused(lambda: fcntl.flock(files["shared"], fcntl.LOCK_SH | fcntl.LOCK_NB)),
            refused(lambda: fcntl.fcntl(files["ofd"], 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 7, 1, 0))),
        ]

    def check(self):
        if fcntl.fcntl(self.files["lease"], fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            return "lease"
        answer, result = os.pipe()
        pid = forked(lambda: os.write(result, bytes(self.others())))
        os.waitpid(pid, 0)
        found = os.read(answer, 10)
        os.close(answer)
        os.close(result)
        return found == bytes([1] * 6) or f"{list(found)}"


@kind
class Terminal:
    """A pseudo-terminal with a shell's child on it: own session, raw-ish modes, a window size, input and output."""

    def __init__(self):
        self.master, slave = os.openpty()
        name = os.ttyname(slave)
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        os.close(slave)
        self.child = forked(lambda: self.live_on(name))

    def live_on(self, name):
        os.close(self.master)
        os.setsid()
        for number in (0, 1, 2):
            os.close(number)
        os.open(name, os.O_RDWR)
        os.dup2(0, 1)
        os.dup2(0, 2)
        self.resized = 0
        signal.signal(signal.SIGWINCH, lambda *_: setattr(self, "resized", self.resized + 1))
        for line in sys.stdin:
            rows, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]
            echo = bool(termios.tcgetattr(0)[3] & termios.ECHO)
            os.write(1, f"{line.strip()[::-1]} {rows}x{columns} {echo} {os.tcgetpgrp(0) == os.getpid()} {self.resized}\n".encode())

    def ask(self, text):
        os.write(self.master, text + b"\n")
        answer = b""
        while not answer.endswith(b"\n") and select.select([self.master], [], [], 3)[0]:
            answer += os.read(self.master, 100)
        return answer.split()

    def check(self):
        first = self.ask(b"abc")
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        second = self.ask(b"abc")
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        fine = first[:4] == [b"cba", b"33x77", b"False", b"True"] and second[:2] == [b"cba", b"24x80"] and int(second[4]) > int(first[4])
        return fine or f"{first} {second}"


@kind
class Datagrams:
    """UDP: bound, connected, with traffic going on. What waits in a queue at the freeze is lost, as datagrams may be."""

    def __init__(self):
        self.server = socket.socket(type=socket.SOCK_DGRAM)
        self.server.bind(("127.0.0.1", 9000))
        self.client = socket.socket(type=socket.SOCK_DGRAM)
        self.client.connect(("127.0.0.1", 9000))
        self.client.settimeout(3)
        self.answers = self.wrong = 0
        threading.Thread(target=self.echo, daemon=True).start()
        threading.Thread(target=self.talk, daemon=True).start()

    def echo(self):
        while True:
            data, sender = self.server.recvfrom(100)
            self.server.sendto(data[::-1], sender)

    def talk(self):
        while True:
            self.client.send(b"ping")
            try:
                self.wrong += self.client.recv(100) != b"gnip"
                self.answers += 1
            except TimeoutError:
                pass
            time.sleep(0.003)

    def check(self):
        before = self.answers
        return self.wrong == 0 and eventually(lambda: self.answers > before, 6.0) and self.client.getpeername()[1] == 9000


@kind
class UnixSockets:
    """Stream, datagram and packet sockets, by path, by abstract name and without a name, with data and a descriptor in transit."""

    def __init__(self):
        self.pairs = [socket.socketpair(type=one) for one in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
        for ours, _ in self.pairs:
            ours.send(b"waiting")
        self.named = []
        for address in ("/var/tmp/socket", "\0abstract"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(address)
            server.listen()
            client = socket.socket(socket.AF_UNIX)
            client.connect(address)
            self.named.append((server, client, server.accept()[0]))
        self.receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.bind("\0receiver")
        self.carrier = socket.socketpair()
        self.pass_on(os.memfd_create("passed"))

    def pass_on(self, descriptor):
        os.pwrite(descriptor, b"passed", 0)
        socket.send_fds(self.carrier[0], [b"!"], [descriptor])
        os.close(descriptor)

    def check(self):
        fine = []
        for ours, theirs in self.pairs:
            fine.append(theirs.recv(100) == b"waiting")
            ours.send(b"waiting")
        for server, client, accepted in self.named:
            client.send(b"over")
            fine.append(accepted.recv(100) == b"over")
            fresh = socket.socket(socket.AF_UNIX)
            fresh.connect(server.getsockname())
            fine.append(bool(server.accept()))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"datagram", "\0receiver")
            fine.append(self.receiver.recv(100) == b"datagram")
        _, (descriptor,), *_ = socket.recv_fds(self.carrier[1], 10, 1)
        fine.append(os.pread(descriptor, 10, 0) == b"passed")
        self.pass_on(descriptor)
        return all(fine) or f"{fine}"


@kind
class Events:
    """epoll over an eventfd, a timerfd, a signalfd, an inotify of a folder of the writable layer, one of the image, one of /dev/shm."""

    FOLDERS = ("/var/tmp/watched", "/etc", "/dev/shm")

    def __init__(self):
        os.makedirs("/var/tmp/watched")
        self.counter = os.eventfd(5)
        self.timer = need(libc.timerfd_create(1, 0), "timerfd_create")
        self.arm()
        mask = struct.pack("Q", 1 << (signal.SIGUSR2 - 1)) + bytes(120)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        self.signals = need(libc.signalfd(-1, mask, 0), "signalfd")
        self.watches = [need(libc.inotify_init1(0), "inotify") for _ in self.FOLDERS]
        for watch, folder in zip(self.watches, self.FOLDERS, strict=True):
            need(libc.inotify_add_watch(watch, folder.encode(), 0x100), "inotify_add_watch")
        self.poll = select.epoll()
        for descriptor in (self.counter, self.timer, self.signals, *self.watches):
            self.poll.register(descriptor, select.EPOLLIN)

    def arm(self):
        """Once: CRIU restores a periodic timer that has expired and was not read as one that never fires again."""
        libc.timerfd_settime(self.timer, 0, struct.pack("qqqq", 0, 0, 0, 50_000_000), None)

    def names(self):
        return [
            ("eventfd", self.counter),
            ("timerfd", self.timer),
            ("signalfd", self.signals),
            *zip(self.FOLDERS, self.watches, strict=True),
        ]

    def check(self):
        for folder in self.FOLDERS:
            open(f"{folder}/appeared", "w").close()
            os.unlink(f"{folder}/appeared")
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        time.sleep(0.1)
        ready = {descriptor for descriptor, _ in self.poll.poll(1)}
        missing = [name for name, one in self.names() if one not in ready]
        if missing:
            return f"no event from {missing}"
        fine = []
        fine.append(struct.unpack("Q", os.read(self.counter, 8)) == (5,))
        os.write(self.counter, struct.pack("Q", 5))
        fine.append(struct.unpack("Q", os.read(self.timer, 8)) == (1,))
        self.arm()
        fine.append(os.read(self.signals, 128)[:4] == struct.pack("I", signal.SIGUSR2))
        fine += [b"appeared" in os.read(watch, 4096) for watch in self.watches]
        return all(fine) or f"{fine}"


@kind
class DeletedFiles:
    """Open files without a name: a small one, one of 100 MB, a folder, a pipe by name, one that still has another name."""

    def __init__(self):
        self.small = open("/var/tmp/small", "w+b", buffering=0)
        self.small.write(b"small")
        self.other = open("/var/tmp/other", "w+b", buffering=0)
        self.other.write(b"other")
        os.link("/var/tmp/other", "/var/tmp/other-name")
        os.mkdir("/var/tmp/folder")
        self.folder = os.open("/var/tmp/folder", os.O_DIRECTORY)
        os.mkfifo("/var/tmp/fifo")
        self.fifo = os.open("/var/tmp/fifo", os.O_RDWR)
        os.write(self.fifo, b"fifo")
        self.large = open("/var/tmp/large", "w+b", buffering=0)
        self.size = int(os.environ.get("DELETED_MB", "100")) << 20
        for at in range(0, self.size, 4096):
            self.large.write(struct.pack("Q", at) * 512)
        for name in ("small", "other", "fifo", "large"):
            os.unlink(f"/var/tmp/{name}")
        os.rmdir("/var/tmp/folder")

    def check(self):
        data = os.read(self.fifo, 10)
        os.write(self.fifo, data)
        large = os.fstat(self.large.fileno()).st_size == self.size and all(
            os.pread(self.large.fileno(), 4096, at) == struct.pack("Q", at) * 512 for at in range(0, self.size, 4096 * 97)
        )
        with open("/var/tmp/other-name", "rb") as file:
            other = file.read() == os.pread(self.other.fileno(), 5, 0) == b"other"
        same = os.fstat(self.other.fileno()).st_ino == os.stat("/var/tmp/other-name").st_ino
        fine = [data == b"fifo", large, other, same, os.pread(self.small.fileno(), 5, 0) == b"small", os.listdir(self.folder) == []]
        return all(fine) or f"{fine}"


@kind
class Signals:
    """A child with two kinds of signals pending, and timers of the old and the POSIX kind that go on."""

    def __init__(self):
        self.ours, theirs = socket.socketpair()
        self.child = forked(lambda: self.wait(theirs))
        self.ours.recv(1)
        os.kill(self.child, signal.SIGUSR1)
        os.kill(self.child, signal.SIGRTMIN + 1)
        os.kill(self.child, signal.SIGRTMIN + 1)

    def wait(self, orders):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN + 1])
        ticks = [0]
        signal.signal(signal.SIGALRM, lambda *_: ticks.__setitem__(0, ticks[0] + 1))
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        orders.send(b"!")
        while orders.recv(1):
            before = ticks[0]
            time.sleep(0.3)
            pending = {int(one) for one in signal.sigpending()}
            orders.send(json.dumps([sorted(pending), ticks[0] > before, signal.getitimer(signal.ITIMER_REAL)[1]]).encode())

    def check(self):
        self.ours.send(b"?")
        with open(f"/proc/{self.child}/status") as file:
            queued = next(line for line in file if line.startswith("SigQ")).split()[1].split("/")[0]
        answer = json.loads(self.ours.recv(200))
        return (answer == [[signal.SIGUSR1, signal.SIGRTMIN + 1], True, 0.05] and int(queued) >= 3) or f"{answer} {queued}"


@kind
class Listener:
    """A TCP server that accepts slowly: connections wait in its queue nearly always. Each is answered with its number of bytes."""

    def __init__(self):
        self.server = socket.create_server(("0.0.0.0", 80), backlog=64)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            time.sleep(0.02)
            connection, _ = self.server.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            while data := connection.recv(4096):
                connection.sendall(struct.pack(">I", len(data)) + data)

    def check(self):
        with socket.create_connection(("127.0.0.1", 80), timeout=10) as connection:
            connection.sendall(b"hello")
            return connection.recv(100)[4:] == b"hello"


@kind
class AsynchronousIO:
    """A context of the kernel's AIO, as databases have."""

    def __init__(self):
        self.context = ctypes.c_ulong(0)
        need(libc.syscall(206, 64, ctypes.byref(self.context)), "io_setup")
        self.file = open("/var/tmp/aio", "w+b", buffering=0)

    def check(self):
        buffer = ctypes.create_string_buffer(b"by aio")
        block = struct.pack("=QIIHhIQQqQII", 7, 0, 0, 1, 0, self.file.fileno(), ctypes.addressof(buffer), 6, 0, 0, 0, 0)
        place = ctypes.create_string_buffer(block)
        pointer = ctypes.c_void_p(ctypes.addressof(place))
        need(libc.syscall(209, self.context, 1, ctypes.byref(pointer)), "io_submit")
        event = ctypes.create_string_buffer(32)
        done = libc.syscall(208, self.context, 1, 1, event, None)
        return done == 1 and struct.unpack_from("Q", event, 0) == (7,) and os.pread(self.file.fileno(), 6, 0) == b"by aio"


def refused(lock):
    try:
        lock()
    except OSError:
        return True
    return False


def eventually(check, timeout_s=3.0):
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def check(one, results):
    try:
        results[type(one).__name__] = one.check()
    except Exception as error:
        results[type(one).__name__] = repr(error)


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    wanted = os.environ.get("KINDS", "").split()
    forking = {SystemV, PosixShared, Terminal, Signals}  # before any has threads
    held = [one() for one in sorted(KINDS, key=lambda one: one not in forking) if not wanted or one.__name__ in wanted]
    control = socket.socket(socket.AF_UNIX)
    control.bind("/run/control")
    control.listen()
    while True:
        connection, _ = control.accept()
        with connection:
            results = {type(one).__name__: "hangs" for one in held}
            for one in held:
                attempt = threading.Thread(target=check, args=(one, results), daemon=True)
                attempt.start()
                attempt.join(10)
            broken = {name: result for name, result in results.items() if result is not True}
            connection.sendall(json.dumps({"broken": broken, "checked": list(results)}).encode())


sys.exit(main())
