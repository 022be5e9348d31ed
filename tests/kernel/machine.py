"""A machine with a stock kernel to test on, in QEMU's software emulation: Debian 13 with systemd, soft-dirty, netem and control groups v2.

    machine.py test [PYTEST ARGUMENTS]   boot it, bring this checkout there, let the doctor prepare it, run the tests, stop it
    machine.py up | run COMMAND | down   one step at a time
    machine.py remove                    delete everything it keeps

It needs root and apt, and keeps its parts in --folder (3 GB), so that the second time takes seconds. The emulator is Debian 13's, in a
folder of its own: older ones crash this kernel. Its processor is about 15 times slower; nothing it does counts as a measurement.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from emulab.engine import mirror
from emulab.engine.base import KEYRING
from emulab.engine.build import CA_BUNDLES

SLOWNESS = 15
# The engine is part of the system, as its installation would take a quarter of an hour there; the doctor finds it and does the rest.
PACKAGES = (
    "docker.io,docker-cli,docker-compose,docker-buildx,linux-image-cloud-amd64,systemd-sysv,systemd-resolved,systemd-timesyncd,udev,initramfs-tools,dbus,kmod,procps,iproute2,"
    "ca-certificates,python3,python3-venv,make,openssh-server"
)
IMAGES = ("emulab/base:trixie", "emulab/node:latest", "emulab/olio-db:latest", "emulab/olio-web:latest")
# What the tests there need of the development environment; wheels for the machine's Python, put together here.
LIBRARIES = ("docker>=7.1,<8", "pydantic>=2.9,<3", "pyyaml>=6", "typer>=0.15", "rich>=13.9", "psutil>=6", "hypothesis", "pytest>=8.3",
             "pytest-timeout", "blake3>=1.0", "xxhash>=3.5", "zstandard>=0.23")  # fmt: skip
_NETWORK = "[Match]\nName=en*\n[Network]\nDHCP=yes\n"


def say(text):
    print(f"test-kernel: {text}", flush=True)


def sh(*argv, **more):
    return subprocess.run([str(word) for word in argv], check=True, **more)


class Machine:
    """One machine, its parts below ``folder``, reached by ssh on a port of 127.0.0.1."""

    def __init__(self, folder, *, memory_mib, port):
        self.folder, self.memory_mib, self.port = folder, memory_mib, port
        self.emulator = folder / "emulator"
        self.system = folder / "system.tar"
        self.key = folder / "id"
        self.pid = folder / "pid"
        self.console = self.emulator / "vm/console.log"

    # -- parts -------------------------------------------------------------------------------------------------------------------------

    def build(self):
        """Whatever is missing of emulator, system and key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in ("mmdebstrap", "ssh-keygen") if not shutil.which(name)]
        if missing:
            sh("apt-get", "-q", "-y", "install", "--no-install-recommends", "mmdebstrap", "openssh-client")
        if not self.key.exists():
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        if not (self.emulator / "usr/bin/qemu-system-x86_64").exists():
            say("making the emulator's folder")
            shutil.rmtree(self.emulator, ignore_errors=True)
            self._bootstrap(self.emulator, "minbase", "qemu-system-x86")
            (self.emulator / "vm").mkdir(exist_ok=True)
        if not self.system.exists():
            say("making the machine's system")
            partial = self.system.with_suffix(".partial.tar")
            self._bootstrap(partial, "apt", PACKAGES, *self._hooks())
            partial.rename(self.system)

    def _bootstrap(self, target, variant, packages, *options):
        uri = mirror.debian_mirror(mirror.read_sources())
        source = () if uri is None else (mirror.deb_line(uri, "trixie", KEYRING),)
        sh("mmdebstrap", "--quiet", f"--variant={variant}", f"--include={packages}", *options, "trixie", target, *source)

    def _hooks(self):
        bundle = next((path for path in CA_BUNDLES if Path(path).exists()), "")
        steps = [
            'chroot "$1" passwd -d root >/dev/null; chroot "$1" systemctl -q enable systemd-networkd ssh',
            f'printf %s {shlex.quote(_NETWORK)} >"$1/etc/systemd/network/lan.network"',
            'echo test-kernel >"$1/etc/hostname"; echo "/dev/vda / ext4 defaults 0 1" >"$1/etc/fstab"',
            f'install -d -m 700 "$1/root/.ssh"; install -m 600 {self.key}.pub "$1/root/.ssh/authorized_keys"',
            f'[ -z "{bundle}" ] || cp -L "{bundle}" "$1/etc/ssl/certs/ca-certificates.crt"',
        ]
        return [f"--customize-hook={step}" for step in steps]

    def _disk(self):
        root, vm = self.folder / "root", self.emulator / "vm"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        sh("tar", "-C", root, "-xf", self.system)
        shutil.copy(next(root.glob("boot/vmlinuz-*")), vm / "vmlinuz")
        shutil.copy(next(root.glob("boot/initrd.img-*")), vm / "initrd")
        disk = vm / "disk.img"
        disk.unlink(missing_ok=True)
        sh("truncate", "-s", "30G", disk)
        sh("mke2fs", "-q", "-t", "ext4", "-d", root, disk)
        shutil.rmtree(root)

    # -- life --------------------------------------------------------------------------------------------------------------------------

    def up(self):
        """Boot from a fresh disk and wait until it can be reached."""
        self.down()
        self.build()
        self._disk()
        if not os.path.ismount(self.emulator / "dev"):
            sh("mount", "--bind", "/dev", self.emulator / "dev")
        shutil.copy("/etc/resolv.conf", self.emulator / "etc/resolv.conf")
        argv = (
            "chroot", self.emulator, "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max", "-smp", "2",
            "-m", self.memory_mib, "-display", "none", "-serial", "file:/vm/console.log", "-no-reboot", "-kernel", "/vm/vmlinuz",
            "-initrd", "/vm/initrd", "-append", "root=/dev/vda rw console=ttyS0",
            "-drive", "file=/vm/disk.img,format=raw,if=virtio,cache=unsafe",
            "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=n",
        )  # fmt: skip
        with (self.folder / "emulator.log").open("wb") as log:
            process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid.write_text(str(process.pid))
        end = time.monotonic() + 300
        while subprocess.run(self.ssh("true", patience_s=5), check=False, capture_output=True).returncode != 0:
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"test-kernel: it did not come up; see {self.console} and {self.folder / 'emulator.log'}")
            time.sleep(1)
        say(f"up: Linux {self.output('uname -r')}, control groups {self.output('stat -fc %T /sys/fs/cgroup')}")

    def down(self):
        """Stop it if it runs. What was on its disk is lost."""
        if self.pid.exists():
            number = self.pid.read_text()
            command = Path(f"/proc/{number}/cmdline")
            if command.exists() and b"qemu-system" in command.read_bytes():
                os.kill(int(number), 15)
                while command.exists() and command.read_bytes():
                    time.sleep(0.2)
            self.pid.unlink()
        if os.path.ismount(self.emulator / "dev"):
            sh("umount", self.emulator / "dev")

    def remove(self):
        self.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- use ---------------------------------------------------------------------------------------------------------------------------

    def ssh(self, command, patience_s=120):
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            f"ConnectTimeout={patience_s}",
            "ServerAliveInterval=30",
        )
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), "-p", str(self.port), *words, "root@127.0.0.1", command]

    def run(self, command, **more):
        return subprocess.run(self.ssh(command), check=False, **more).returncode

    def output(self, command):
        return subprocess.run(self.ssh(command), check=True, capture_output=True, text=True).stdout.strip()

    def put(self, source, command):
        """Run a command here and give what it prints to a command there."""
        with subprocess.Popen([str(word) for word in source], stdout=subprocess.PIPE) as reader:
            sh(*self.ssh(command), stdin=reader.stdout)
        if reader.returncode != 0:
            raise SystemExit(f"test-kernel: `{shlex.join(map(str, source))}` failed")

    def prepare(self, *, images):
        """This checkout, its libraries and an engine; images of this machine's engine instead of building them there, if wanted."""
        say("copying the checkout and its libraries")
        self.put(("tar", "-C", CHECKOUT, "--exclude=.venv", "--exclude=runs", "--exclude=.git", "--exclude=.*_cache", "-cf", "-", "."),
                 "mkdir -p /root/emulab && tar -C /root/emulab -xf -")  # fmt: skip
        libraries = self.folder / "libraries"
        if not libraries.exists():
            version = self.output("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")
            partial = self.folder / "libraries.partial"
            shutil.rmtree(partial, ignore_errors=True)
            pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore")
            sh(*pip, "--only-binary=:all:", "--python-version", version, "--target", partial, *LIBRARIES)
            partial.rename(libraries)
        self.put(("tar", "-C", libraries, "-cf", "-", "."), "mkdir -p /root/libraries && tar -C /root/libraries -xf -")
        if images:
            say("loading this machine's images")
            self.put(("docker", "save", *IMAGES), "docker load -q")
        say("the doctor prepares the rest")
        self.checked("python3 -m emulab.cli doctor --fix")

    def checked(self, command):
        if self.run(self.here(command)) != 0:
            raise SystemExit(f"test-kernel: `{command}` failed there")

    @staticmethod
    def here(command, **environment):
        words = {"PYTHONPATH": "/root/emulab:/root/libraries", **environment}
        return f"cd /root/emulab && export {' '.join(f'{name}={shlex.quote(value)}' for name, value in words.items())} && {command}"

    def test(self, arguments):
        environment = {"EMULAB_DIRTY_TRACKER": "soft-dirty", "EMULAB_TEST_SLOWNESS": str(SLOWNESS)}
        command = f"python3 -m pytest -p no:cacheprovider {shlex.join(arguments)}"
        return self.run(self.here(command, **environment))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("EMULAB_KERNEL_FOLDER", "/var/cache/emulab-kernel")))
    parser.add_argument("--memory", type=int, default=8192, metavar="MIB")
    parser.add_argument("--port", type=int, default=int(os.environ.get("EMULAB_KERNEL_PORT", "2280")))
    parser.add_argument("--build-images", action="store_true", help="build the images there (an hour) instead of copying this engine's")
    parser.add_argument("action", choices=("test", "up", "prepare", "run", "pytest", "down", "remove"))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    machine = Machine(asked.folder, memory_mib=asked.memory, port=asked.port)
    if asked.action == "run":
        return machine.run(" ".join(asked.words))
    if asked.action == "pytest":
        return machine.test(asked.words)
    if asked.action == "prepare":
        machine.prepare(images=not asked.build_images)
    if asked.action != "test":
        return {"up": machine.up, "down": machine.down, "remove": machine.remove, "prepare": lambda: None}[asked.action]()
    try:
        machine.up()
        machine.prepare(images=not asked.build_images)
        return machine.test(asked.words or ["tests/faults/test_matrix.py", "tests/testbed/test_trackers.py"])
    finally:
        machine.down()


if __name__ == "__main__":
    sys.exit(main())
