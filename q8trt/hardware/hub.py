"""The reach of the model hub, found out in seconds rather than in its client's minute of retries."""

from __future__ import annotations

import functools

_PROBE_SECONDS = 5.0


@functools.cache
def hub_answers() -> bool:
    """Return whether the Hugging Face hub answers at all, through the proxy of its client; asked once."""
    try:
        import huggingface_hub

        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # not installed, offline mode, no route, timeout: any failure is the answer "no"
        return False
    return True
