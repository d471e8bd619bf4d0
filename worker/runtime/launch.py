"""Starts a process in new namespaces, or in those of a running container.

The child runs Python between the fork and the exec, with the keeper's memory: it must end by exec
or `os._exit`, never by returning. What fails is told over a pipe that the exec closes.
"""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from worker.runtime import capabilities, mounts, userns, users
from worker.runtime import init as pid_one
from worker.runtime import syscalls as sc
from worker.runtime.cgroups import Hierarchy
from worker.runtime.steps import Capabilities, Plan, Process

if TYPE_CHECKING:
    from worker.runtime.hooks import Gate  # the keeper need not load what runs hooks

_NEVER_RESET = {signal.SIGKILL, signal.SIGSTOP}
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_READ_LIMIT = 1 << 20  # of the image's passwd and group files


class Stdio(NamedTuple):
    """What the child gets as its descriptors 0, 1, 2; `console` is sent its terminal's master."""

    stdin: int
    stdout: int
    stderr: int
    console: int = -1


class Failure(NamedTuple):
    """Why a process did not start. `code` is the exit code Docker gives: 126, 127 or 128."""

    code: int
    message: str


class _NotExecutable(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Stage(NamedTuple):
    """What a container's child has in hand."""

    plan: Plan
    stdio: Stdio
    filter: bytes
    others: dict[int, int]  # descriptors of the namespaces to enter, by kind
    join: bool  # the cgroup is to be entered from within
    user_ns: int  # the user namespace, entered last, or -1
    report: int
    gate: "Gate | None"
    connected: int


class Launcher:
    """Holds what all starts share. One to a keeper; not for several threads."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._users = userns.UserNamespaces()
        self._filters: dict[str, bytes] = {}
        # Asked once, for it takes as long as a few mounts. The keeper ignores none later.
        self._ignored = tuple(
            number
            for number in signal.valid_signals() - _NEVER_RESET
            if signal.getsignal(number) == signal.SIG_IGN
        )
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        with open("/proc/sys/kernel/cap_last_cap") as file:
            self._last_capability = int(file.read())
        self._available = capabilities.own()  # a machine may withhold some from its root
        # The keeper raises its own limit; containers get what the daemon had.
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def start(
        self,
        plan: Plan,
        stdio: Stdio,
        report: int,
        gate: "Gate | None" = None,
        connected: int = -1,
    ) -> tuple[int, int]:
        """Start a container whose cgroup exists: (pid, pidfd). `report` closes at the exec, or at
        the `gate` if there is one. Mounts are made at once; if `connected` is a pipe, the rest
        waits for a byte from it, which says that the network is ready.
        """
        flags = plan.namespaces
        into = self._hierarchy.clone_fd(plan.cgroup)
        if into < 0:
            flags &= ~sc.CLONE_NEWCGROUP  # entered once the child is where its root shall be
        filter_ = self._filter(plan.process)
        user_ns = self._users.get(plan.process.mapping)
        others = {}
        try:
            for join in plan.joins:
                others[join.kind] = os.open(join.path, os.O_RDONLY | os.O_CLOEXEC)
            with self._children_in(others.pop(sc.CLONE_NEWPID, -1)):
                pid, pidfd = sc.clone3(flags, into)
                if pid == 0:
                    stage = _Stage(
                        plan, stdio, filter_, others, into < 0, user_ns, report, gate, connected
                    )
                    self._child(report, lambda: self._container(stage))
        finally:
            for fd in (into, *others.values()):
                if fd >= 0:
                    os.close(fd)
        return pid, pidfd

    def prepare(self, body: Callable[[], None], report: int) -> tuple[int, int]:
        """A child that does `body`, which must execute something: (pid, pidfd)."""
        pid, pidfd = sc.clone3(0)
        if pid == 0:
            self._child(report, body)
        return pid, pidfd

    @contextlib.contextmanager
    def _children_in(self, pids: int) -> Iterator[None]:
        """Children made within are in the pid namespace of a descriptor, which is closed."""
        if pids < 0:
            yield
            return
        try:
            sc.setns(pids, sc.CLONE_NEWPID)
            yield
        finally:
            sc.setns(self._own_pids, sc.CLONE_NEWPID)
            os.close(pids)

    def execute(
        self, process: Process, container: int, cgroup: str, stdio: Stdio, report: int
    ) -> tuple[int, int]:
        """Start a process in the container of pidfd `container`: (pid, pidfd)."""
        into = self._hierarchy.clone_fd(cgroup)
        filter_ = self._filter(process)
        try:
            with self._children_in(os.dup(container)):
                pid, pidfd = sc.clone3(0, into)
                if pid == 0:
                    self._child(
                        report,
                        lambda: self._visitor(process, container, cgroup, stdio, filter_, into < 0),
                    )
        finally:
            if into >= 0:
                os.close(into)
        return pid, pidfd

    def _filter(self, process: Process) -> bytes:
        if not process.seccomp:
            return b""
        if process.seccomp not in self._filters:
            with open(process.seccomp, "rb") as file:
                self._filters[process.seccomp] = file.read()
        return self._filters[process.seccomp]

    def _child(self, report: int, body: "Any") -> NoReturn:
        try:
            # Once the root has changed, a module would be loaded from the image.
            sys.meta_path.clear()
            body()
        except _NotExecutable as error:
            _tell(report, error.code, str(error))
        except OSError as error:
            _tell(report, 128, error.strerror or str(error))
        except BaseException as error:  # noqa: BLE001 - nothing may return into the keeper's loop
            _tell(report, 128, str(error) or type(error).__name__)
        finally:
            os._exit(127)

    def _container(self, stage: "_Stage") -> None:
        plan, gate, process = stage.plan, stage.gate, stage.plan.process
        if gate is not None:
            gate.await_runtime()
        self._detach(process, stage.stdio)
        if stage.join:
            self._hierarchy.join(plan.cgroup)
            if plan.namespaces & sc.CLONE_NEWCGROUP:
                sc.unshare(sc.CLONE_NEWCGROUP)
        for kind, fd in stage.others.items():
            sc.setns(fd, kind)
        if plan.hostname:
            sc.sethostname(plan.hostname)
        if plan.domainname:
            sc.setdomainname(plan.domainname)
        os.umask(0)
        if stage.user_ns >= 0:
            userns.act_as_root(process.mapping)
        root = self._mount(plan, gate, stage.user_ns)
        if stage.connected >= 0:
            _await_network(stage.connected)
        if process.tty:
            _console(process, stage.stdio.console, bind=True)
        _write_sysctls(plan)
        mounts.hide(plan.masked, plan.read_only)
        account = account_in(process)
        directory = _make_cwd(process.cwd)
        if plan.root_read_only:
            sc.mount_setattr(root, sc.MOUNT_ATTR_RDONLY)
        os.umask(0o022)
        if gate is not None:
            path = process.env.get("PATH", "")
            find_executable(process.args[0], path, directory)  # told now rather than at the start
            gate.await_start(stage.report)
            gate.run("startContainer")
        self._finish(process, account, directory, stage.filter, stage.user_ns, plan.init, gate)

    def _mount(self, plan: Plan, gate: "Gate | None", user_ns: int) -> int:
        sources = mounts.open_sources(plan, user_ns)
        sc.make_private("/")
        tree = mounts.prepare_root(plan, user_ns)
        root = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.mount_all(plan, root, sources, self._cgroups(plan))
        mounts.make_devices(plan, root)
        if gate is not None:
            gate.run("createContainer")
        mounts.enter(root)
        return tree

    def _cgroups(self, plan: Plan) -> list[tuple[str, str]]:
        """Without a cgroup namespace /proc/self/cgroup names paths from the top."""
        known = [join.kind for join in plan.joins]
        own = plan.namespaces & sc.CLONE_NEWCGROUP or sc.CLONE_NEWCGROUP in known
        return self._hierarchy.bind_sources(plan.cgroup, whole=not own)

    def _visitor(
        self,
        process: Process,
        container: int,
        cgroup: str,
        stdio: Stdio,
        filter_: bytes,
        join: bool,
    ) -> None:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # or the container could open this process's descriptors
        self._detach(process, stdio)
        if join:
            self._hierarchy.join(cgroup)
        sc.setns(
            container,
            sc.CLONE_NEWNS | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWNET
            | sc.CLONE_NEWCGROUP,
        )  # fmt: skip
        if process.tty:
            _console(process, stdio.console, bind=False)
        user_ns = container if process.mapping.uids else -1
        self._finish(process, account_in(process), process.cwd, filter_, user_ns, False)

    def _detach(self, process: Process, stdio: Stdio) -> None:
        """A session of its own, no signal ignored, the descriptors in place."""
        os.setsid()
        for number in self._ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for target, fd in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
            os.dup2(fd, target)
        if process.oom_score_adj is not None:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(process.oom_score_adj))

    def _finish(
        self,
        process: Process,
        account: users.Account,
        directory: str,
        filter_: bytes,
        user_ns: int,
        init: bool,
        gate: "Gate | None" = None,
    ) -> None:
        """Give up what the process is not to have, and execute it."""
        os.chdir(directory)
        if not os.getcwd().startswith("/"):  # "(unreachable)": outside the root (CVE-2024-21626)
            raise OSError(errno.ENOENT, f"the working directory {directory} is outside the root")
        # Not before: above the keeper's own many descriptors the mounts could open none.
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        for limit, soft, hard in process.rlimits:
            resource.setrlimit(limit, (soft, hard))
        environment = {**process.env}
        environment.setdefault("HOME", account.home)
        if not process.tty:
            _own_stdio(userns.outside(process.mapping.uids, account.uid))
        if user_ns >= 0:
            sc.setns(user_ns, sc.CLONE_NEWUSER)
        if filter_ and not process.no_new_privileges:
            sc.load_seccomp(filter_)
        self._drop(process, account)
        if process.no_new_privileges:
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            if filter_:
                sc.load_seccomp(filter_)
        path = find_executable(process.args[0], environment.get("PATH", ""))
        if init:
            pid_one.become(process.tty)
        sc.close_on_exec_from(3 if gate is None else 3 + gate.preserved)
        _exec(path, process.args, environment)

    def _drop(self, process: Process, account: users.Account) -> None:
        caps = Capabilities(*(kind & self._available for kind in process.capabilities))
        for bit in range(self._last_capability + 1):
            if not caps.bounding >> bit & 1:
                sc.prctl(sc.PR_CAPBSET_DROP, bit)
        root = account.uid == 0
        if not root:
            sc.prctl(sc.PR_SET_KEEPCAPS, 1)
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        permitted, effective = caps.permitted, caps.effective
        if not root:  # as Docker: what is not ambient, another user does not get
            permitted = effective = caps.ambient
        sc.set_capabilities(effective, permitted, caps.inheritable)
        sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
        for bit in range(self._last_capability + 1):
            if caps.ambient >> bit & 1:
                sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_RAISE, bit)


def failure(report: bytes) -> Failure | None:
    """What a child wrote to its pipe before it died; None: nothing, so it has executed."""
    if not report:
        return None
    code, _, message = report.partition(b"\0")
    return Failure(int(code), message.decode(errors="replace"))


def find_executable(name: str, path: str, directory: str = ".") -> str:
    """As a shell in `directory` would find `name`. Raises _NotExecutable: 127 missing, 126 not
    allowed."""
    if "/" in name:
        _check_executable(os.path.join(directory, name), name)
        return name
    refused = None
    for folder in path.split(":"):
        candidate = f"{folder or directory}/{name}"
        try:
            _check_executable(candidate, name)
        except _NotExecutable as error:
            refused = error if error.code == 126 else refused
        else:
            return candidate
    raise refused or _NotExecutable(127, f'exec: "{name}": executable file not found in $PATH')


def _check_executable(path: str, name: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise _NotExecutable(126, f'exec: "{name}": permission denied') from None
    except OSError:
        text = f'exec: "{name}": stat {path}: no such file or directory'
        raise _NotExecutable(127, text) from None
    if stat.S_ISDIR(mode):
        raise _NotExecutable(126, f'exec: "{name}": is a directory')
    if not mode & 0o111:
        raise _NotExecutable(126, f'exec: "{name}": permission denied')


def _exec(path: str, args: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    try:
        os.execve(path, args, environment)
    except FileNotFoundError:
        text = f"exec {path}: no such file or directory (is its interpreter in the image?)"
        raise _NotExecutable(127, text) from None
    except OSError as error:
        code = 126 if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EPERM) else 128
        text = (error.strerror or "").lower()
        raise _NotExecutable(code, f"exec {path}: {text}") from None


def _await_network(connected: int) -> None:
    """The pipe closes without a byte if the daemon failed, or is gone."""
    if os.read(connected, 1) != b"\1":
        raise OSError(errno.ECANCELED, "the container's network could not be made")


def _tell(report: int, code: int, message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(report, f"{code}\0{message}".encode(errors="replace")[:4000])


def account_in(process: Process, root: str = "/") -> users.Account:
    """Who the process is to be, by the files of the image at `root`. Raises UserError."""
    identity = process.identity
    return users.resolve(
        identity.user,
        identity.groups,
        _read_inside("/etc/passwd", root),
        _read_inside("/etc/group", root),
    )


def available_names() -> list[str]:
    """The capabilities that this machine can give."""
    own = capabilities.own()
    return [name for bit, name in enumerate(capabilities.NAMES) if own >> bit & 1]


def _read_inside(path: str, top: str) -> str:
    """A file of the image; empty if missing. Its links may lead anywhere but out of the root."""
    root = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        flags, resolve = os.O_RDONLY | os.O_NONBLOCK, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
        fd = sc.openat2(root, path, flags, resolve)
    except OSError:
        return ""
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, _READ_LIMIT).decode(errors="replace")
    finally:
        os.close(fd)


def _make_cwd(path: str) -> str:
    if not path.startswith("/"):
        raise OSError(errno.EINVAL, f"the working directory {path!r} is not an absolute path")
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(mounts.open_target(root, path, directory=True))
    except OSError as error:
        text = f"cannot make the working directory {path}: {error.strerror}"
        raise OSError(error.errno, text) from error
    finally:
        os.close(root)
    return path


def _write_sysctls(plan: Plan) -> None:
    for path, value in plan.sysctls:
        try:
            with open(f"/proc/sys/{path}", "w") as file:
                file.write(value)
        except OSError as error:
            text = f"sysctl {path.replace('/', '.')}={value}: {error.strerror}"
            raise OSError(error.errno, text) from error


def _console(process: Process, channel: int, bind: bool) -> None:
    """A terminal of the container's own devpts, made the controlling one; its master goes out."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if any(process.size):
        rows, columns = process.size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    if bind:
        os.close(os.open("/dev/console", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        tree = mounts.clone("", at=slave)
        sc.move_mount(tree, sc.AT_FDCWD, "/dev/console")
        os.close(tree)
    with socket.socket(fileno=os.dup(channel)) as peer:
        socket.send_fds(peer, [b"tty"], [master])
    os.close(master)
    account = account_in(process)
    os.fchown(slave, userns.outside(process.mapping.uids, account.uid), -1)
    for target in range(3):
        os.dup2(slave, target)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _own_stdio(uid: int) -> None:
    """A process may open /dev/stdout again, so its pipes must be its own."""
    null = os.stat("/dev/null") if os.path.exists("/dev/null") else None
    for fd in range(3):
        info = os.fstat(fd)
        if null is not None and info.st_rdev == null.st_rdev and stat.S_ISCHR(info.st_mode):
            continue
        if info.st_uid != uid:
            with contextlib.suppress(OSError):  # a socket, or a pipe of another namespace
                os.fchown(fd, uid, -1)
