"""Starts a process in new namespaces, or in those of a running container.

The child runs Python between the fork and the exec, with the keeper's memory: it must end by exec
or `os._exit`, never by returning. What fails is told over a pipe that the exec closes.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from worker.runtime import capabilities, interior, masks, mounts, userns, users
from worker.runtime import init as pid_one
from worker.runtime import syscalls as sc
from worker.runtime.cgroups import Hierarchy
from worker.runtime.execution import NotExecutable, execute, find_executable, tell
from worker.runtime.steps import Capabilities, Plan, Process

if TYPE_CHECKING:
    from worker.runtime.hooks import Gate  # the keeper need not load what runs hooks

_NEVER_RESET = {signal.SIGKILL, signal.SIGSTOP}


class Stdio(NamedTuple):
    """What the child gets as its descriptors 0, 1, 2; `console` is sent its terminal's master."""

    stdin: int
    stdout: int
    stderr: int
    console: int = -1


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
        except NotExecutable as error:
            tell(report, error.code, str(error))
        except OSError as error:
            tell(report, 128, error.strerror or str(error))
        except BaseException as error:  # noqa: BLE001 - nothing may return into the keeper's loop
            tell(report, 128, str(error) or type(error).__name__)
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
            interior.await_network(stage.connected)
        if process.tty:
            interior.console(process, stage.stdio.console, bind=True)
        interior.write_sysctls(plan)
        masks.hide(plan.masked, plan.read_only)
        account = interior.account_in(process)
        directory = interior.make_cwd(process.cwd)
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
            interior.console(process, stdio.console, bind=False)
        user_ns = container if process.mapping.uids else -1
        self._finish(process, interior.account_in(process), process.cwd, filter_, user_ns, False)

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
            interior.own_stdio(userns.outside(process.mapping.uids, account.uid))
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
        execute(path, process.args, environment)

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
