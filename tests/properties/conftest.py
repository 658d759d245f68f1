"""How many cases are drawn: few and always the same, or many and always others."""

from hypothesis import HealthCheck, settings

# The quick profile is the suite's; the long one is asked for on the command line:
# `pytest tests/properties --hypothesis-profile=long`, which overrides the line below.
_COMMON = {
    "deadline": None,  # A case may compile a network.
    "database": None,
    "suppress_health_check": [*HealthCheck],  # Cases are slow, and some are skipped.
}
settings.register_profile("quick", derandomize=True, **_COMMON)
settings.register_profile("long", print_blob=True, **_COMMON)
settings.load_profile("quick")
