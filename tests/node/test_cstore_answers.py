from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pynetdicom import build_context
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.sop_class import Verification

from config.settings import StoreDestination
from node.destinations.cstore import associated


def test_an_answer_is_kept_for_the_one_who_asked_however_late_he_looks(
    store_peer: Callable[..., Any],
) -> None:
    peer = store_peer()
    destination = StoreDestination(name="pacs", host="127.0.0.1", port=peer.port, ae_title="PEER")
    with associated(destination, [build_context(Verification)]) as assoc:
        request = C_ECHO()
        request.MessageID, request.AffectedSOPClassUID = 1, Verification
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        time.sleep(0.5)  # the association's own thread looks many times meanwhile
        _, answer = assoc.dimse.get_msg(block=True)
    assert answer is not None
    assert answer.Status == 0x0000
