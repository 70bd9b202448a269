"""What a sandbox's network may reach: a filter of packets between the guest's card and passt, which has none.

What is not known to be allowed is dropped: other protocols than TCP, UDP and ICMP, fragments, IP options and extension headers,
tagged frames. Names are allowed by the answers to the guest's own questions, which only go out for names that are allowed.
"""

from aiovmm.sandboxes.firewall.firewall import Firewall, Verdict
from aiovmm.sandboxes.firewall.relay import relay
from aiovmm.sandboxes.firewall.rules import Rules

__all__ = ["Firewall", "Rules", "Verdict", "relay"]
