"""Where members are reached: as the log has it, or as they told us since."""

import msgspec

from manager.raft.message import Configuration, Envelope, Member, ProtocolError

CONTACTS_MAX = 32  # senders we can answer although our configuration does not have them
_ADDRESS_MAX = 300  # characters
_ID_MAX = 100


class Contacts:
    """The last senders, the newest last."""

    def __init__(self) -> None:
        self._contacts: dict[str, tuple[Member, str]] = {}  # with the address it had in the log

    def learn(self, configuration: Configuration, envelope: Envelope) -> None:
        """Remember where a sender is: the log may not have it, or where it was before."""
        member_id, address = envelope.message.source, envelope.address
        if not address or len(address) > _ADDRESS_MAX or len(member_id) > _ID_MAX:
            return
        self._contacts.pop(member_id, None)
        known = configuration.find(member_id)
        configured = known.address if known else ""
        self._contacts[member_id] = Member(member_id, envelope.node_id, address), configured
        while len(self._contacts) > CONTACTS_MAX:
            del self._contacts[next(iter(self._contacts))]

    def find(self, configuration: Configuration, member_id: str) -> Member | None:
        """A member and where it is reached: as it told us since the log last changed that."""
        member = configuration.find(member_id)
        contact, configured = self._contacts.get(member_id, (None, ""))
        if member is None or contact is None:
            return member or contact
        if contact.address == member.address or member.address != configured:
            return member
        return msgspec.structs.replace(member, address=contact.address)


def check_sender(configuration: Configuration, envelope: Envelope, node_id: str) -> None:
    """Raise ProtocolError if node `node_id` has sent this in the name of another's member.

    A source that the configuration does not have yet is let pass; "" is a node that is not known.
    """
    member = configuration.find(envelope.message.source)
    if node_id and member is not None and member.node_id != node_id:
        raise ProtocolError(f"node {node_id} speaks for member {member.id}, which is not its own")
