"""Settings for all tests."""

from hypothesis import settings

# Machines differ in speed, so no example has a deadline; the same examples every time, so a failure is a finding.
settings.register_profile("dattn", deadline=None, derandomize=True)
settings.load_profile("dattn")
