"""Which chains of the machine's own firewall are in the way, and what is asked for there."""

from worker.network import firewall
from worker.network.firewall import Hurdle, Pass
from worker.network.netlink import nft
from worker.network.netlink.nft import BaseChain

INET, IP, IP6, BRIDGE = 1, 2, 10, 7


def chain(
    family: int = IP, table: str = "t", hook: int = nft.FORWARD, policy: int = nft.DROP
) -> BaseChain:
    return BaseChain(family, table, "c", hook, policy)


def test_only_a_chain_that_drops_what_is_forwarded_is_in_the_way() -> None:
    chains = [
        chain(),
        chain(INET, "mine"),
        chain(policy=nft.ACCEPT),
        chain(hook=nft.INPUT),
        chain(IP6),
        chain(BRIDGE),
    ]
    assert firewall.hurdles(chains) == [Hurdle("ip", "t", "c"), Hurdle("inet", "mine", "c")]


def test_a_chain_that_is_not_of_iptables_is_named_with_what_it_lacks() -> None:
    hurdle = Hurdle("inet", "filter", "forward")
    assert not hurdle.is_iptables
    assert 'nft insert rule inet filter forward iifname "shoal0*" accept' in hurdle.remedy("shoal0")
    assert Hurdle("ip", "filter", "FORWARD").is_iptables


def test_what_nobody_asked_for_is_not_let_in() -> None:
    """Towards containers only answers, and what a port of ours sent there."""
    words = Pass("-o", "shoal0+").words("shoal0")
    assert words[words.index("--ctstate") + 1] == "DNAT,RELATED,ESTABLISHED"


def test_our_rules_are_known_by_their_comment_and_others_are_left_alone() -> None:
    text = """-P FORWARD DROP
-A FORWARD -o shoal0+ -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment shoal0 -j ACCEPT
-A FORWARD -i br-1 -m comment --comment shoal0 -j ACCEPT
-A FORWARD -i shoal1+ -m comment --comment shoal1 -j ACCEPT
-A FORWARD -i eth0 -j DROP
"""  # noqa: E501
    found = firewall.listed(text, "shoal0")
    assert found.keys() == {Pass("-o", "shoal0+"), Pass("-i", "br-1")}
    assert " ".join(found[Pass("-i", "br-1")]) == "-i br-1 -m comment --comment shoal0 -j ACCEPT"
    assert firewall.passes("shoal0", ["br-2"]) - found.keys() == {
        Pass("-i", "shoal0+"),
        Pass("-i", "br-2"),
        Pass("-o", "br-2"),
    }
