"""A check that the model hub can be reached. It takes seconds, while the retries of the hub's client take a minute."""

from __future__ import annotations

import functools

_PROBE_SECONDS = 5.0


@functools.cache
def hub_answers() -> bool:
    """Return whether the Hugging Face hub answers, with any status. The request is sent once per process.

    It uses the session of the hub's client, and so its proxy. The result is also False if huggingface_hub is not installed.
    """
    try:
        import huggingface_hub

        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # such as a missing package, offline mode, no route or a timeout
        return False
    return True
