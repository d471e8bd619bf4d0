"""What the engine needs of its neighbours: images and networks."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from common.model.image import ImageConfig
from worker.network.model import Attachment, Sandbox, SandboxSpec


class Image(Protocol):
    """The part of an image that a container is made from."""

    @property
    def id(self) -> str: ...

    @property
    def config(self) -> ImageConfig: ...


class Images(Protocol):
    def get(self, ref: str) -> Image:
        """By name, digest or id. Raises NotFound."""
        ...

    def lower_dirs(self, image_id: str) -> tuple[Path, ...]:
        """The unpacked layers, topmost first. Raises NotFound."""
        ...


class Networks(Protocol):
    async def open_sandbox(
        self, spec: SandboxSpec, early: Callable[[Sandbox], Awaitable[None]] | None = None
    ) -> Sandbox:
        """`early` may be awaited before, once processes can enter the sandbox."""
        ...

    async def close_sandbox(self, id: str) -> None:
        """Safe to repeat."""
        ...

    async def reconnect(self, sandbox_id: str, attachments: tuple[Attachment, ...]) -> Sandbox:
        """Connect a sandbox with exactly these networks. Raises Invalid, Forbidden, NotFound."""
        ...

    async def rename(self, sandbox_id: str, name: str) -> None:
        """The container has another name; nothing happens if it has no sandbox."""
        ...

    def check_address(self, network_id: str, address: str) -> None:
        """Raises Invalid unless a container may ask for `address` on this network."""
        ...

    def sandboxes(self) -> dict[str, Sandbox]: ...

    def inspect(self, name: str) -> dict[str, Any]:
        """A network of this node as the API shows it. Raises NotFound."""
        ...
