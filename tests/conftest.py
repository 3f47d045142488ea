"""Settings of all tests here: no example is judged by how long it took, as a loaded machine would fail it."""

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
