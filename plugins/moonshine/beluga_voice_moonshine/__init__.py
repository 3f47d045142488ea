"""
Offline speech-to-text for beluga-voice: Moonshine tiny-en, English, weights included.

Importing this loads no engine; `model.MoonshineModel` does at first use.
"""

BELUGA_VOICE_API = 1
