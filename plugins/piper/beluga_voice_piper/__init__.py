"""
Offline text-to-speech for beluga-voice: Piper, a natural voice on the CPU.

Importing this loads no engine; `voice.PiperModel` does at first use. The engine is GPL-3.0: see the README.
"""

BELUGA_VOICE_API = 1
