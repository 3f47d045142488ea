"""Silero voice activity detection for beluga-voice."""

BELUGA_VOICE_API = 1
