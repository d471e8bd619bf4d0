"""What a container's child does between the fork and the exec, in two parts.

The ground is what can be made before it is known which container it is for: `lay_ground` in a
mount namespace of the child's own. `Child.container` adds what is the container's, and executes.
All of it runs Python with the keeper's memory, so it must end by exec or `os._exit`.
"""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from worker.runtime import capabilities, interior, masks, mounts, targets, userns, users
from worker.runtime import init as pid_one
from worker.runtime import syscalls as sc
from worker.runtime.cgroups import Hierarchy
from worker.runtime.execution import NotExecutable, execute, find_executable, tell
from worker.runtime.steps import Capabilities, Ground, Plan, Process

if TYPE_CHECKING:
    from worker.runtime.hooks import Gate  # the keeper need not load what runs hooks

_NEVER_RESET = {signal.SIGKILL, signal.SIGSTOP}


class Stdio(NamedTuple):
    """What the child gets as its descriptors 0, 1, 2; `console` is sent its terminal's master."""

    stdin: int
    stdout: int
    stderr: int
    console: int = -1


class Held(NamedTuple):
    """The descriptors that a container's child needs; -1: none."""

    report: int  # told what fails; closes at the exec
    stdin: int
    stdout: int
    stderr: int
    console: int
    connected: int  # a pipe that says when the network is there
    network: int  # the network namespace to enter
    users: int  # the user namespace, entered last


class Stage(NamedTuple):
    """What a container's child has in hand."""

    plan: Plan
    ground: Ground  # the plan's
    filter: bytes
    held: Held
    join: bool  # the cgroup is to be entered from within


class Laid(NamedTuple):
    """A ground that was laid. Descriptors, but for `parts`."""

    namespace: int  # of mounts, the child's own
    place: int  # where the root is to be mounted in it
    parts: mounts.Parts  # to move there
    covered: int  # a folder of /dev that the container does not see; -1: none
    sysctls: int  # /proc/sys before it was made read-only; -1: none


def lay_ground(ground: Ground, place: int) -> Laid:
    """Make the kernel's file systems at /proc and /dev of the child's own mount namespace, to be
    moved from there; nothing of a container is to be seen yet."""
    os.setsid()
    os.umask(0)
    if ground.mapping.uids:
        userns.act_as_root(ground.mapping)
    root = os.open("/", targets.DIRECTORY)
    parts, covered = mounts.mount_ground(ground.mounts, root)
    os.close(root)
    sysctls = os.open("/proc/sys", targets.DIRECTORY) if ground.read_only else -1
    masks.hide(ground.masked, ground.read_only)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    return Laid(namespace, place, parts, covered, sysctls)


def run(report: int, body: Callable[[], None]) -> NoReturn:
    """In a child just forked: do `body`, which is to execute something, and tell `report` if it
    fails."""
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


class Child:
    """What all children share; made before they are forked."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        # Asked once, for it takes as long as a few mounts. The keeper ignores none later.
        self._ignored = tuple(
            number
            for number in signal.valid_signals() - _NEVER_RESET
            if signal.getsignal(number) == signal.SIG_IGN
        )
        with open("/proc/sys/kernel/cap_last_cap") as file:
            self._last_capability = int(file.read())
        self._available = capabilities.own()  # a machine may withhold some from its root
        # The keeper raises its own limit; containers get what the daemon had.
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.machine = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def container(
        self,
        stage: Stage,
        laid: Laid,
        cgroup_made: Callable[[], None],
        gate: "Gate | None" = None,
    ) -> None:
        """On the ground laid, become the container's first process. `cgroup_made` returns when its
        cgroup is there."""
        plan, ground, held, process = stage.plan, stage.ground, stage.held, stage.plan.process
        self._settle(process, Stdio(*held[1:5]))
        root, sources = self._from_outside(stage, cgroup_made)
        sc.setns(laid.namespace, sc.CLONE_NEWNS)
        self._mount(plan, ground, laid, root, sources)
        if gate is not None:
            gate.run("createContainer")
        mounts.enter(root)
        if held.connected >= 0:
            interior.await_network(held.connected)
        if process.tty:
            interior.console(process, held.console, bind=True)
        interior.write_sysctls(plan, laid.sysctls)
        masks.hide(
            tuple(path for path in plan.masked if path not in ground.masked),
            tuple(path for path in plan.read_only if path not in ground.read_only),
        )
        account = interior.account_in(process)
        directory = interior.make_cwd(process.cwd)
        if plan.root_read_only:
            sc.mount_setattr(root, sc.MOUNT_ATTR_RDONLY)
        os.umask(0o022)
        if gate is not None:
            path = process.env.get("PATH", "")
            find_executable(process.args[0], path, directory)  # told now rather than at the start
            gate.await_start(held.report)
            gate.run("startContainer")
        self._finish(process, account, directory, stage.filter, held.users, plan.init, gate)

    def _from_outside(
        self, stage: Stage, cgroup_made: Callable[[], None]
    ) -> tuple[int, mounts.Sources]:
        """The container's root, a mount, and what is mounted in it; its other namespaces.

        All is opened in the machine's mount namespace, before anything of the image is visible: no
        race can exchange it, and a slave or a shared mount keeps its ties.
        """
        plan, held = stage.plan, stage.held
        sc.setns(self.machine, sc.CLONE_NEWNS)
        root = mounts.make_root(plan, held.users)
        binds = mounts.open_binds(plan, held.users)
        if held.network >= 0:
            sc.setns(held.network, sc.CLONE_NEWNET)
        if plan.hostname:
            sc.sethostname(plan.hostname)
        if plan.domainname:
            sc.setdomainname(plan.domainname)
        cgroup_made()
        if stage.join:
            self._hierarchy.join(plan.cgroup)
            if plan.namespaces & sc.CLONE_NEWCGROUP:
                sc.unshare(sc.CLONE_NEWCGROUP)
        return root, mounts.Sources(binds, mounts.open_cgroups(plan, self._cgroups(plan)))

    def _mount(
        self, plan: Plan, ground: Ground, laid: Laid, root: int, sources: mounts.Sources
    ) -> None:
        sc.move_mount(root, laid.place)
        mounts.place_ground(laid.parts, root)
        mounts.mount_all(plan, root, sources, len(ground.mounts), laid.covered)
        mounts.make_devices(plan, root)

    def _cgroups(self, plan: Plan) -> list[tuple[str, str]]:
        """Without a cgroup namespace /proc/self/cgroup names paths from the top."""
        known = [join.kind for join in plan.joins]
        own = plan.namespaces & sc.CLONE_NEWCGROUP or sc.CLONE_NEWCGROUP in known
        return self._hierarchy.bind_sources(plan.cgroup, whole=not own)

    def visitor(
        self,
        process: Process,
        container: int,
        cgroup: str,
        stdio: Stdio,
        filter_: bytes,
        join: bool,
    ) -> None:
        """Become a process in the running container of pidfd `container`."""
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # or the container could open this process's descriptors
        os.setsid()
        self._settle(process, stdio)
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

    def _settle(self, process: Process, stdio: Stdio) -> None:
        """No signal ignored, the descriptors in place."""
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
