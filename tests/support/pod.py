"""A process in the cage of a pod, without a container engine: `unshare`, mounts, `chroot`, `setpriv`, and a cgroup.

What it has of a pod: a file system of its own that nothing can be written to but an empty /tmp; secrets and
configuration as read-only mounts, readable for its group alone; process 1 of its own process IDs; user and group
10001, no capability, no way to gain one; the variables that the image and the manifest set, and no others; a memory
limit. What it has not: an image (its programs are those of this machine), a network of its own, seccomp, and limits on
processors.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

from consumer.tools.embedded import dies_with_parent, free_port
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
USER = 10001
MOUNTED = Path("/mnt/sluice")  # where the files that are handed in lie inside
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
_GIB = 2**30


def why_not() -> str | None:
    """Why this machine cannot hold a pod; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounts and namespaces need root on Linux"
    if missing := [tool for tool in ("unshare", "setpriv", "chroot", "mount") if not shutil.which(tool)]:
        return f"there is no {missing[0]} (util-linux, coreutils)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return f"unshare is not allowed here: {tried.stderr.strip()}" if tried.returncode else None


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets for the program, but for the path of its own Python."""
    text = ROOT.joinpath("Dockerfile").read_text().replace("\\\n", " ")
    (line,) = (found for found in re.findall(r"^ENV (.*)$", text, flags=re.MULTILINE) if "SLUICE_" in found)
    return dict(pair.partition("=")[::2] for pair in shlex.split(line))


class Pod:
    """`with Pod(environment, files) as pod`: runs `sluice run`. `files`: name below `MOUNTED` to content.

    `limited_by` says how memory is limited here: "cgroup" or "RLIMIT_DATA" (which counts the heap alone).
    """

    def __init__(
        self, environment: Mapping[str, str], files: Mapping[str, bytes], *, memory_bytes: int = 4 * _GIB
    ) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="sluice-pod-"))
        self._environment = {
            **image_environment(),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            **environment,
            "SLUICE_HTTP__PORT": str(self.port),
        }
        self._files = self._folder / "files"
        self._files.mkdir()
        for name, content in files.items():
            path = self._files / name
            path.write_bytes(content)
            os.chown(path, 0, USER)  # as Kubernetes mounts a Secret with an fsGroup
            path.chmod(0o440)
        self._cgroup = _Cgroup(memory_bytes)
        self.limited_by = "cgroup" if self._cgroup.path else "RLIMIT_DATA"
        self._memory_bytes = memory_bytes
        self._outer: subprocess.Popen[bytes] | None = None
        self._inner: psutil.Process | None = None

    def __enter__(self) -> Pod:
        script = self._folder / "enter.sh"
        script.write_text(self._script())
        alone = "unshare --mount --propagation private --pid --fork --kill-child"
        command = ["/bin/sh", "-c", f"{self._cgroup.enter}exec {alone} sh {shlex.quote(str(script))}"]
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                dies_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._inner = wait_until(self._find_inner, 10, "process 1 of the pod")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._inner is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._inner.kill()  # process 1: all others of the pod go with it
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
        self._cgroup.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def process(self) -> psutil.Process:
        """Process 1 of the pod, which is Sluice."""
        assert self._inner is not None
        return self._inner

    @property
    def running(self) -> bool:
        return self._outer is not None and self._outer.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def terminate(self, timeout: float = 45) -> int:
        """SIGTERM to process 1, as a kubelet sends it; returns the exit code."""
        assert self._outer is not None
        self.process.terminate()
        return self._outer.wait(timeout)

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that it had, page cache included; None where there is no cgroup."""
        return self._cgroup.peak_bytes

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _find_inner(self) -> psutil.Process | None:
        assert self._outer is not None
        assert self._outer.poll() is None, self.log
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._outer.pid).children():
                if "consumer" in child.cmdline():
                    return child
        return None

    def _script(self) -> str:
        """Builds the file system of the pod below a tmpfs, then becomes the program in it."""
        interpreter = Path(sys.executable).absolute()
        needed = [ROOT, interpreter.parents[1], Path(sys.base_prefix), Path(os.path.realpath(interpreter)).parents[1]]
        lines = ["set -eu", "R=$(mktemp -d)", "mount -t tmpfs -o mode=0755 pod $R"]
        # First, because the checkout or the interpreter may lie below /tmp.
        lines += ["mkdir $R/proc $R/dev $R/tmp", "mount -t proc proc $R/proc", "mount -t tmpfs -o mode=1777 tmp $R/tmp"]
        for path in dict.fromkeys([*_SYSTEM, *map(str, needed)]):
            if Path(path).is_symlink():
                lines.append(f"ln -s {shlex.quote(str(Path(path).readlink()))} $R{shlex.quote(path)}")
            elif Path(path).is_dir():
                lines.append(_bound(path, path))
        lines += [_bound(str(self._files), str(MOUNTED))]
        for device in ("null", "zero", "random", "urandom"):
            lines += [f"touch $R/dev/{device}", f"mount --bind /dev/{device} $R/dev/{device}"]
        lines.append("mount -o remount,ro,bind $R")
        variables = " ".join(shlex.quote(f"{name}={value}") for name, value in self._environment.items())
        # Set here, because a change of the user takes back what asked for an end with the parent.
        cage = f"setpriv --pdeathsig KILL --reuid {USER} --regid {USER} --clear-groups"
        cage += " --no-new-privs --bounding-set -all --inh-caps -all"
        limit = "" if self._cgroup.path else f"prlimit --data={self._memory_bytes} "
        program = f"{shlex.quote(str(interpreter))} -m consumer run"
        # The last line: each becomes the next, so that the program is process 1.
        lines.append(f"cd /; exec chroot $R {limit}{cage} env -i {variables} {program}")
        return "\n".join(lines) + "\n"


def _bound(outside: str, inside: str) -> str:
    """Mount a folder of the machine, read-only. What is mounted below it stays as it is, so: not recursively."""
    outside, inside = shlex.quote(outside), shlex.quote(inside)
    return f"mkdir -p $R{inside}; mount --bind {outside} $R{inside}; mount -o remount,ro,bind $R{inside}"


class _Cgroup:
    """A cgroup of our own with a memory limit, below the one that we are in; `path` is None where none can be made."""

    def __init__(self, memory_bytes: int) -> None:
        self.path: Path | None = None
        for mount, controller, limit, self._peak in (
            ("/sys/fs/cgroup", "", "memory.max", "memory.peak"),
            ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        ):
            own = re.search(rf"^\d+:{controller}:(.*)$", Path("/proc/self/cgroup").read_text(), flags=re.MULTILINE)
            path = Path(f"{mount}{own[1].rstrip('/') if own else ''}/sluice-pod-{os.getpid()}")
            if not Path(mount, "cgroup.procs").exists():
                continue  # not a cgroup file system
            with contextlib.suppress(OSError):
                path.mkdir()
                try:
                    path.joinpath(limit).write_text(str(memory_bytes))
                except OSError:
                    path.rmdir()
                    continue
                self.path = path
                return

    @property
    def enter(self) -> str:
        """What a shell of the machine's own process IDs says to join it, and its children with it."""
        return f"echo $$ > {self.path}/cgroup.procs && " if self.path else ""

    @property
    def peak_bytes(self) -> int | None:
        with contextlib.suppress(OSError):
            return int(self.path.joinpath(self._peak).read_text()) if self.path else None
        return None

    def close(self) -> None:
        if self.path is not None:
            wait_until(lambda: not self.path.joinpath("cgroup.procs").read_text(), 10, "the cgroup to be empty")
            self.path.rmdir()
