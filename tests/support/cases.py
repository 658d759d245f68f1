"""How many cases a property gets, and what may happen to a file."""

from hypothesis import settings
from hypothesis import strategies as st


def cases(quick, long):
    """Sets the number of examples of a property, by the profile."""
    chosen = settings.get_current_profile_name()
    return settings(max_examples=long if chosen == "long" else quick)


@st.composite
def accidents(draw, content):
    """Draws what is left of a file's content after an accident."""
    if not content:
        return b"\x00"
    place = draw(st.integers(0, len(content) - 1))
    end = min(len(content), place + draw(st.integers(1, 512)))
    kind = draw(
        st.sampled_from(("flip", "flip", "flip", "cut", "hole", "noise", "twice"))
    )
    if kind == "flip":
        bit = 1 << draw(st.integers(0, 7))
        changed = bytes([content[place] ^ bit])
        return content[:place] + changed + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "hole":
        return content[:place] + bytes(end - place) + content[end:]
    if kind == "noise":
        noise = draw(st.binary(min_size=1, max_size=64))
        return content[:place] + noise + content[place + len(noise) :]
    return content + content[place:]
