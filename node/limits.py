"""How many descriptors the daemon may hold."""

import resource


def raise_open_files() -> int:
    """Raise the soft limit to the hard one; the former soft limit, which containers are to have.

    The daemon holds five descriptors for each sandbox, so the usual 1024 would do for 200
    containers. Programs in containers rely on the usual: some close every number up to the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft
